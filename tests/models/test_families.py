"""What all families must satisfy: sizes, features, head, and TAF on each of them."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from reference.step import share_all_but_batch_norm
from reference.temporal_augment import attack, clips_in_range
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from taf_fast import TAFStep, TemporalAugment, add_adversarial_bn, models, strip_adversarial_bn
from taf_fast.models.tam import TemporalAggregation

SMALL = ("tsm_resnet18", "gst_resnet18", "gst_large_resnet18", "tam_resnet18", "tpn_resnet18")


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, options, parameters, auxiliary, gmacs, norms",
    [
        ("tsm_resnet50", {}, 23_864_558, 0, 32.70, 53),
        ("gst_resnet50", {}, 21_035_246, 0, 29.00, 53),
        ("gst_large_resnet50", {}, 29_523_182, 0, 40.10, 53),
        ("tam_resnet50", {}, 23_903_918, 0, 32.83, 53),
        ("tam_resnet50", {"temporal_stride": True}, 23_903_918, 0, 14.21, 53),
        ("tpn_resnet50", {}, 82_445_724, 19_234_990, 41.23, 62),
    ],
)
def test_sizes_of_the_published_models(name, options, parameters, auxiliary, gmacs, norms):
    """174 classes, 8 frames of 224 pixels; multiply-adds at inference, in units of 10^9."""
    model = models.build(name, 174, 8, **options).eval()
    assert count(model.parameters()) == parameters
    assert count(getattr(model, "auxiliary", nn.Identity()).parameters()) == auxiliary
    assert sum(isinstance(module, _BatchNorm) for module in model.modules()) == norms
    blends = []  # products other than convolutions and matrix products
    for module in model.modules():
        if isinstance(module, TemporalAggregation):
            module.register_forward_hook(lambda module, args, out: blends.append(3 * out.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 8, 3, 224, 224))
    assert (counter.get_total_flops() / 2 + sum(blends)) / 1e9 == pytest.approx(gmacs, abs=0.006)


def test_diving48_s_48_classes():
    assert count(models.build("tsm_resnet50", 48).parameters()) == 23_606_384


@pytest.mark.parametrize(
    "name, part, deviation",
    [
        ("tsm_resnet50", "fc.weight", 0.001),
        ("gst_resnet50", "fc.weight", 0.001),
        ("tam_resnet50", "fc.weight", 0.001),
        ("tpn_resnet18", "fc.weight", 0.01),
        ("tpn_resnet18", "auxiliary.fc.weight", 0.01),
        # Kaiming normal with fan-out: a depthwise 1x1 convolution's is its number of channels ...
        ("tam_resnet50", "backbone.layer4.2.temporal.previous", (2 / 2048) ** 0.5),
        ("tam_resnet50", "backbone.layer4.2.temporal.next", (2 / 2048) ** 0.5),
        # ... and that of the others output channels times kernel.
        ("gst_resnet50", "backbone.layer3.1.conv2.spatial.weight", (2 / (192 * 9)) ** 0.5),
        ("gst_resnet50", "backbone.layer3.1.conv2.temporal.weight", (2 / (64 * 27)) ** 0.5),
        # Xavier uniform, with the fan-in and fan-out of one group.
        ("tpn_resnet18", "neck.pyramid_fusion.0.weight", (2 / (1024 + 512)) ** 0.5),
        ("tpn_resnet18", "neck.spatial_modulation.0.weight", (2 / (9 * (256 + 512))) ** 0.5),
        ("tpn_resnet18", "auxiliary.conv.0.weight", (2 / (9 * (256 + 512))) ** 0.5),
    ],
)
def test_random_weights_are_the_official_ones(name, part, deviation, seed):
    torch.manual_seed(seed)
    weight = dict(models.build(name, 174).named_parameters())[part].detach()
    assert weight.std().item() == pytest.approx(deviation, rel=0.1) and abs(weight.mean()) < 0.2 * deviation


class Split(nn.Module):
    """A model as ``features`` and a ``head`` of these alone: TPN's other stage is remembered."""

    def __init__(self, model):
        super().__init__()
        self.model, self.mean, self.std = model, model.mean, model.std

    def features(self, clips):
        if not hasattr(self.model, "stages"):
            return self.model.features(clips)
        features, self.shallow = self.model.stages(clips)
        return features

    def head(self, features):
        more = (self.shallow,) if hasattr(self.model, "stages") else ()
        return self.model.head(features, *more)

    def forward(self, clips):
        return self.model(clips)


