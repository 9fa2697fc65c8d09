"""Whether the attack sees all that it needs of a model, and whether its clips can be attacked one by one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from taf_fast.augment.batch_statistics import FreezeStatistics, RecordStatistics, Statistics
from taf_fast.augment.known import Examined, known_of
from taf_fast.augment.model_state import find_changing_state, running_statistics_untouched
from taf_fast.augment.replay import Recording
from taf_fast.models.contract import view_of
from taf_fast.models.modules import base_of

_DROPOUTS = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    torch.dropout,
}


@torch.no_grad()
def examine(model: nn.Module, x: Tensor, record: Callable[[], RecordStatistics], alone: bool) -> None:
    """Raise ValueError, if clips are attacked ``alone``, unless a clip with the batch statistics of its batch
    as constants gets the features and logits that it gets in the batch.

    It does not where a norm computes its statistics elsewhere than in ``torch.nn.functional.batch_norm``, or
    of a part of the batch, or where the model takes a second input that belongs to the batch. A model is
    examined once in each mode and for each T, by three forwards without dropout. The second, of clips that
    differ by rounding, shows how much a result says: one that is random nevertheless says nothing.

    Args:
        x: a batch [B,T,3,H,W].
        record: makes the recording of a forward.
    """
    known, frames = known_of(model), x.shape[1]
    examined = known.examined
    if known.changing is not None and len(x) < 2 or (frames in examined and examined[frames].alone >= alone):
        return
    if alone:
        _refuse_observers(model)
    recording, second = record(), record()
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        if len(x) < 2:
            _forward(model, x, RecordStatistics(), untouched=find_changing_state)
            return
        with _norms_unseen(model, recording) as unseen:
            whole = _forward(model, x, recording, untouched=find_changing_state)
        taped = _taped(recording)
        if isinstance(recording, Recording):
            recording.free()
        rounded = x * (1 + torch.finfo(x.dtype).eps * torch.randn_like(x))
        again = _forward(model, rounded, second)
        taped = taped if taped == _taped(second) else None
        if isinstance(second, Recording):
            second.free()
        if alone:
            # In 16 bits a difference says little.
            if unseen and any(torch.finfo(part.dtype).bits < 32 for part in whole):
                raise _depends_on_others(f"{unseen[0]} ({type(model.get_submodule(unseen[0])).__name__})")
            limits = [
                max(_rounding(a), 100 * float((a - b).abs().amax()))
                for a, b in zip(whole, again, strict=True)
            ]
            _require_same_alone(model, x, recording.calls, whole, limits)
    examined[frames] = Examined(len(recording.calls), taped, alone)


def _refuse_observers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        of_weights = name.endswith("weight_fake_quant")
        if base_of(type(module), "FakeQuantizeBase") and not of_weights and module.observer_enabled[0]:
            raise ValueError(
                f"{name} ({type(module).__name__}) quantises in a range that it observes over the batch: the "
                "attack on clips alone needs model.apply(torch.ao.quantization.disable_observer), "
                "attack_bn='batch' takes any range"
            )


def require_whole(model: nn.Module, x: Tensor, recording: RecordStatistics | None) -> None:
    """Raise ValueError unless all batch norms of the forward of ``x`` were recorded, as far as the model was
    examined. A tape with gaps is not replayed."""
    expected = known_of(model).examined.get(x.shape[1])
    if recording is None or expected is None:
        return
    if len(recording.calls) != expected.norms:
        raise ValueError(
            f"the clean forward showed {len(recording.calls)} batch norms to the attack, expected "
            f"{expected.norms}: no layers that are dropped at random, and with compile=True none that a "
            "graph keeps to itself"
        )
    if isinstance(recording, Recording) and _taped(recording) != expected.taped:
        recording.never_replay()


def _taped(recording: RecordStatistics) -> int | None:
    return len(recording.tape) if isinstance(recording, Recording) and recording.replayable else None


def _require_same_alone(
    model: nn.Module, x: Tensor, statistics: list[Statistics], whole: list[Tensor], limits: list[float]
) -> None:
    kind = type(model).__name__
    frozen = FreezeStatistics(statistics)
    try:
        alone = _forward(model, x[:1], frozen)
    except Exception as error:
        raise ValueError(
            f"{kind} takes the {len(x)} clips of a batch, but not one of them alone ({error}): the attack "
            "needs a model whose only input are the clips"
        ) from error
    if frozen.used != len(statistics):
        raise ValueError(
            f"{kind} ran {len(statistics)} batch norms for {len(x)} clips and {frozen.used} for one of them, "
            "expected the same"
        )
    if not any(float((a - b).abs().amax()) > limit for a, b, limit in zip(whole, alone, limits, strict=True)):
        return
    with _watched(model, len(x)) as of_batch:
        _forward(model, x, RecordStatistics())
    with _watched(model, 1) as of_clip:
        _forward(model, x[:1], FreezeStatistics(statistics))
    pairs = zip(of_batch, of_clip, strict=False)
    first = next((name for (name, a), (_, b) in pairs if _differ(a, b)), None)
    where = f"{kind}'s logits" if first is None else f"{first} ({type(model.get_submodule(first)).__name__})"
    raise _depends_on_others(where)


def _depends_on_others(where: str) -> ValueError:
    return ValueError(
        f"the result of {where} for a clip depends on the other clips of the batch, and not through "
        "torch.nn.functional.batch_norm over the whole batch, whose statistics the attack holds constant: "
        "attack_bn='batch' takes any norm"
    )


def _forward(
    model: nn.Module,
    x: Tensor,
    mode: RecordStatistics | FreezeStatistics,
    untouched: Callable[[nn.Module], AbstractContextManager] = running_statistics_untouched,
) -> list[Tensor]:
    """The logits and, if there are any, features [1,...] of the first clip, by a forward without dropout that
    leaves the model as it was."""
    with untouched(model), mode, _WithoutDropout():
        outputs = view_of(model).forward(x)
    return [part[:1] for part in (outputs.logits, *(outputs.stages or ())[:1])]


class _WithoutDropout(TorchFunctionMode):
    """Leaves out dropout, and keeps every path (stochastic depth): what is random cannot be compared."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is Tensor.bernoulli_:
            return args[0].fill_(1)
        return func(*args, **kwargs)


