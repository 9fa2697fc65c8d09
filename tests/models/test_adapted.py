"""Models that are not ours: any module with a layer that keeps the frames apart."""

import copy
import functools
import weakref
from types import SimpleNamespace

import pytest
import torch
from reference.temporal_augment import Net, clips_in_range
from torch import nn

from taf_fast import TAFStep, TemporalAugment, adapt, add_adversarial_bn


class Foreign(nn.Module):
    """``Net`` without ``features`` and ``head``, with its last stage as a separate module."""

    class Stage(nn.Module):
        def __init__(self, net, three_dimensional):
            super().__init__()
            self.net, self.three_dimensional = net, three_dimensional

        def forward(self, clips):
            features = self.net.features(clips)
            return features.transpose(1, 2) if self.three_dimensional else features.flatten(0, 1)

    def __init__(self, net, three_dimensional=False, in_object=False):
        super().__init__()
        self.stage, self.in_object = self.Stage(net, three_dimensional), in_object
        self.mean, self.std = net.mean, net.std

    def forward(self, clips):
        features = self.stage(clips)
        if self.stage.three_dimensional:
            features = features.transpose(1, 2)
        else:
            features = features.unflatten(0, clips.shape[:2])
        logits = self.stage.net.head(features)
        return type("Output", (), {"logits": logits})() if self.in_object else logits


def make(generator, **options):
    torch.manual_seed(generator.initial_seed())
    net = Net(segments=4).double()
    x = clips_in_range(net, 4, 4, 9, generator)
    return net, Foreign(net, **options), x, torch.randint(0, 5, (4,), generator=generator)


@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
@pytest.mark.parametrize("options", [{}, {"three_dimensional": True}, {"in_object": True}], ids=str)
def test_same_as_features_and_head(generator, options, attack_bn):
    net, foreign, x, labels = make(generator, **options)
    augment = TemporalAugment(steps=2, num_frames=2, label="true", attack_bn=attack_bn)
    expected = augment(net, x, labels)
    adapted = adapt(foreign, layer="stage", num_segments=4)
    torch.testing.assert_close(augment(adapted, x, labels), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(adapted.features(x), net.features(x))
    torch.testing.assert_close(adapted(x), net(x))
    assert not foreign.stage._forward_hooks


def test_step(generator):
    net, foreign, x, labels = make(generator)
    adapted = add_adversarial_bn(adapt(foreign, layer="stage", num_segments=4))
    out = TAFStep(adapted, TemporalAugment(label="true"), composition="all", compile=False)(x, labels)
    out["loss"].backward()
    assert out["attacked"] == 4 and net.conv1.weight.grad.abs().sum() > 0


def test_mean_and_std_can_be_given(generator):
    _, foreign, x, labels = make(generator)
    expected = TemporalAugment(label="true")(adapt(foreign, "stage", 4), x, labels)
    mean, std = foreign.mean.tolist(), foreign.std.tolist()
    foreign.mean = foreign.std = None
    adapted = adapt(foreign, "stage", 4, mean=mean, std=std)
    torch.testing.assert_close(TemporalAugment(label="true")(adapted, x, labels), expected)


def hand_over(layout, features, class_tokens):
    """The layer's output, written out for every layout: features [B,T,C,h,w] -> it."""
    b, t, c, h, w = features.shape
    tokens = features.flatten(3).transpose(2, 3)  # [B,T,n,C]
    match layout:
        case "[B*T,C,h,w]":
            return features.reshape(b * t, c, h, w)
        case "[B,T,C,h,w]":
            return features
        case "[B,C,T,h,w]":
            return features.transpose(1, 2)
        case "[B,T,h,w,C]":
            return features.permute(0, 1, 3, 4, 2)
        case "[B,T*n,C]":
            return tokens.reshape(b, t * h * w, c)
        case "[B,n*T,C]":
            return tokens.transpose(1, 2).reshape(b, h * w * t, c)
        case "[B,C,n*T]":
            return tokens.permute(0, 3, 2, 1).reshape(b, c, h * w * t)
        case "[B*T,n,C]":
            return tokens.reshape(b * t, h * w, c)
        case "[B,2+T*n,C]":
            return torch.cat([class_tokens, tokens.reshape(b, t * h * w, c)], 1)
        case "[B*T,2+n,C]":
            return torch.cat([class_tokens.repeat_interleave(t, 0), tokens.reshape(b * t, h * w, c)], 1)


LAYOUTS = [
    "[B*T,C,h,w]",
    "[B,T,C,h,w]",
    "[B,C,T,h,w]",
    "[B,T,h,w,C]",
    "[B,T*n,C]",
    "[B,n*T,C]",
    "[B,C,n*T]",
    "[B*T,n,C]",
    "[B,2+T*n,C]",
    "[B*T,2+n,C]",
]


@pytest.mark.parametrize("merged", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(generator, layout, batch, merged):
    """Frames are in their place, and the modules after the layer receive the layer's output."""

    class Given(nn.Module):
        def __init__(self, output):
            super().__init__()
            self.layer = nn.Identity()
            self.output = output

        def forward(self, clips):
            self.after = self.layer((self.output, "the rest"))
            return self.after[0].flatten().sum() * torch.ones(len(clips), 3)

    features = torch.randn(batch, 2, 5, 3, 3, generator=generator)
    output = hand_over(layout, features, torch.randn(batch, 2, 5, generator=generator))
    module = Given(output.requires_grad_())
    if merged > 1:
        layout = layout.replace("T", f"T/{merged}")
    model = adapt(module, "layer", 2 * merged, layout=layout)
    clips = torch.zeros(batch, 2 * merged, 3, 4, 4)
    handed_out, logits = model.features_and_logits(clips)
    assert torch.equal(handed_out, features.repeat_interleave(merged, 1))
    torch.testing.assert_close(module.after[0], output)
    assert module.after[0].shape == output.shape and module.after[1] == "the rest"
    # The logits depend only on the features and the class tokens.
    (gradient,) = torch.autograd.grad(logits[0, 0], handed_out, retain_graph=True)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / merged))
    (gradient,) = torch.autograd.grad(logits[0, 0], output)
    assert torch.equal(gradient, torch.ones_like(gradient))


