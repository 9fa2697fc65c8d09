"""TAFStep in several processes against one process that computes the expected results of all."""

import copy
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference.step import share_all_but_batch_norm, taf_losses
from reference.temporal_augment import Net, clips_in_range

WORKER = Path(__file__).with_name("distributed_worker.py")
SECONDS = 100  # all ranks together; a rank waits for another one shorter than that
ALPHA, RATE = 0.7, 0.05
ATTACK = dict(epsilon=64 / 255, step_size=32 / 255, steps=1, num_frames=4, denominator="max")

# How many of 4 clips are attacked on each rank: on one rank, on none, on both.
COUNTS = [(0, 2), (3, 0), (0, 0), (3, 1), (0, 4), (1, 0), (2, 2), (4, 1)]
COUNTS_OF_FOUR = [(0, 2, 4, 1), (0, 0, 3, 0), (0, 0, 0, 0), (2, 1, 3, 4)]


def with_own_statistics(model):
    """Return a model that shares the parameters but has its own buffers, as on each rank."""
    other = copy.deepcopy(model)
    for name, module in other.named_modules():
        module._parameters = model.get_submodule(name)._parameters
    return other


def in_one_process(net, counts, generator):
    """Train ``net`` on batches in which ``counts`` clips are attacked.

    -> per step the batch of each rank; per step the expected results; the expected buffers of each rank.
    """
    clean, adversarial = net, copy.deepcopy(net)
    share_all_but_batch_norm(clean, adversarial)
    ranks = [(with_own_statistics(clean), with_own_statistics(adversarial)) for _ in counts[0]]
    parameters = dict(clean.named_parameters())
    for name in ("bn1", "bn2"):
        norm = adversarial.get_submodule(name)
        parameters |= {f"{name}.adversarial.{key}": value for key, value in norm.named_parameters()}
    batches, expected = [], []
    for wanted in counts:
        batch, clean_losses, adversarial_sum = [], [], 0
        for count, (clean_rank, adversarial_rank) in zip(wanted, ranks, strict=True):
            x = clips_in_range(net, 4, 4, 9, generator)
            predicted = copy.deepcopy(clean_rank)(x).argmax(1)
            rows = torch.randperm(4, generator=generator)[:count].sort().values.tolist()
            labels = predicted.clone()
            labels[rows] = (predicted[rows] + 1) % 5
            batch.append((x, labels))
            if count == 0:
                clean_losses.append(F.cross_entropy(clean_rank(x), labels))
                continue
            _, clean_loss, adv_loss, certain = taf_losses(
                clean_rank, adversarial_rank, x, labels, labels, rows, ALPHA, attack_bn="frozen", **ATTACK
            )
            assert certain.all()
            clean_losses.append(clean_loss)
            adversarial_sum += count * adv_loss
        loss = ALPHA * torch.stack(clean_losses).mean() + (1 - ALPHA) * adversarial_sum / max(1, sum(wanted))
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter -= RATE * gradient
        batches.append(batch)
        expected.append(
            {
                "loss": loss.detach(),
                "clean_losses": [value.detach() for value in clean_losses],
                "gradients": dict(zip(parameters, gradients, strict=True)),
            }
        )
    buffers = []
    for clean_rank, adversarial_rank in ranks:
        twins = {f"{k[:3]}.adversarial.{k[4:]}": v for k, v in adversarial_rank.named_buffers() if "." in k}
        buffers.append(dict(clean_rank.named_buffers()) | twins)
    return batches, expected, buffers


def in_processes(folder, job):
    """Run every rank and return the results. Fail if one ends with an error or not in time."""
    job |= dict(alpha=ALPHA, rate=RATE, attack=ATTACK | {"label": "true"}, timeout=SECONDS * 0.6)
    torch.save(job, folder / "job.pt")
    ranks = range(len(job["batches"][0]))
    logs = [folder / f"rank{rank}.log" for rank in ranks]
    processes = []
    deadline = time.monotonic() + SECONDS
    try:
        for rank in ranks:
            with logs[rank].open("w") as log:
                command = [sys.executable, str(WORKER), str(rank), str(folder)]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        states = [None]
        # A failed rank leaves the others waiting.
        while None in states and not any(states) and time.monotonic() < deadline:
            time.sleep(0.05)
            states = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert states == [0] * len(ranks), "\n".join(
        f"{state}: {log.read_text()}" for state, log in zip(states, logs, strict=True)
    )
    return [torch.load(folder / f"rank{rank}.pt") for rank in ranks]


