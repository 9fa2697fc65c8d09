"""A whole PGD attack: torchattacks and a loop around pgd_step, on the same model in the same run."""

import pytest
import torch
from torch import nn

from taf_fast import ops

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SHAPE = (256, 3, 224, 224) if CUDA else (16, 3, 112, 112)
EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 3


class Score(nn.Module):
    """A minimal model, so that the time is that of the attack itself."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, *SHAPE[1:]) / 100, requires_grad=False)

    def forward(self, pictures):
        return pictures.flatten(1) @ self.weight.flatten(1).T


@pytest.mark.parametrize("attacker", ["torchattacks", "taf_fast"])
def test_pgd_attack(benchmark, attacker):
    torchattacks = pytest.importorskip("torchattacks", exc_type=ImportError)
    torch.manual_seed(0)
    model, pictures = Score().to(DEVICE), torch.rand(SHAPE, device=DEVICE)
    labels = torch.zeros(SHAPE[0], dtype=torch.int64, device=DEVICE)
    theirs = torchattacks.PGD(model, eps=EPSILON, alpha=STEP, steps=STEPS, random_start=False)

    def ours(pictures, labels):
        x = None
        for _ in range(STEPS):
            start = (pictures if x is None else x).detach().requires_grad_()
            loss = nn.functional.cross_entropy(model(start), labels)
            (grad,) = torch.autograd.grad(loss, start)
            x = ops.pgd_step(x, grad, pictures, STEP, EPSILON, 0.0, 1.0)
        return x

    torch.testing.assert_close(ours(pictures, labels), theirs(pictures, labels), rtol=0, atol=1e-6)

    def run():
        (ours if attacker == "taf_fast" else theirs)(pictures, labels)
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = f"PGD, {STEPS} steps on {list(SHAPE)}"
    benchmark(run)
