"""TAFStep, in a training loop too, against the literal step on a copy of its module, split by hand."""

import copy
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from reference.step import share_all_but_batch_norm, taf_losses
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from taf_fast import TAFStep, TemporalAugment, adapt, add_adversarial_bn

ATTACK = dict(epsilon=64 / 255, step_size=32 / 255, steps=1, denominator="range")


def labels_with(predicted, classes, correct):
    """Labels [B], of which only those at the indices ``correct`` are what is ``predicted``."""
    labels = (predicted + 1) % classes
    labels[correct] = predicted[correct]
    return labels


def check_step(
    module, split, options, x, form, attack_bn="frozen", checkpoint=None, merged=1, num_frames=2, step_of=None
):
    """Losses, gradients and running statistics of both paths, in float64.

    Args:
        module: float64, its norms in their modes; taken apart.
        split: module -> ``features`` and ``head``, with ``mean`` and ``std``: the reference.
        options: of ``adapt``.
        x: clips [B,T,3,H,W], of which all but the first are attacked.
        form: ``"forward"`` or ``"accumulate_grads"``.
        checkpoint: module -> None, turns activation checkpointing on. The literal step runs without.
        merged: clip frames per frame of the features.
        step_of: makes what is called of the step.
    """
    reference = split(copy.deepcopy(module))
    adversarial = copy.deepcopy(reference)
    share_all_but_batch_norm(reference, adversarial)
    logits = copy.deepcopy(reference)(x)
    labels = labels_with(logits.argmax(1), logits.shape[1], [0])
    start = {name: value.clone() for name, value in reference.module.named_buffers()}
    training = any(m.training for m in module.modules() if isinstance(m, _BatchNorm))
    loss, _, _, certain = taf_losses(
        reference,
        adversarial,
        x,
        labels,
        labels,
        range(1, len(x)),
        0.7,
        **ATTACK,
        num_frames=num_frames // merged,
        attack_bn=attack_bn if training else "batch",  # the reference's "frozen" is for train mode
    )
    assert certain.all()
    loss.backward()

    if checkpoint is not None:
        checkpoint(module)
    model = add_adversarial_bn(adapt(module, **dict(mean=reference.mean, std=reference.std) | options))
    augment = TemporalAugment(**ATTACK, num_frames=num_frames, attack_bn=attack_bn, label="true")
    step = TAFStep(model, augment, 0.7, compile=False)
    if step_of is not None:
        step = step_of(step)
    if form == "forward":
        out = step(x, labels)
        out["loss"].backward()
    else:
        out = getattr(step, form)(x, labels)
    assert out["attacked"] == len(x) - 1
    torch.testing.assert_close(out["loss"].detach(), loss.detach(), rtol=1e-10, atol=0)

    pairs = [("", reference.module, module)]
    for name, norm in adversarial.module.named_modules():
        if isinstance(norm, _BatchNorm):
            pairs.append((f"{name}.", norm, module.get_submodule(name).adversarial))
    for prefix, expected, actual in pairs:
        for name, parameter in expected.named_parameters():
            check_gradient(actual.get_parameter(name).grad, parameter.grad)
        for name, buffer in expected.named_buffers():
            before = start[prefix + name]
            if buffer.is_floating_point() and not torch.equal(buffer, before):
                check_statistics(actual, name, buffer, before)


def check_gradient(actual, expected):
    if expected is None:
        assert actual is None
    else:
        atol = 1e-10 * expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=max(atol, 1e-14))


def check_statistics(module, name, expected, start):
    """A norm that runs again in the backward also updates its running statistics again, as without TAF."""
    norm = module.get_submodule(name.rpartition(".")[0])
    updates = norm.num_batches_tracked.item()
    assert updates in (1, 2)
    of_batch = (expected - (1 - norm.momentum) * start) / norm.momentum
    kept = (1 - norm.momentum) ** updates
    actual = module.get_buffer(name)
    torch.testing.assert_close(actual, kept * start + (1 - kept) * of_batch, rtol=1e-8, atol=1e-10)


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


@contextmanager
def recorded_steps(monkeypatch):
    """What the steps of a training loop see, and the gradients that its optimiser gets. It runs in float64,
    which autocast leaves alone."""
    recorded = []

    def before_step(module, args):
        if isinstance(module, TAFStep):
            state = {name: whole(value) for name, value in module.model.state_dict().items()}
            parameters = dict(module.model.named_parameters())
            recorded.append({"state": state, "batch": args, "parameters": parameters})

    def after_optimizer(optimizer, args, kwargs):
        parameters = recorded[-1].pop("parameters")
        recorded[-1]["gradients"] = {
            name: None if p.grad is None else whole(p.grad) for name, p in parameters.items()
        }

    attack_labels = TemporalAugment.attack_labels

    def seen_labels(self, *args):
        recorded[-1]["targets"] = attack_labels(self, *args)
        return recorded[-1]["targets"]

    monkeypatch.setattr(TemporalAugment, "attack_labels", seen_labels)
    torch.set_default_dtype(torch.float64)
    hooks = [
        register_module_forward_pre_hook(before_step),
        register_optimizer_step_post_hook(after_optimizer),
    ]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
        torch.set_default_dtype(torch.float32)


def check_recorded(step, reference, prefix="", num_frames=4, max_norm=None):
    """Compare the gradients of one recorded step with those of the literal step of ``reference``, whose keys
    ``prefix`` precedes in the loop. -> the number of attacked clips."""
    state = {name.removeprefix(prefix): value for name, value in step["state"].items()}
    reference, adversarial = copy.deepcopy(reference), copy.deepcopy(reference)
    twins = {k.replace(".adversarial.", "."): v for k, v in state.items() if ".adversarial." in k}
    reference.module.load_state_dict({k: v for k, v in state.items() if ".adversarial." not in k})
    adversarial.module.load_state_dict(twins, strict=False)
    share_all_but_batch_norm(reference, adversarial)
    x, labels = step["batch"]
    if x.dtype == torch.uint8:
        mean, std = (v.view(3, 1, 1) for v in (reference.mean, reference.std))
        x = (x.movedim(-1, -3) / 255 - mean) / std
    rows = (copy.deepcopy(reference)(x).argmax(1) != labels).nonzero().flatten().tolist()
    attack = dict(epsilon=64 / 255, step_size=32 / 255, steps=1, denominator="max", attack_bn="frozen")
    if rows:
        loss, *_ = taf_losses(
            reference, adversarial, x, labels, step["targets"], rows, 0.7, num_frames=num_frames, **attack
        )
        loss.backward()
    else:
        (0.7 * F.cross_entropy(reference(x), labels)).backward()
    expected = {}
    for name in step["gradients"]:
        own = name.removeprefix(prefix)
        model = adversarial if ".adversarial." in own else reference
        expected[name] = model.module.get_parameter(own.replace(".adversarial.", "."))
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(expected.values(), max_norm)
    for name, gradient in step["gradients"].items():
        check_gradient(gradient, expected[name].grad)
    return len(rows)
