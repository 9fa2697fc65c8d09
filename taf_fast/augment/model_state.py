"""What a forward changes in a model besides its result, put back."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from taf_fast.augment.known import known_of
from taf_fast.models.dual_batch_norm import plain_class
from taf_fast.models.modules import base_of, modules_of
from taf_fast.models.recomputation import recomputed_within


class _State:
    """A buffer of a module, or a number that it keeps as an attribute, as it is now."""

    def __init__(self, module: nn.Module, name: str):
        self.place = module, name
        self._value = getattr(module, name)
        self._copy = self._value.detach().clone() if isinstance(self._value, Tensor) else None

    def changed(self) -> bool:
        replaced = getattr(*self.place) is not self._value
        return replaced or (self._copy is not None and not torch.equal(self._value, self._copy))

    def put_back(self) -> None:
        if getattr(*self.place) is not self._value:
            setattr(*self.place, self._value)
        # Always: batch norm changes a buffer without a new version of it. So does this: the clean forward may
        # have saved the buffer for its backward, and the values are what they were then.
        if self._copy is not None:
            self._value.data.copy_(self._copy)


@contextmanager
def running_statistics_untouched(model: nn.Module) -> Iterator[None]:
    """Within this context no forward of ``model`` changes it: at its end, running statistics and their
    counters are as before, and so are all other buffers, and the numbers that modules keep as attributes."""
    places = known_of(model).changing
    with _put_back(model, list(_places(model)) if places is None else places):
        yield


@contextmanager
def find_changing_state(model: nn.Module) -> Iterator[None]:
    """As :func:`running_statistics_untouched`; from then on, while the model has this form, only what a
    forward in this context changes is kept."""
    known = known_of(model)
    places = list(_places(model))
    with _put_back(model, places) as states:
        yield
        changing = [place for place, state in zip(places, states, strict=True) if state.changed()]
    known.changing = [*changing, *_read_elsewhere(model)]


class StateBefore:
    """The state of ``model`` that a forward changes, as it is now, for an attack after that forward: the
    attack is at the clean clips, so it runs the model as their forward found it."""

    def __init__(self, model: nn.Module):
        modules = modules_of(model)
        self._states = [_State(modules[index], name) for index, name in known_of(model).changing or ()]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within this context the model has that state."""
        now = [_State(*state.place) for state in self._states]
        for state in self._states:
            state.put_back()
        try:
            yield
        finally:
            for state in now:
                state.put_back()


def _put_back(model: nn.Module, places: list[tuple[int, str]]) -> AbstractContextManager[list[_State]]:
    modules = modules_of(model)
    norms = [module for module in modules if isinstance(module, _BatchNorm) and _asks_before_tracking(module)]
    return _kept(norms, [(modules[index], name) for index, name in places])


@contextmanager
def _kept(norms: list[_BatchNorm], places: list[tuple[nn.Module, str]]) -> Iterator[list[_State]]:
    tracking = [norm for norm in norms if norm.training and norm.track_running_stats]
    states = [_State(*place) for place in places]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        with recomputed_within(lambda: partial(_kept, norms, places)):
            yield states
    finally:
        for norm in tracking:
            norm.track_running_stats = True
        for state in states:
            state.put_back()


def _places(model: nn.Module) -> Iterator[tuple[int, str]]:
    for index, module in enumerate(modules_of(model)):
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield index, name
        if not plain_class(module).__module__.startswith("torch.nn."):
            for name, value in vars(module).items():
                if type(value) in (int, float):
                    yield index, name


def _read_elsewhere(model: nn.Module) -> Iterator[tuple[int, str]]:
    """The running statistics that scale the weights of torch.ao's fused layers, which a batch norm within
    them updates."""
    modules = modules_of(model)
    for module in modules:
        if base_of(type(module), "_ConvBnNd", "LinearBn1d"):
            index = modules.index(module.bn)
            yield from ((index, name) for name in ("running_mean", "running_var"))


def _asks_before_tracking(module: nn.Module) -> bool:
    """Whether it is a batch norm that changes nothing in train mode without ``track_running_stats``, as
    torch's own do."""
    forwards = (_BatchNorm.forward, SyncBatchNorm.forward)
    return isinstance(module, _BatchNorm) and plain_class(module).forward in forwards
