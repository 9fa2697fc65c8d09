"""Models, augmentations and corruptions on a GPU against the same on the CPU, from the same draws."""

import copy

import pytest
import torch
from reference.temporal_augment import Net, clips_in_range

import taf_fast
from taf_fast import AdvPropAugment, CrossEntropyAugment, NoiseAugment, TemporalAugment, channels_last, models
from taf_fast.augment import MIXINGS
from taf_fast.corruptions import NAMES, SEVERITIES, corrupt

pytestmark = pytest.mark.gpu

FAMILIES = ("tsm", "gst", "gst_large", "tam", "tpn")
FIXED = ("gaussian_blur", "defocus_blur", "zoom_blur", "brightness")


def seeded():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_models(generator, family, last):
    """Logits and all gradients in float64; in float32, which the kernels compute in, the logits: a ReLU that
    rounding opens or closes changes gradients by percents."""
    torch.manual_seed(generator.initial_seed())
    exact = models.build(f"{family}_resnet18", 5, 4, dropout=0.0).double()
    there = copy.deepcopy(exact).cuda()
    if last:
        channels_last(there)
    x = torch.randn(3, 4, 3, 48, 40, generator=generator, dtype=torch.float64)
    found, expected = logits_and_gradients(there, x.cuda()), logits_and_gradients(exact, x)
    for name, value in expected.items():
        assert relative_error(found[name], value) < 1e-9, name
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        logits = there.float()(x.float().cuda())
    assert relative_error(logits, expected["logits"]) < 1e-4


def logits_and_gradients(model, x):
    x = x.clone().requires_grad_()
    logits = model(x)
    (logits**2).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), "pixels": x.grad} | gradients


def relative_error(actual, expected):
    return (actual.cpu().double() - expected).norm() / expected.norm().clamp(min=1e-6)


@pytest.mark.parametrize("kind", [TemporalAugment, CrossEntropyAugment, NoiseAugment, AdvPropAugment])
def test_adversarial_clips(generator, kind):
    torch.manual_seed(generator.initial_seed())
    net = taf_fast.add_adversarial_bn(Net().double())
    x, labels = clips_in_range(net, 3, 4, 9, generator), torch.tensor([0, 3, 1])
    expected = kind()(net, x, labels, seeded())
    there = kind()(copy.deepcopy(net).cuda(), x.cuda(), labels.cuda(), seeded())
    assert there.is_cuda
    # If a gradient is rounding noise, so is its sign.
    assert ((there.cpu() - expected).abs() < 1e-9).double().mean() > 0.99


@pytest.mark.parametrize("name", MIXINGS)
def test_mixing(generator, name):
    x = torch.rand(4, 6, 3, 20, 28, generator=generator)
    expected = MIXINGS[name](x, seeded())
    for here, there in zip(expected, MIXINGS[name](x.cuda(), seeded()), strict=True):
        assert there.is_cuda
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-6)


def test_corruptions(generator):
    clips = torch.randint(0, 256, (3, 2, 64, 48, 3), dtype=torch.uint8, generator=generator)
    for name in NAMES:
        for severity in SEVERITIES:
            there = corrupt(clips.cuda(), name, severity, [1, 2, 3])
            alone = corrupt(clips[1:].cuda(), name, severity, [2, 3])
            assert there.is_cuda and torch.equal(there[1:], alone), name
            if name in FIXED:
                assert torch.equal(there.cpu(), corrupt(clips, name, severity, [1, 2, 3])), name