def test_an_output_that_is_written_into_afterwards(generator):
    """As a shortcut is added to the last batch norm of a block, or a ReLU in place."""
    net, foreign, x, labels = make(generator)
    expected = TemporalAugment(label="true")(net, x, labels)

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.foreign, self.scale = foreign, nn.Identity()
            self.mean, self.std = net.mean, net.std

        def forward(self, clips):
            features = self.scale(self.foreign.stage(clips))
            head = self.foreign.stage.net.head
            features += 1
            return head((features - 1).unflatten(0, clips.shape[:2]))

    actual = TemporalAugment(label="true")(adapt(InPlace(), "scale", 4), x, labels)
    assert ((actual - expected).abs() < 1e-12).double().mean() > 0.999


def test_nothing_of_a_forward_stays_alive(generator):
    _, foreign, x, _ = make(generator)
    model = adapt(foreign, "stage", 4)
    features, logits = model.features_and_logits(x)
    seen = [weakref.ref(features), weakref.ref(logits)]
    del features, logits
    assert [ref() for ref in seen] == [None, None]
    foreign.stage.net.fc.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model.features_and_logits(x)
    assert not foreign.stage._forward_hooks


def test_copies_and_states(generator):
    _, foreign, x, labels = make(generator)
    names = list(foreign.state_dict())
    model = adapt(foreign, "stage", 4)
    TemporalAugment()(model, x, labels)
    twin = copy.deepcopy(model)
    twin.module.stage.net.fc.weight.data.zero_()
    assert not torch.equal(twin(x), model(x))
    augment = TemporalAugment(label="true")
    torch.testing.assert_close(augment(copy.deepcopy(model), x, labels), augment(model, x, labels))
    assert list(foreign.state_dict()) == names
    assert list(model.state_dict()) == [f"module.{name}" for name in names]


