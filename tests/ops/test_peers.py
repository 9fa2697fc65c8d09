"""The numbers of well-known packages: torchattacks' PGD and Captum's Grad-CAM. Skipped where missing."""

import pytest
import torch
from torch import nn

from taf_fast import ops


def installed(name: str):
    """Import a package or skip with the reason: some fail on import because they lack a package
    themselves."""
    try:
        return pytest.importorskip(name, exc_type=ImportError)
    except Exception as error:
        pytest.skip(f"{name} is installed but does not import: {error}")


class Classifier(nn.Module):
    """Pictures [N,3,H,W] to logits, with features that the logits are linear in."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2), nn.Tanh())
        self.fc = nn.Linear(12, 5)

    def forward(self, pictures):
        return self.fc(self.stage(pictures).mean((2, 3)))


@pytest.fixture
def model(seed) -> Classifier:
    torch.manual_seed(seed)
    return Classifier().eval()


@pytest.fixture
def pictures(generator) -> torch.Tensor:
    return torch.rand((4, 3, 9, 11), generator=generator)


LABELS = torch.tensor([0, 3, 1, 4])


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("epsilon, step_size", [(8 / 255, 2 / 255), (8 / 255, 16 / 255)])
def test_pgd_is_that_of_torchattacks(steps, epsilon, step_size, model, pictures):
    torchattacks = installed("torchattacks")
    attack = torchattacks.PGD(model, eps=epsilon, alpha=step_size, steps=steps, random_start=False)
    expected = attack(pictures, LABELS)
    x = None
    for _ in range(steps):
        start = (pictures if x is None else x).detach().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(start), LABELS), start)
        x = ops.pgd_step(x, grad, pictures, step_size, epsilon, 0.0, 1.0)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    assert not torch.equal(x, pictures)


@pytest.mark.parametrize("relu", [False, True])
def test_the_map_is_that_of_captum(relu, model, pictures):
    attr = installed("captum.attr")
    expected = attr.LayerGradCam(model, model.stage).attribute(
        pictures, target=LABELS, relu_attributions=relu
    )
    features = model.stage(pictures)
    logits = model.fc(features.mean((2, 3)))
    (grads,) = torch.autograd.grad(logits.gather(1, LABELS[:, None]).sum(), features)
    cam = ops.frame_cam(features[:, None], grads[:, None], relu)  # clips of one frame
    torch.testing.assert_close(cam, expected.detach(), rtol=1e-5, atol=1e-7)
    assert (cam < 0).any() != relu
