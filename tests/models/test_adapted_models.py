"""Adapted models of other libraries' kinds, against references that split them by hand, in float64."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from literal_step import check_step
from reference.splits import Split, SplitVideoMAE
from reference.step import share_all_but_batch_norm, taf_losses
from reference.temporal_augment import attack, cam, clips_in_range, input_gradient, least_attention_loss
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from taf_fast import TAFStep, TemporalAugment, adapt, add_adversarial_bn

SIZE, CLASSES = 16, 5
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


# MMAction2: the recognizers' signatures and shapes, with a backbone and a head of each kind.


class Recognizer(nn.Module):
    def __init__(self, backbone, cls_head):
        super().__init__()
        self.backbone, self.cls_head = backbone, cls_head

    def forward(self, inputs, data_samples=None, mode="tensor", **kwargs):
        if mode != "tensor":
            raise RuntimeError(f'Invalid mode "{mode}"')
        return self.extract_feat(inputs, **{"stage": "backbone"} | kwargs)[0]

    def extract_feat(self, inputs, stage="neck"):
        num_segs = inputs.shape[1]
        x = self.backbone(inputs.view((-1, *inputs.shape[2:])))
        if stage == "head":
            x = self.cls_head(x, **self.head_kwargs(num_segs))
        return x, self.head_kwargs(num_segs)


class Recognizer2D(Recognizer):
    def head_kwargs(self, num_segs):
        return {"num_segs": num_segs}


class Recognizer3D(Recognizer):
    def head_kwargs(self, num_segs):
        return {}


class Backbone2D(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.layer4(self.conv1(x)))  # writes into the output of layer4


class Head2D(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc_cls = nn.Linear(8, CLASSES)

    def forward(self, x, num_segs):
        score = self.fc_cls(x.mean((2, 3)))
        return score.view((-1, num_segs) + score.shape[1:]).mean(1)


class SplitRecognizer2D(Split):
    def features(self, clips):
        backbone = self.module.backbone
        return backbone.layer4(backbone.conv1(clips.flatten(0, 1))).unflatten(0, clips.shape[:2])

    def head(self, features):
        return self.module.cls_head.fc_cls(features.relu().mean((3, 4))).mean(1)


class Block3D(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm3d(outside)
        self.conv2, self.bn2 = nn.Conv3d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm3d(outside)
        self.shortcut = nn.Sequential(
            nn.Conv3d(inside, outside, 1, stride, bias=False), nn.BatchNorm3d(outside)
        )

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        out += self.shortcut(x)
        return out.relu_()


class ResNet3D(nn.Module):
    """[B,3,T,H,W] -> [B,classes]; ``layer2`` halves the frames."""

    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = Block3D(3, 5, (1, 2, 2)), Block3D(5, 6, (2, 2, 2))
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3, 4)))


class SplitResNet3D(Split):
    def features(self, clips):
        return self.module.layer2(self.module.layer1(clips.transpose(1, 2))).transpose(1, 2)

    def head(self, features):
        return self.module.fc(features.mean((1, 3, 4)))


class Head3D(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc_cls = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.fc_cls(x.mean((2, 3, 4)))


class SplitRecognizer3D(Split):
    def features(self, clips):
        return self.module.backbone(clips.transpose(1, 2)).transpose(1, 2)

    def head(self, features):
        return self.module.cls_head.fc_cls(features.mean((1, 3, 4)))


# transformers: tiny, with random weights.


class SplitVivit(Split):
    """The class token is computed alongside the features and joins them again in ``head``."""

    def features(self, clips):
        vivit = self.module.vivit
        tokens = vivit.layers[0](vivit.embeddings(clips))
        self.class_token = tokens[:, :1]
        return tokens[:, 1:].view(len(clips), clips.shape[1] // 2, 2, 2, -1).permute(0, 1, 4, 2, 3)

    def head(self, features):
        tokens = torch.cat([self.class_token, features.permute(0, 1, 3, 4, 2).flatten(1, 3)], 1)
        with sdpa_kernel(SDPBackend.MATH):
            tokens = self.module.vivit.layers[1](tokens)
        return self.module.classifier(self.module.vivit.layernorm(tokens)[:, 0])


class SplitTimesformer(Split):
    """Here the frames of one patch are neighbours."""

    def features(self, clips):
        timesformer = self.module.timesformer
        (tokens,) = timesformer.encoder.layer[0](timesformer.embeddings(clips))
        self.class_token = tokens[:, :1]
        return tokens[:, 1:].view(len(clips), 2, 2, clips.shape[1], -1).permute(0, 3, 4, 1, 2)

    def head(self, features):
        tokens = torch.cat([self.class_token, features.permute(0, 3, 4, 1, 2).flatten(1, 3)], 1)
        (tokens,) = self.module.timesformer.encoder.layer[1](tokens)
        return self.module.classifier(self.module.timesformer.layernorm(tokens)[:, 0])


def transformer(kind, **options):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        image_size=SIZE,
        num_frames=4,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=CLASSES,
        **options,
    )
    module = getattr(transformers, f"{kind}ForVideoClassification")(config)
    for parameter in module.parameters():  # the usual start is so small that all clips look alike
        nn.init.normal_(parameter, 0, 0.3)
    return module


def videomae(**options):
    return transformer("VideoMAE", patch_size=8, tubelet_size=2, use_mean_pooling=True, **options)


def vivit(**options):
    return transformer("Vivit", tubelet_size=[2, 8, 8], **options)


def timesformer(**options):
    return transformer("Timesformer", patch_size=8, **options)


# name: (builds the module, its split, what adapt is told, clip frames per feature frame)
MODELS = {
    "mmaction2 2d": (
        lambda: Recognizer2D(Backbone2D(), Head2D()),
        SplitRecognizer2D,
        dict(layer="backbone.layer4", call=lambda module, clips: module(clips, stage="head")),
        1,
    ),
    "mmaction2 3d": (
        lambda: Recognizer3D(Block3D(3, 5, (1, 2, 2)), Head3D()),
        SplitRecognizer3D,
        dict(
            layer="backbone",
            call=lambda module, clips: module(clips.transpose(1, 2)[:, None], stage="head"),
        ),
        1,
    ),
    "resnet3d": (
        ResNet3D,
        SplitResNet3D,
        dict(
            layer="layer2",
            layout="[B,C,T/2,h,w]",
            call=lambda module, clips: module(clips.transpose(1, 2)),
        ),
        2,
    ),
    "videomae": (
        videomae,
        SplitVideoMAE,
        dict(layer="videomae.encoder.layer.0", layout="[B,T/2*n,C]"),
        2,
    ),
    "vivit": (vivit, SplitVivit, dict(layer="vivit.layers.0", layout="[B,1+T/2*n,C]"), 2),
    "timesformer": (
        timesformer,
        SplitTimesformer,
        dict(layer="timesformer.encoder.layer.0", layout="[B,1+n*T,C]"),
        1,
    ),
}


def make(name, generator, batch=4):
    """-> the module, its split (a copy), how to adapt it, clips, labels, frames merged into one."""
    torch.manual_seed(generator.initial_seed())
    build, split, options, merged = MODELS[name]
    module = build().double().train()
    x = clips_in_range(split(module), batch, 4, SIZE, generator)
    labels = torch.randint(0, CLASSES, (batch,), generator=generator)
    reference = split(copy.deepcopy(module))
    return module, reference, dict(num_segments=4, mean=MEAN, std=STD) | options, x, labels, merged


@pytest.mark.slow
@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
@pytest.mark.parametrize("name", MODELS)
def test_augmentation_equals_double_backward(generator, name, attack_bn):
    module, reference, options, x, labels, merged = make(name, generator)
    before = copy.deepcopy(module.state_dict())
    model = adapt(module, **options)
    # A merged frame's gradient is shared out among the clip's frames, a factor that Eq. 3 cancels, but for
    # "max" where the maximum is 0, as it may be behind a ReLU, and the floor takes its place. Signs of one
    # clip's gradient do not see it, those of a sum over clips do.
    denominator = "range" if merged > 1 and attack_bn == "batch" else "max"
    epsilon, step_size, steps = 64 / 255, 32 / 255, 2
    for num_frames in (4, 2):
        chosen = num_frames // merged
        expected, certain = attack(
            reference, x, labels, range(4), epsilon, step_size, steps, chosen, denominator, attack_bn
        )
        augment = TemporalAugment(
            epsilon, step_size, steps, num_frames, denominator=denominator, attack_bn=attack_bn, label="true"
        )
        actual = augment(model, x, labels)
        assert certain.double().mean() > 0.9
        assert ((actual - expected).abs() < 1e-12)[certain].double().mean() > 0.999
        assert ((actual - x).abs() > 1e-3).double().mean() > 0.2
    # The wrapped module is unchanged: its keys, its statistics, its hooks.
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_features_lie_frame_by_frame(generator, name):
    """Values and the exact Eq. 2 to 5: L_C and its gradient, in numbers."""
    module, reference, options, x, labels, merged = make(name, generator)
    model = adapt(module, **options).eval()
    reference.eval()
    features, logits = model.features_and_logits(x.requires_grad_())
    expected = reference.features(x).repeat_interleave(merged, 1)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(logits, reference.head(reference.features(x)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model(x), logits, rtol=1e-10, atol=1e-12)

    # "range", as the floor of "max" would weigh clips: see test_augmentation_equals_double_backward.
    expected_gradient, _, expected_loss = input_gradient(reference, x, labels, range(4), 2 // merged, "range")
    objective = F.cross_entropy(logits, labels, reduction="sum")
    (weights,) = torch.autograd.grad(objective, features, create_graph=True)
    loss, _ = least_attention_loss(cam(features, weights), 2, "range")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    torch.testing.assert_close(loss.detach(), expected_loss, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        gradient, expected_gradient, rtol=1e-6, atol=1e-9 * gradient.abs().max().item()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet3d", "vivit", "timesformer"])
def test_selected_frames_are_the_clips(generator, name):
    module, reference, options, x, labels, merged = make(name, generator)
    reference.eval()
    num_frames = 2
    _, chosen, _ = input_gradient(reference, x, labels, range(4), num_frames // merged, "max")
    augment = TemporalAugment(num_frames=num_frames, perturb="selected", label="true")
    moved = (augment(adapt(module, **options).eval(), x, labels) != x).flatten(2).any(2)
    for row, frames in enumerate(chosen.tolist()):
        expected = {frame * merged + i for frame in frames for i in range(merged)}
        assert set(moved[row].nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
@pytest.mark.parametrize("name", MODELS)
def test_step_equals_the_paper(generator, name, form):
    module, reference, options, x, labels, merged = make(name, generator)
    adversarial = copy.deepcopy(reference)
    share_all_but_batch_norm(reference, adversarial)
    predicted = copy.deepcopy(reference)(x).argmax(1)
    labels = torch.where(torch.arange(4) < 3, (predicted + 1) % CLASSES, predicted)
    loss, clean_loss, adv_loss, _ = taf_losses(
        reference,
        adversarial,
        x,
        labels,
        labels,
        [0, 1, 2],
        0.7,
        epsilon=64 / 255,
        step_size=32 / 255,
        steps=1,
        num_frames=4 // merged,
        denominator="max",
        attack_bn="frozen",
    )
    loss.backward()
    expected = {"loss": loss, "clean_loss": clean_loss, "adv_loss": adv_loss}

    model = add_adversarial_bn(adapt(module, **options))
    out = getattr(TAFStep(model, TemporalAugment(label="true"), compile=False), form)(x, labels)
    if form == "forward":
        out["loss"].backward()
    assert out["attacked"] == 3
    # A sign that is rounding noise may go either way, for a handful of pixels.
    for key, value in expected.items():
        torch.testing.assert_close(out[key].detach(), value.detach(), rtol=1e-3, atol=1e-6)
    for key, parameter in reference.module.named_parameters():
        ours = module.get_parameter(key).grad
        if parameter.grad is None:  # the class token's query in the last block, for one
            assert ours is None
        else:
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-2, atol=1e-4)


class SplitInBlock(Split):
    """Takes the first norm of a transformer's second block as features. Subclasses name ``blocks``."""

    def at_norm(self, answer):
        """-> what the second block returns where ``answer(output of its norm)`` is the norm's output."""
        block = self.blocks[1]
        with sdpa_kernel(SDPBackend.MATH):
            handle = block.layernorm_before.register_forward_hook(lambda _, args, output: answer(output))
            try:
                return tensor(block(self.hidden))
            finally:
                handle.remove()

    def features(self, clips):
        self.hidden = tensor(self.blocks[0](self.embedded(clips)))
        outputs = []
        self.at_norm(outputs.append)
        return self.maps(outputs[0], *clips.shape[:2])

    def head(self, features):
        return self.logits(self.at_norm(lambda output: self.tokens(features, output)))