@pytest.mark.slow
def test_compiled_where_the_model_breaks_the_graph(generator, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    _, foreign, x, labels = make(generator)
    forward = foreign.stage.forward

    def breaking(clips):
        features = forward(clips)
        torch._dynamo.graph_break()
        return features * 1

    foreign.stage.forward = breaking
    model = add_adversarial_bn(adapt(foreign, "stage", 4))
    twin = copy.deepcopy(model)
    steps = [
        TAFStep(m, TemporalAugment(label="true"), composition="all", compile=c)
        for m, c in ((model, True), (twin, False))
    ]
    for _ in range(3):
        a, b = (step.accumulate_grads(x, labels) for step in steps)
        torch.testing.assert_close(a["clean_loss"], b["clean_loss"])
        torch.testing.assert_close(a["adv_loss"], b["adv_loss"], rtol=1e-2, atol=1e-4)


def test_errors(generator):
    _, foreign, x, labels = make(generator)
    with pytest.raises(ValueError, match="no layer 'layer4', expected a dotted name below one of: stage"):
        adapt(foreign, "layer4", 4)
    with pytest.raises(ValueError, match="num_segments must be at least 1"):
        adapt(foreign, "stage", 0)
    with pytest.raises(ValueError, match=r"T=3, as given to taf_fast\.adapt, got \[4, 4, 3, 9, 9\]"):
        TemporalAugment()(adapt(foreign, "stage", 3), x, labels)
    with pytest.raises(ValueError, match="with B at least 1"):
        adapt(foreign, "stage", 4).features(x[:0])
    foreign.unused = nn.Identity()
    with pytest.raises(ValueError, match="layer 'unused' ran 0 times in one forward, expected once"):
        TemporalAugment()(adapt(foreign, "unused", 4), x, labels)
    foreign.in_object, foreign.stage.net.fc = False, nn.Identity()
    foreign.stage.net.head = lambda features: features
    with pytest.raises(
        ValueError, match=r"returned \[4, 4, 6, 5, 5\], expected logits \[B,classes\] with B=4"
    ):
        TemporalAugment()(adapt(foreign, "stage", 4), x, labels)


def test_errors_of_layouts(generator):
    class Given(nn.Module):
        def __init__(self, output):
            super().__init__()
            self.layer, self.aside, self.output = nn.Identity(), nn.Linear(1, 1), output

        def forward(self, clips):
            self.layer(self.output)
            return self.aside(torch.ones(len(clips), 1)).expand(-1, 3)

    clips, labels = torch.rand(2, 4, 3, 8, 8), torch.tensor([0, 1])

    def features(output, **options):
        return adapt(Given(output), "layer", 4, **options).features(clips)

    # No frame axis, one frame, other frames than the clip's, class tokens, and frames in the batch.
    for shape in ([2, 7], [2, 7, 5, 5], [2, 7, 1, 5, 5], [2, 7, 2, 5, 5], [2, 21, 7], [8, 5, 7]):
        with pytest.raises(
            ValueError,
            match=r"layer 'layer' returned \["
            + ", ".join(map(str, shape))
            + r"\], expected \[B\*T,C,h,w\] or \[B,C,T,h,w\] or "
            r"\[B,T,C,h,w\] or \[B,T\*n,C\] with B=2 and T=4: name a layer that keeps the frames apart",
        ):
            features(torch.randn(shape))
    with pytest.raises(ValueError, match=r"returned \[2, 21, 7\], expected \[B,T\*n,C\] with B=2 and T=4"):
        features(torch.randn(2, 21, 7), layout="[B,T*n,C]")
    with pytest.raises(ValueError, match=r"returned \[2, 20, 7\], expected \[B,1\+T\*n,C\]"):
        features(torch.randn(2, 20, 7), layout="[B,1+T*n,C]")
    with pytest.raises(ValueError, match=r"returned \[2, 1, 7\], expected \[B,1\+T\*n,C\]"):
        features(torch.randn(2, 1, 7), layout="[B,1+T*n,C]")
    tokens = torch.randn(2, 20, 7)
    assert torch.equal(features(tokens), features(tokens, layout="[B,T*n,C]"))
    tubelets = Given(tokens)
    for size in (2, [2, 16, 16]):
        tubelets.config = SimpleNamespace(tubelet_size=size)
        with pytest.raises(ValueError, match=r"returned \[2, 20, 7\], expected \[B\*T,C,h,w\]"):
            adapt(tubelets, "layer", 4).features(clips)
    with pytest.raises(ValueError, match=r"\[2, 4, 4, 5, 5\], which fits \[B,C,T,h,w\] and \[B,T,C,h,w\]"):
        features(torch.randn(2, 4, 4, 5, 5))
    assert features(torch.randn(2, 4, 4, 5, 5), layout="[B,C,T,h,w]").shape == (2, 4, 4, 5, 5)
    for output in ({"x": torch.zeros(8, 2, 3, 3)}, (None, 1), ()):
        with pytest.raises(
            ValueError, match=f"returned {type(output).__name__}, expected a tensor, or a tuple"
        ):
            features(output)
    for layout in (
        "",
        "[B,T,C]",
        "[B,T,C,h,n]",
        "[B,T,T,C,n]",
        "[B,1+C,T*n]",
        "[B,T,C,h*w]",
        "[B,T/0,C,h,w]",
    ):
        with pytest.raises(ValueError, match=r"layout .* cannot be read, expected B, T"):
            features(torch.randn(2, 4, 4, 5, 5), layout=layout)
    for layout in ("[B,C,T/3,h,w]", "[B,C,T/4,h,w]", "[B,C,T/8,h,w]"):
        with pytest.raises(ValueError, match=r"leaves at least 2 frames to choose from, got 4"):
            features(torch.randn(2, 7, 1, 5, 5), layout=layout)
    with pytest.raises(ValueError, match="the logits do not depend on layer 'layer'"):
        TemporalAugment(label="true")(
            adapt(Given(torch.randn(8, 5, 2, 2, requires_grad=True)), "layer", 4), clips, labels
        )
    with pytest.raises(ValueError, match=r"returned tuple, expected logits .*call=\.\.\. says how"):
        adapt(Given(torch.randn(8, 5, 2, 2)), "layer", 4, call=lambda module, x: (x, x))(clips)