def make(name, generator, segments=4, size=40, batch=3, **options):
    torch.manual_seed(generator.initial_seed())
    model = models.build(name, 5, segments, dropout=0.0, **options).double()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    model.fc.weight.data *= 100 if model.family != "tpn" else 10
    return model, clips_in_range(model, batch, segments, size, generator)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_features_and_head(name, generator):
    model, x = make(name, generator, segments=5, size=40)
    model.eval()
    split = Split(model)
    features = split.features(x)
    assert features.shape == (3, 5, 512, 2, 2) and features.min() >= 0
    torch.testing.assert_close(split.head(features), model(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(model.mean.float(), torch.tensor([0.485, 0.456, 0.406]))
    assert torch.equal(model.std.float(), torch.tensor([0.229, 0.224, 0.225]))
    with pytest.raises(ValueError, match=r"\[B,5,3,H,W\], got \[3, 4, 3, 40, 40\]"):
        model(x[:, :4])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_frames_are_in_order_and_clips_apart(name, generator):
    """Each clip's logits depend on its own frames alone, and on their order."""
    model, x = make(name, generator)
    model.eval()
    logits = model(x)
    torch.testing.assert_close(model(x[1:2]), logits[1:2])
    assert (model(x.flip(1)) - logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_one_frame(name, generator):
    model, x = make(name, generator, segments=1, size=33)
    assert model(x).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_memory_formats(name, generator):
    """In float32: without a fast path for a dtype, PyTorch's 3D convolutions lose the layout."""
    model, x = make(name, generator)
    model, x = model.float().eval(), x.float()
    expected = model(x)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    channels_last = x.movedim(2, -1).contiguous().movedim(-1, 2)
    torch.testing.assert_close(model(channels_last), expected, rtol=1e-3, atol=1e-3)
    frames = model.backbone(channels_last.flatten(0, 1))
    assert frames.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
@pytest.mark.parametrize("name", SMALL)
def test_augmentation_equals_double_backward(name, generator, attack_bn):
    model, x = make(name, generator)
    labels, options = torch.tensor([1, 3, 0]), dict(epsilon=64 / 255, step_size=32 / 255, num_frames=3)
    expected, certain = attack(
        Split(model), x, labels, [0, 1, 2], steps=1, denominator="max", attack_bn=attack_bn, **options
    )
    moved = TemporalAugment(label="true", attack_bn=attack_bn, **options)(model, x, labels)
    assert certain.double().mean() > 0.99
    # At this depth some gradients are rounding noise, so nearly all signs must agree, not all.
    assert ((moved - expected).abs() < 1e-12)[certain].double().mean() > 0.999


def test_a_temporal_stride_leaves_nothing_to_attack(generator):
    model, x = make("tam_resnet18", generator, temporal_stride=True)
    assert model.features(x).shape[1] == 1 and model(x).isfinite().all()
    with pytest.raises(ValueError, match="features have 1 frames, expected one for each of the clip's 4"):
        TemporalAugment(label="true")(model, x, torch.tensor([1, 3, 0]))


def objective(model, x, labels):
    """Cross-entropy, plus half of the auxiliary head's if there is one."""
    if not hasattr(model, "auxiliary"):
        return F.cross_entropy(model(x), labels)
    deep, shallow = model.stages(x)
    auxiliary = model.auxiliary(shallow.flatten(0, 1))
    return F.cross_entropy(model.head(deep, shallow), labels) + 0.5 * F.cross_entropy(auxiliary, labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_step_equals_the_paper(name, generator):
    model, x = make(name, generator)
    labels, augment = torch.tensor([1, 3, 0]), TemporalAugment(label="true")
    keys = set(model.state_dict())
    clean, adversarial = copy.deepcopy(model), copy.deepcopy(model)
    share_all_but_batch_norm(clean, adversarial)
    moved = augment(copy.deepcopy(model), x, labels)
    clean_loss, adv_loss = objective(clean, x, labels), objective(adversarial, moved, labels)
    (0.6 * clean_loss + 0.4 * adv_loss).backward()

    step = TAFStep(add_adversarial_bn(model), augment, alpha=0.6, composition="all", compile=False)
    out = step.accumulate_grads(x, labels)
    torch.testing.assert_close(out["clean_loss"], clean_loss.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(out["adv_loss"], adv_loss.detach(), rtol=1e-9, atol=0)
    for name, parameter in clean.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=1e-6, atol=1e-9)
    for name, parameter in adversarial.named_parameters():
        owner, _, kind = name.rpartition(".")
        if isinstance(adversarial.get_submodule(owner), _BatchNorm):
            twin = model.get_parameter(f"{owner}.adversarial.{kind}")
            torch.testing.assert_close(twin.grad, parameter.grad, rtol=1e-6, atol=1e-9)
    strip_adversarial_bn(model)
    assert set(model.state_dict()) == keys
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, clean.state_dict()[name], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, attack_bn",
    [
        ("tsm_resnet18", "batch"),
        ("gst_resnet18", "frozen"),
        ("tam_resnet18", "frozen"),
        ("tpn_resnet18", "batch"),
    ],
)
def test_compiled_step_equals_eager(name, attack_bn, generator, monkeypatch):
    """One graph for the clean forward, one for the adversarial one whatever the number of clips in it.

    The graphs run as they are: Inductor would take minutes for five families, and tests/test_step.py has it.
    """
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    model, x = make(name, generator, batch=4)
    labels = torch.tensor([1, 3, 0, 2])
    eager = copy.deepcopy(model)
    augment = TemporalAugment(label="true", attack_bn=attack_bn)
    steps = [
        TAFStep(add_adversarial_bn(m), augment, composition="all", compile=compiled)
        for m, compiled in ((model, True), (eager, False))
    ]
    for size in (4, 3, 2):
        outs = [step.accumulate_grads(x[:size], labels[:size]) for step in steps]
        for key in ("loss", "clean_loss", "adv_loss", "logits"):
            torch.testing.assert_close(outs[0][key], outs[1][key], rtol=1e-8, atol=1e-10)
    for (key, a), b in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9, msg=key)
    # The batch's size is dynamic from its second value on.
    assert len(graphs) <= 4