def check(results, counts, expected, buffers, **tolerance):
    for index, (wanted, step) in enumerate(zip(counts, expected, strict=True)):
        outs = [result["steps"][index] for result in results]
        assert [out["attacked"].item() for out in outs] == list(wanted)
        for out, clean_loss in zip(outs, step["clean_losses"], strict=True):
            torch.testing.assert_close(out["clean_loss"], clean_loss, **tolerance)
            assert out["gradients"].keys() == step["gradients"].keys()
            for name, gradient in step["gradients"].items():
                torch.testing.assert_close(out["gradients"][name], gradient, **tolerance)
                assert torch.equal(out["gradients"][name], outs[0]["gradients"][name]), name
        torch.testing.assert_close(sum(out["loss"] for out in outs) / len(outs), step["loss"], **tolerance)
    for result, own in zip(results, buffers, strict=bool(buffers)):
        assert result["buffers"].keys() == own.keys()
        for name, value in own.items():
            torch.testing.assert_close(result["buffers"][name], value, **tolerance)


@pytest.fixture
def net(generator):
    torch.manual_seed(generator.initial_seed())
    net = Net(segments=4).double()
    net.fc.weight.data *= 4
    return net


_DDP = dict(broadcast_buffers=False)
FORMS = {
    "ddp": [
        dict(ddp=_DDP, backend=None),
        # In buckets of a few hundred bytes, reduced one by one in the order of the backward.
        dict(ddp=_DDP | {"bucket_cap_mb": 2e-4}, backend=None),
        dict(ddp=_DDP, backend="aot_eager"),
        dict(ddp=None, backend=None, take="averaged_by_hand"),
        dict(ddp=_DDP | {"bucket_cap_mb": 2e-4}, backend=None, take="lean"),
        dict(ddp=_DDP | {"find_unused_parameters": True}, backend=None, take="lean"),
        dict(ddp=_DDP | {"gradient_as_bucket_view": True}, backend=None, take="accumulated"),
        dict(ddp="float32", backend=None, take="reduced"),
        dict(ddp="float32", backend="aot_eager", take="reduced_in_parts"),
        dict(ddp="bfloat16", backend=None, take="reduced"),
    ],
    "fsdp": [
        dict(ddp="fsdp", backend=None),
        dict(ddp="fsdp", backend=None, recompute="wrapper"),
        dict(ddp="fsdp", backend=None, recompute="composable"),
        dict(ddp="fsdp", backend=None, take="lean"),
        dict(ddp="fsdp", backend=None, take="one_call"),
        dict(ddp="fsdp", backend=None, take="one_call", recompute="wrapper"),
        dict(ddp="fsdp", backend=None, take="one_call", recompute="composable"),
        dict(ddp="fsdp", backend=None, take="accumulated"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMS)
def test_two_ranks_get_the_gradient_of_all_their_clips(net, generator, tmp_path, kind):
    require_gradient_of_all_clips(net, generator, tmp_path, FORMS[kind], COUNTS)


@pytest.mark.slow
def test_four_ranks_get_the_gradient_of_all_their_clips(net, generator, tmp_path):
    """Where a gradient lies in a bucket decides how its sum over more than two is rounded, on all alike."""
    forms = [form for form in FORMS["ddp"] if form.get("take") == "reduced"]
    require_gradient_of_all_clips(net, generator, tmp_path, forms, COUNTS_OF_FOUR)


def require_gradient_of_all_clips(net, generator, folder, forms, counts):
    start = copy.deepcopy(net)
    batches, expected, buffers = in_one_process(net, counts, generator)
    results = in_processes(folder, dict(net=start, batches=batches, forms=forms))
    for form, ranks in zip(forms, zip(*results, strict=True), strict=True):
        # What runs again also updates running statistics again, as it does without TAF.
        again = "recompute" in form or form.get("take") in ("accumulated", "reduced_in_parts")
        of_form = [] if again else buffers
        if form["ddp"] == "bfloat16":  # and the first step moves the weights of the second
            check(ranks, counts[:1], expected[:1], [], rtol=1e-2, atol=1e-3)
        else:
            check(ranks, counts, expected, of_form, rtol=1e-8, atol=1e-12)