@contextmanager
def _norms_unseen(model: nn.Module, recording: RecordStatistics) -> Iterator[list[str]]:
    """The batch norms that run in train mode in this context, and of which ``recording`` gets nothing."""
    unseen: list[str] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if not isinstance(module, _BatchNorm) or not module.training:
                continue
            before: list[int] = []

            def enter(_module, _args, before=before):
                before.append(len(recording.calls))

            def leave(_module, _args, _output, before=before, name=name):
                if before.pop() == len(recording.calls):
                    unseen.append(name)

            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield unseen


@contextmanager
def _watched(model: nn.Module, batch: int) -> Iterator[list[tuple[str, Tensor]]]:
    """What the modules that compute something return for the first of ``batch`` clips, in order."""
    outputs: list[tuple[str, Tensor]] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if next(module.children(), None) is not None and not isinstance(module, _BatchNorm):
                continue

            def watch(_module, _args, output, name=name):
                if isinstance(output, Tensor) and output.dim() and len(output) % batch == 0:
                    outputs.append((name, output[: len(output) // batch].clone()))

            hooks.callback(module.register_forward_hook(watch).remove)
        yield outputs


def _rounding(a: Tensor) -> float:
    """What rounding may amount to in a tensor, for which the square root of the precision is ample."""
    return torch.finfo(a.dtype).eps ** 0.5 * float(a.abs().amax())


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.is_floating_point() and float((a - b).abs().amax()) > _rounding(a)
