"""Activation checkpointing as other libraries switch it on, against a literal step without any."""

import copy

import pytest
import torch
import torch.utils.checkpoint as cp
from libraries import import_timm
from literal_step import check_recorded, check_step, recorded_steps
from reference.splits import Split, SplitFrameNet, SplitVideoMAE
from reference.temporal_augment import clips_in_range
from torch import nn
from torch.distributed._composable import checkpoint
from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrapper
from torch.nn.modules.batchnorm import _BatchNorm

from taf_fast import TAFStep, TemporalAugment, adapt, add_adversarial_bn

SEGMENTS, CLASSES = 4, 5


def drawn(module, generator):
    """``module`` in float64, with norms that are not alike and logits that differ from clip to clip."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator)
            nn.init.normal_(norm.bias, 0, 0.3, generator)
            nn.init.normal_(norm.running_mean, 0, 0.1, generator)
    return module.double().train()


def freeze_norms(module):
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.eval()


@pytest.fixture
def clips(generator):
    def draw(split, size, batch=3):
        return clips_in_range(split(None), batch, SEGMENTS, size, generator)

    return draw


# timm: a network over frames.


class FrameNet(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, clips):
        return self.backbone(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
@pytest.mark.parametrize("norms_frozen", [False, True])
def test_timm(generator, clips, norms_frozen, attack_bn, form):
    narrow = dict(channels=(8, 8, 16, 16), zero_init_last=False)
    backbone = import_timm().create_model("resnet18", num_classes=CLASSES, **narrow)
    module = drawn(FrameNet(backbone), generator)
    if norms_frozen:
        freeze_norms(module)
    check_step(
        module,
        SplitFrameNet,
        # timm's checkpoints run the blocks of a stage, not the stage.
        dict(layer="backbone.layer4.1", num_segments=SEGMENTS),
        clips(SplitFrameNet, 64),
        form,
        attack_bn,
        checkpoint=lambda module: module.backbone.set_grad_checkpointing(),
    )


# MMAction2: ResNetTSM, with the modules and methods of its backbones, heads and recognizers.


def conv_module(inside, outside, size, stride=1, act=True):
    layers = nn.Sequential()
    layers.conv = nn.Conv2d(inside, outside, size, stride, size // 2, bias=False)
    layers.bn = nn.BatchNorm2d(outside)
    if act:
        layers.activate = nn.ReLU(inplace=True)
    return layers


class TemporalShift(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        n, c, h, w = x.size()
        x = x.view(-1, SEGMENTS, c, h * w)
        left, mid, right = x[:, :, : c // 8], x[:, :, c // 8 : c // 4], x[:, :, c // 4 :]
        blank = torch.zeros_like(left[:, :1])
        left = torch.cat((left[:, 1:], blank), 1)
        mid = torch.cat((torch.zeros_like(mid[:, :1]), mid[:, :-1]), 1)
        return self.net(torch.cat((left, mid, right), 2).view(n, c, h, w))


class BasicBlock(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = conv_module(inside, outside, 3, stride)
        self.conv1.conv = TemporalShift(self.conv1.conv)
        self.conv2 = conv_module(outside, outside, 3, act=False)
        self.downsample = conv_module(inside, outside, 1, stride, act=False) if stride > 1 else None
        self.relu = nn.ReLU(inplace=True)
        self.with_cp = False

    def forward(self, x):
        def _inner_forward(x):
            identity = x
            out = self.conv2(self.conv1(x))
            if self.downsample is not None:
                identity = self.downsample(x)
            return out + identity

        out = cp.checkpoint(_inner_forward, x) if self.with_cp and x.requires_grad else _inner_forward(x)
        return self.relu(out)


def resnet_tsm():
    base = pytest.importorskip("mmengine.model")

    class ResNetTSM(base.BaseModule):
        def __init__(self):
            super().__init__()
            self.conv1 = conv_module(3, 8, 7, 2)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            self.layer1 = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 8, 1))
            self.layer2 = nn.Sequential(BasicBlock(8, 16, 2), BasicBlock(16, 16, 1))

        def forward(self, x):
            return self.layer2(self.layer1(self.maxpool(self.conv1(x))))

    class TSMHead(base.BaseModule):
        def __init__(self):
            super().__init__()
            self.fc_cls = nn.Linear(16, CLASSES)

        def forward(self, x, num_segs):
            score = self.fc_cls(x.mean((2, 3)))
            return score.view((-1, num_segs) + score.shape[1:]).mean(1)

    class Recognizer2D(base.BaseModel):
        def __init__(self):
            super().__init__()
            self.backbone, self.cls_head = ResNetTSM(), TSMHead()

        def extract_feat(self, inputs, stage="neck"):
            num_segs = inputs.shape[1]
            x = self.backbone(inputs.view((-1, *inputs.shape[2:])))
            return (self.cls_head(x, num_segs) if stage == "head" else x), {}

        def forward(self, inputs, data_samples=None, mode="tensor", **kwargs):
            assert mode == "tensor"
            return self.extract_feat(inputs, **kwargs)[0]

    return Recognizer2D()


class SplitRecognizer(Split):
    def features(self, clips):
        return self.module.backbone(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])

    def head(self, features):
        return self.module.cls_head.fc_cls(features.mean((3, 4))).mean(1)


RECOGNIZER = dict(
    layer="backbone.layer2", num_segments=SEGMENTS, call=lambda module, clips: module(clips, stage="head")
)


def with_cp(module):
    for block in module.modules():
        if isinstance(block, BasicBlock):
            block.with_cp = True


def wrapped(**options):
    def checkpoint(module):
        wrapper.apply_activation_checkpointing(
            module, lambda m: wrapper.checkpoint_wrapper(m, **options), lambda m: isinstance(m, BasicBlock)
        )

    return checkpoint


def composable(module):
    for block in module.modules():
        if isinstance(block, BasicBlock):
            checkpoint(block)


CHECKPOINTS = {
    "with_cp": with_cp,
    "wrapper": wrapped(checkpoint_impl=wrapper.CheckpointImpl.NO_REENTRANT),
    "reentrant wrapper": wrapped(checkpoint_impl=wrapper.CheckpointImpl.REENTRANT),
    "composable": composable,
}


@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
@pytest.mark.parametrize("norms_frozen, attack_bn", [(False, "frozen"), (False, "batch"), (True, "frozen")])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_mmaction2(generator, clips, name, norms_frozen, attack_bn, form):
    module = drawn(resnet_tsm(), generator)
    if norms_frozen:
        freeze_norms(module)
    x = clips(SplitRecognizer, 32)
    check_step(module, SplitRecognizer, RECOGNIZER, x, form, attack_bn, checkpoint=CHECKPOINTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}])
def test_transformers_trainer_with_gradient_checkpointing(monkeypatch, tmp_path, options):
    """The Trainer has the classifier, and its loss is the step's."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            out = step(inputs["pixel_values"], inputs["labels"])
            return (out["loss"], out) if return_outputs else out["loss"]

    with recorded_steps(monkeypatch) as steps:
        config = transformers.VideoMAEConfig(
            image_size=16,
            patch_size=8,
            num_frames=SEGMENTS,
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=4,
        )
        classifier = transformers.VideoMAEForVideoClassification(config)
        reference = SplitVideoMAE(copy.deepcopy(classifier).train())
        layer = dict(layer="videomae.encoder.layer.0", layout="[B,T/2*n,C]", num_segments=SEGMENTS)
        model = add_adversarial_bn(adapt(classifier, mean=reference.mean, std=reference.std, **layer))
        step = TAFStep(model, TemporalAugment(num_frames=2), compile=False)
        clips = clips_in_range(reference, 8, SEGMENTS, 16, None)
        data = [{"pixel_values": clip, "labels": index % 4} for index, clip in enumerate(clips)]
        arguments = transformers.TrainingArguments(
            "output",
            max_steps=2,
            per_device_train_batch_size=4,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=True,
            **options,
        )
        Trainer(classifier, arguments, train_dataset=data).train()
    assert classifier.is_gradient_checkpointing and len(steps) == 2
    # A frame of the features is two of the clip. The Trainer clips gradients.
    assert any([check_recorded(step, reference, "module.", num_frames=1, max_norm=1.0) for step in steps])
