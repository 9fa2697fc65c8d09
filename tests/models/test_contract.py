"""What a model offers, seen in one place."""

import copy

import pytest
import torch
from torch import nn

from taf_fast import adapt, models
from taf_fast.models.contract import StagedView, WholeView, normalisation_of, view_of


class Parts(nn.Module):
    """Its head is a submodule, which ``isinstance`` with a protocol would not see."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def features(self, clips):
        return clips.mean((1, 3, 4))


CLIPS = torch.arange(2 * 4 * 3 * 2 * 2, dtype=torch.float32).view(2, 4, 3, 2, 2)


def test_features_and_head_are_one_stage():
    model = Parts()
    view = view_of(model)
    assert isinstance(view, StagedView)
    (features,) = view.stages(CLIPS)
    assert torch.equal(features, CLIPS.mean((1, 3, 4)))
    out = view.forward(CLIPS)
    assert torch.equal(out.logits, model.head(features)) and out.auxiliary is None
    assert torch.equal(out.stages[0], features) and not out.stages[0].requires_grad
    assert view.auxiliary_weight == 0 and view.linear_head is None


def test_stages_and_an_auxiliary_head(seed):
    torch.manual_seed(seed)
    model = models.build("tpn_resnet18", 4, 8).eval()
    view = view_of(model)
    x = torch.rand(1, 8, 3, 64, 64)
    out = view.forward(x)
    stages = model.stages(x)
    assert torch.equal(out.logits, model(x)) and torch.equal(out.auxiliary, model.auxiliary_head(*stages))
    assert [s.shape for s in out.stages] == [s.shape for s in stages] and view.auxiliary_weight == 0.5


def test_a_view_sees_a_head_that_is_put_in_later_and_follows_a_copy():
    model = Parts()
    view = view_of(model)
    model.head = nn.Linear(3, 7)
    assert view.forward(CLIPS).logits.shape == (2, 7)
    copied = copy.deepcopy(view)
    nn.init.zeros_(copied.model.head.weight)
    assert not torch.equal(copied.forward(CLIPS).logits, view.forward(CLIPS).logits)


def test_an_adapted_model_is_whole():
    module = nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(3, 5, 1), nn.ReLU())
    module.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Unflatten(0, (-1, 4)))
    model = adapt(module, "2", 4, call=lambda module, clips: module(clips).mean(1))
    view = view_of(model)
    assert isinstance(view, WholeView) and view.forward(CLIPS).stages is None
    features, logits = view.features_and_logits(CLIPS)
    assert features.shape == (2, 4, 5, 2, 2) and torch.equal(logits, model(CLIPS))


@pytest.mark.parametrize(
    "names, message",
    [
        ((), "has no .features and no .head: give it"),
        (("head",), "has no .features: give it"),
        (("features",), "has no .head: give it"),
    ],
)
def test_what_a_model_lacks_is_named(names, message):
    model = nn.Flatten()
    for name in names:
        setattr(model, name, nn.Identity())
    with pytest.raises(ValueError, match=f"Flatten {message}"):
        view_of(model).features_and_logits(CLIPS)


def test_normalisation():
    model = Parts()
    assert normalisation_of(model) is None
    model.mean = [0.5] * 3
    assert normalisation_of(model) is None
    model.std = [0.25] * 3
    assert normalisation_of(model) == ((0.5,) * 3, (0.25,) * 3)
