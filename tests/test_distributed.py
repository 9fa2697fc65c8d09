"""TAFStep in several processes against one process that computes what all of them should get."""

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

# Of 4 clips, how many are attacked on rank 0 and on rank 1: none on one of them, none at all, on both.
COUNTS = [(0, 2), (3, 0), (0, 0), (3, 1), (0, 4), (1, 0), (2, 2), (4, 1)]


def with_own_statistics(model):
    """The same parameters; buffers of its own, as each rank has."""
    other = copy.deepcopy(model)
    for name, module in other.named_modules():
        module._parameters = model.get_submodule(name)._parameters
    return other


def in_one_process(net, counts, generator):
    """Train ``net`` on batches made such that ``counts`` clips are attacked.

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
    """Run every rank; -> what each of them left. Fails when one ends with an error or not in time."""
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
        # One that has failed leaves the others waiting.
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
    for result, own in zip(results, buffers, strict=True):
        assert result["buffers"].keys() == own.keys()
        for name, value in own.items():
            torch.testing.assert_close(result["buffers"][name], value, **tolerance)


@pytest.fixture
def net(generator):
    torch.manual_seed(generator.initial_seed())
    net = Net(segments=4).double()
    net.fc.weight.data *= 4
    return net


def test_two_ranks_get_the_gradient_of_all_their_clips(net, generator, tmp_path):
    ddp = dict(broadcast_buffers=False)
    forms = [
        dict(ddp=ddp, backend=None),
        # In buckets of a few hundred bytes, reduced one by one in the order of the backward.
        dict(ddp=ddp | {"bucket_cap_mb": 2e-4}, backend=None),
        dict(ddp=ddp, backend="aot_eager"),
        dict(ddp=None, backend=None),
    ]
    start = copy.deepcopy(net)
    batches, expected, buffers = in_one_process(net, COUNTS, generator)
    results = in_processes(tmp_path, dict(net=start, batches=batches, forms=forms))
    for ranks in zip(*results, strict=True):
        check(ranks, COUNTS, expected, buffers, rtol=1e-8, atol=1e-12)
