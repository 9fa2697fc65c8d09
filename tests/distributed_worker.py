"""One rank of ``test_distributed.py``, in a process of its own: ``python distributed_worker.py RANK FOLDER``.

FOLDER has ``job.pt``, what to do; the rank leaves there what came of it."""

import copy
import functools
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed._composable import checkpoint
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from taf_fast import TAFStep, TemporalAugment, add_adversarial_bn
from taf_fast.run.reduction import ReducedStep

COMPILE = torch.compile


def in_forward(model, x, labels):
    out = model(x, labels)
    out["loss"].backward()
    return out


def lean(model, x, labels):
    out = model(x, labels, backward=torch.Tensor.backward)
    out["loss"].backward()
    return out


def one_call(step, x, labels):
    return step.accumulate_grads(x, labels)


def accumulated(model, x, labels):
    """The mean gradient of two takes of one batch, averaged over ranks after the second."""
    sharded = not isinstance(model, DistributedDataParallel)
    if sharded:
        model.set_requires_gradient_sync(False)
    with nullcontext() if sharded else model.no_sync():
        lean(model, x, labels)
    if sharded:
        model.set_requires_gradient_sync(True)
    out = lean(model, x, labels)
    for parameter in model.parameters():
        parameter.grad /= 2
    return out


def reduced(step, x, labels):
    return step.accumulate_grads(x, labels)


def reduced_in_parts(step, x, labels):
    """The batch as a quarter and three quarters of itself."""
    for share, last in ((0.25, False), (0.75, True)):
        out = step.accumulate_grads(
            x, labels, backward=lambda loss, share=share: (share * loss).backward(), last=last
        )
    return out


def sharded(step, recompute):
    """The layers of the model are recomputed in the backward if ``recompute`` says how."""
    layers = {name: layer for name, layer in step.model.named_children() if list(layer.parameters())}
    for name, layer in layers.items():
        if recompute == "wrapper":
            setattr(step.model, name, checkpoint_wrapper(layer))
        elif recompute == "composable":
            checkpoint(layer)
    return fully_shard(step)


def averaged_by_hand(step, x, labels):
    out = step.accumulate_grads(x, labels)
    gradients = [parameter.grad for parameter in step.parameters()]
    total = parameters_to_vector(gradients)
    dist.all_reduce(total)
    vector_to_parameters(total / dist.get_world_size(), gradients)
    return out


def train(rank, net, ddp, backend, job, recompute=None, take="in_forward"):
    """-> what every step returned, with its gradients; and the buffers at the end."""
    torch.compile = functools.partial(COMPILE, backend=backend)
    augment = TemporalAugment(**job["attack"])
    step = TAFStep(add_adversarial_bn(net), augment, job["alpha"], compile=backend is not None)
    if ddp == "fsdp":
        step = sharded(step, recompute)
    elif isinstance(ddp, str):  # the precision of the exchange
        step = ReducedStep(step, [], ddp)
    elif ddp is not None:
        step = DistributedDataParallel(step, **ddp)
    optimizer = torch.optim.SGD(net.parameters(), job["rate"])
    steps = []
    for batch in job["batches"]:
        (step if isinstance(step, ReducedStep) else optimizer).zero_grad()
        out = globals()[take](step, *batch[rank])
        gradients = {_plain(name): _whole(p.grad) for name, p in net.named_parameters()}
        steps.append({name: value.detach() for name, value in out.items()} | {"gradients": gradients})
        optimizer.step()
    return {"steps": steps, "buffers": {_plain(k): v for k, v in net.named_buffers()}}


def _plain(name):
    return name.replace("_checkpoint_wrapped_module.", "")


def _whole(gradient):
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()


def main(rank, folder):
    torch.set_num_threads(1)
    job = torch.load(folder / "job.pt", weights_only=False)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=len(job["batches"][0]),
        timeout=timedelta(seconds=job["timeout"]),
    )
    results = [train(rank, copy.deepcopy(job["net"]), **form, job=job) for form in job["forms"]]
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