def tensor(output):
    return output[0] if isinstance(output, tuple) else output


class VideoMAEInBlock(SplitInBlock):
    blocks = property(lambda self: self.module.videomae.encoder.layer)

    def embedded(self, clips):
        return self.module.videomae.embeddings(clips, None)

    def maps(self, tokens, batch, frames):
        return tokens.view(batch, frames // 2, 2, 2, -1).permute(0, 1, 4, 2, 3)

    def tokens(self, features, _output):
        return features.permute(0, 1, 3, 4, 2).flatten(1, 3)

    def logits(self, hidden):
        return self.module.classifier(self.module.fc_norm(hidden.mean(1)))


class VivitInBlock(SplitInBlock):
    blocks = property(lambda self: self.module.vivit.layers)

    def embedded(self, clips):
        return self.module.vivit.embeddings(clips)

    def maps(self, tokens, batch, frames):
        return tokens[:, 1:].view(batch, frames // 2, 2, 2, -1).permute(0, 1, 4, 2, 3)

    def tokens(self, features, output):
        return torch.cat([output[:, :1], features.permute(0, 1, 3, 4, 2).flatten(1, 3)], 1)

    def logits(self, hidden):
        return self.module.classifier(self.module.vivit.layernorm(hidden)[:, 0])


class TimesformerInBlock(SplitInBlock):
    """Its attention over the frames runs before this norm, within the same block."""

    blocks = property(lambda self: self.module.timesformer.encoder.layer)

    def embedded(self, clips):
        return self.module.timesformer.embeddings(clips)

    def maps(self, tokens, batch, frames):
        return tokens[:, 1:].view(batch, frames, 2, 2, -1).permute(0, 1, 4, 2, 3)

    def tokens(self, features, output):
        return torch.cat([output[:, :1], features.permute(0, 1, 3, 4, 2).reshape(len(output), 4, -1)], 1)

    def logits(self, hidden):
        return self.module.classifier(self.module.timesformer.layernorm(hidden)[:, 0])


IN_BLOCK = {
    "videomae": (VideoMAEInBlock, "videomae.encoder.layer.1.layernorm_before", "[B,T/2*n,C]"),
    "vivit": (VivitInBlock, "vivit.layers.1.layernorm_before", "[B,1+T/2*n,C]"),
    "timesformer": (TimesformerInBlock, "timesformer.encoder.layer.1.layernorm_before", "[B*T,1+n,C]"),
}


@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("in_block", [False, True])
@pytest.mark.parametrize("name", IN_BLOCK)
def test_gradient_checkpointing(generator, name, in_block, use_reentrant, form):
    """The layer of the CAM is a checkpointed block, or within one."""
    module, reference, options, x, _, merged = make(name, generator)
    split = type(reference)
    if in_block:
        split, layer, layout = IN_BLOCK[name]
        options |= dict(layer=layer, layout=layout)

    def checkpoint(module):
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})

    check_step(module, split, options, x, form, checkpoint=checkpoint, merged=merged)


