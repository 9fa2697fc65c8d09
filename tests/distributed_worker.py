"""One rank of ``test_distributed.py``, in a process of its own: ``python distributed_worker.py RANK FOLDER``.

FOLDER has ``job.pt``, what to do; the rank leaves there what came of it."""

import copy
import functools
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from taf_fast import TAFStep, TemporalAugment, add_adversarial_bn

COMPILE = torch.compile


def wrapped(step, options):
    model = DistributedDataParallel(step, **options)

    def backward(x, labels):
        out = model(x, labels)
        out["loss"].backward()
        return out

    return backward


def bare(step):
    def backward(x, labels):
        out = step.accumulate_grads(x, labels)
        gradients = [parameter.grad for parameter in step.parameters()]
        total = parameters_to_vector(gradients)
        dist.all_reduce(total)
        vector_to_parameters(total / dist.get_world_size(), gradients)
        return out

    return backward


def train(rank, net, ddp, backend, job):
    """-> what every step returned, with its gradients; and the buffers at the end."""
    torch.compile = functools.partial(COMPILE, backend=backend)
    augment = TemporalAugment(**job["attack"])
    step = TAFStep(add_adversarial_bn(net), augment, job["alpha"], compile=backend is not None)
    backward = bare(step) if ddp is None else wrapped(step, ddp)
    optimizer = torch.optim.SGD(net.parameters(), job["rate"])
    steps = []
    for batch in job["batches"]:
        optimizer.zero_grad()
        out = backward(*batch[rank])
        gradients = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
        steps.append({name: value.detach() for name, value in out.items()} | {"gradients": gradients})
        optimizer.step()
    return {"steps": steps, "buffers": dict(net.named_buffers())}


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
