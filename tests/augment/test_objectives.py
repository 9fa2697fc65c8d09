"""An objective of a third party, through every way to the pixels' gradient."""

import copy

import pytest
import torch
from torch import nn

from taf_fast import TAFStep, add_adversarial_bn
from taf_fast.augment import Objective, ObjectiveValue, SignAttack

T = 4


class Net(nn.Module):
    """Two parts that the attack can replay; with ``replayable`` False, a trunk that it cannot."""

    def __init__(self, replayable: bool):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Identity() if replayable else nn.Softplus(),
        )
        self.fc = nn.Linear(6, 5)

    def features(self, clips):
        return self.trunk(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])

    def head(self, features):
        return self.fc(features.mean((1, 3, 4)))

    def forward(self, clips):
        return self.head(self.features(clips))


class Spread(Objective):
    """The variance of the mean activation over frames; the first frame alone may move."""

    def __call__(self, features, logits, targets, rows):
        activation = rows.of(features).mean((2, 3, 4))
        first = torch.zeros(len(activation), 1, dtype=torch.int64)
        return ObjectiveValue(activation.var(1) + rows.of(logits)[:, 0], first)


def textbook(net, x, clips, steps, step_size, epsilon, batch):
    """The attack on the rows ``clips`` of ``x``, by autograd through the whole network."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        conv = net.trunk[0](x.flatten(0, 1))
    mean, variance = conv.mean((0, 2, 3)), conv.var((0, 2, 3), unbiased=False)
    perturbed = x.clone()
    for _ in range(steps):
        at = perturbed.clone().requires_grad_()
        if batch:
            features = net.features(at)
        else:
            norm = net.trunk[1]
            y = net.trunk[0](at.flatten(0, 1))
            y = (y - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
            features = net.trunk[3](torch.relu(y)).unflatten(0, at.shape[:2])
        logits = net.fc(features.mean((1, 3, 4)))
        value = features.mean((2, 3, 4)).var(1) + logits[:, 0]
        (gradient,) = torch.autograd.grad(value[clips].sum(), at)
        move = step_size * gradient.sign()
        move[:, 1:] = 0
        moved = (perturbed + move).clamp(x - epsilon, x + epsilon).clamp(0, 1)
        perturbed[clips] = moved[clips]
    return perturbed[clips]


@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
@pytest.mark.parametrize("replayable", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_objective_of_a_third_party(generator, seed, replayable, attack_bn, steps):
    torch.manual_seed(seed)
    net = Net(replayable).double()
    x = torch.rand(4, T, 3, 9, 9, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3])
    attack = SignAttack(Spread(), epsilon=0.1, step_size=0.04, steps=steps, attack_bn=attack_bn)
    expected = textbook(net, x, [0, 1, 2, 3], steps, 0.04, 0.1, attack_bn == "batch")
    torch.testing.assert_close(attack(net, x, labels), expected, rtol=0, atol=1e-12)
    assert not torch.equal(expected, x)


@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
def test_in_a_step_that_attacks_some_clips(generator, seed, attack_bn):
    torch.manual_seed(seed)
    net = add_adversarial_bn(Net(True).double())
    x = torch.rand(4, T, 3, 9, 9, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3])
    attack = SignAttack(Spread(), epsilon=0.1, step_size=0.04, attack_bn=attack_bn)
    seen = []
    net.trunk[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    chosen = torch.tensor([False, True, False, True])
    step = TAFStep(net, attack, composition=lambda logits, labels: chosen, compile=False)
    out = step(x, labels)
    attacked = seen[-1].unflatten(0, (2, T))  # the last forward is the adversarial one
    expected = textbook(net, x, [1, 3], 1, 0.04, 0.1, attack_bn == "batch")
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-12)
    assert out["attacked"] == 2
