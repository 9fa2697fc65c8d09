"""TSM against a functional re-statement, and the facts its official checkpoints rely on."""

import pytest
import torch
import torch.nn.functional as F

from taf_fast import models


def reference_logits(state, x, segments, bottleneck):
    """TSM-ResNet in eval mode, straight from its state dict."""

    def norm(x, name):
        return F.batch_norm(
            x, *(state[f"backbone.{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        )

    def shift(x):
        video = x.reshape(-1, segments, *x.shape[1:])
        fold = video.shape[2] // 8
        out = torch.zeros_like(video)
        out[:, :-1, :fold] = video[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = video[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = video[:, :, 2 * fold :]
        return out.reshape(x.shape)

    def conv(x, name, stride=1):
        weight = state[f"backbone.{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.relu(norm(conv(x.flatten(0, 1), "conv1", 2), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3) if bottleneck else (2, 2, 2, 2), 1):
        for index in range(blocks):
            name, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            strides = (1, stride, 1) if bottleneck else (stride, 1)
            y = shift(x)
            for i, s in enumerate(strides, 1):
                y = norm(conv(y, f"{name}.conv{i}", s), f"{name}.bn{i}")
                y = F.relu(y) if i < len(strides) else y
            if f"backbone.{name}.downsample.0.weight" in state:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = F.relu(x + y)
    pooled = x.mean((2, 3)).reshape(-1, segments, x.shape[1])
    return (pooled @ state["fc.weight"].T + state["fc.bias"]).mean(1)


@pytest.mark.slow
@pytest.mark.parametrize("name, segments", [("tsm_resnet18", 8), ("tsm_resnet18", 1), ("tsm_resnet50", 3)])
def test_logits(name, segments, seed):
    torch.manual_seed(seed)
    model = models.build(name, 7, segments).double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    model.eval()
    x = torch.randn(2, segments, 3, 48, 40, dtype=torch.float64)
    expected = reference_logits(model.state_dict(), x, segments, name.endswith("50"))
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-12)
    features = model.features(x)
    assert features.shape == (2, segments, model.fc.in_features, 2, 2) and features.min() >= 0
    torch.testing.assert_close(model.head(features), expected, rtol=1e-9, atol=1e-12)


def test_size_of_the_published_model():
    """23,864,558 parameters with 174 classes, 53 batch norms."""
    model = models.build("tsm_resnet50", 174)
    assert sum(p.numel() for p in model.parameters()) == 23_864_558
    assert sum(p.numel() for p in models.build("tsm_resnet50", 48).parameters()) == 23_606_384
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) == 53
    assert model.dropout.p == 0.5 and "mean" not in model.state_dict()


def test_keys_are_torchvision_s():
    keys = set(models.build("tsm_resnet50", 5).state_dict())
    for key in ("conv1.weight", "bn1.running_var", "layer1.0.conv3.weight", "layer4.0.downsample.1.bias"):
        assert f"backbone.{key}" in keys
    assert {"fc.weight", "fc.bias"} <= keys
    assert all(key.startswith(("backbone.", "fc.")) for key in keys)


def test_errors():
    with pytest.raises(ValueError, match="unknown model 'tsn', expected one of tsm_resnet18, tsm_resnet50"):
        models.build("tsn", 5)
    with pytest.raises(ValueError, match="at least 1"):
        models.build("tsm_resnet18", 0)
    with pytest.raises(ValueError, match=r"\[B,4,3,H,W\], got \[2, 3, 3, 32, 32\]"):
        models.build("tsm_resnet18", 5, 4)(torch.zeros(2, 3, 3, 32, 32))
