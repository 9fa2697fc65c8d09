"""Models that are not ours: any module with a layer that keeps the frames apart."""

import pytest
import torch
from reference.temporal_augment import Net, clips_in_range
from torch import nn

from taf_fast import TAFStep, TemporalAugment, adapt, add_adversarial_bn


class Foreign(nn.Module):
    """``Net`` without ``features`` and ``head``, its last stage a module of its own."""

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


def test_errors(generator):
    _, foreign, x, labels = make(generator)
    with pytest.raises(ValueError, match="no layer 'layer4', expected a dotted name below one of: stage"):
        adapt(foreign, "layer4", 4)
    with pytest.raises(ValueError, match="num_segments must be at least 1"):
        adapt(foreign, "stage", 0)
    with pytest.raises(
        ValueError, match=r"layer 'stage.net.fc' returned \[4, 4, 5\], expected \[B\*T,C,h,w\]"
    ):
        TemporalAugment()(adapt(foreign, "stage.net.fc", 4), x, labels)
    with pytest.raises(ValueError, match=r"expected \[B\*T,C,h,w\] = \[12,C,h,w\]"):
        TemporalAugment()(adapt(foreign, "stage", 3), x, labels)
    foreign.unused = nn.Identity()
    with pytest.raises(ValueError, match="layer 'unused' ran 0 times in one forward, expected once"):
        TemporalAugment()(adapt(foreign, "unused", 4), x, labels)
    foreign.in_object, foreign.stage.net.fc = False, nn.Identity()
    foreign.stage.net.head = lambda features: features
    with pytest.raises(ValueError, match=r"expected logits \[B,classes\]"):
        TemporalAugment()(adapt(foreign, "stage", 4), x, labels)