def test_dropout_is_the_models_own(generator):
    torch.manual_seed(generator.initial_seed())
    module = videomae(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).train()
    model = adapt(module, "videomae.encoder.layer.0", 4, layout="[B,T/2*n,C]")
    x = torch.rand(3, 4, 3, SIZE, SIZE, generator=generator)
    torch.manual_seed(1)
    expected = module(x).logits
    torch.manual_seed(1)
    torch.testing.assert_close(model.features_and_logits(x)[1], expected)
    labels = torch.tensor([0, 1, 2])
    out = TAFStep(model, TemporalAugment(), composition="all", compile=False).accumulate_grads(x, labels)
    assert out["loss"].isfinite() and out["attacked"] == 3 and out["failed"] == 0


@pytest.mark.parametrize(
    "build, layer, layout",
    [
        (vivit, "vivit.layers.1.layernorm_before", "[B,1+T/2*n,C]"),
        (timesformer, "timesformer.encoder.layer.1.layernorm_before", "[B*T,1+n,C]"),
        (timesformer, "timesformer.encoder.layer.0.attention", "[B*T,1+n,C]"),  # returns a tuple
    ],
)
def test_layers_inside_the_last_block(generator, build, layer, layout):
    torch.manual_seed(generator.initial_seed())
    module, x = build().double(), torch.rand(2, 4, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)
    model = adapt(module, layer, 4, layout=layout)
    torch.testing.assert_close(model.features_and_logits(x)[1], module(x).logits)
    assert model.features(x).shape == (2, 4, 12, 2, 2)
    moved = TemporalAugment(label="true")(model, x, torch.tensor([0, 1]))
    assert ((moved - x).abs() > 1e-3).double().mean() > 0.5


def test_a_layer_after_which_only_the_class_token_counts(generator):
    x, labels = torch.rand(2, 4, 3, SIZE, SIZE, generator=generator), torch.tensor([0, 1])
    model = adapt(vivit(), "vivit.layers.1", 4, layout="[B,1+T/2*n,C]")
    with pytest.raises(
        ValueError,
        match=r"after layer 'vivit\.layers\.1' the logits depend on the class token alone, expected",
    ):
        TemporalAugment(label="true")(model, x, labels)
    with torch.no_grad():  # pictures of a map take gradients, plain features do not
        assert model.features(x).shape == (2, 4, 12, 2, 2)
    nn.init.zeros_(model.module.classifier.weight)  # a head may start at zero
    assert torch.isfinite(TemporalAugment(label="true")(model, x, labels)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmaction2 2d", "resnet3d", "videomae"])
def test_compiled_equals_eager_and_compiles_a_bounded_number_of_times(generator, monkeypatch, name):
    # Tracing and the split into forward and backward are in question, not the code generated after them.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module, _, options, x, _, _ = make(name, generator, batch=6)
    x = x.float()
    model = add_adversarial_bn(adapt(module.float(), **options))
    eager_model = copy.deepcopy(model)
    eager = TAFStep(eager_model, TemporalAugment(label="true"), compile=False)
    compiled = TAFStep(model, TemporalAugment(label="true"), compile=True)

    # Both attacks run eagerly, but from logits that differ in their last digits, which turn signs.
    def attack(model, x, targets, clean, rows, generator):
        chosen = rows.of(x)
        return chosen + 0.1, torch.zeros(len(chosen), dtype=torch.bool)

    eager.augment.attack = compiled.augment.attack = attack
    seen = []
    for wrong in (3, 5, 1, 2, 4, 0, 6):
        with torch.no_grad():
            predicted = copy.deepcopy(eager_model)(x).argmax(1)
        labels = torch.where(torch.arange(6) < wrong, (predicted + 1) % CLASSES, predicted)
        eager_model.zero_grad(), model.zero_grad()
        a, b = eager.accumulate_grads(x, labels), compiled.accumulate_grads(x, labels)
        assert a["attacked"] == b["attacked"] == wrong
        for key in ("loss", "clean_loss", "adv_loss", "logits"):
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4)
        for p, q in zip(eager_model.parameters(), model.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-2, atol=1e-3)
        for p, q in zip(eager_model.buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
        seen.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert seen[-1] == seen[2] <= 4
    # And with the attack itself.
    step = TAFStep(model, TemporalAugment(), composition="all", compile=True)
    assert step.accumulate_grads(x, labels)["loss"].isfinite()
