"""Activation checkpointing: what runs again in the backward runs again as it ran in the forward.

A recomputation happens when the contexts that surrounded the forward are over: the path through the batch
norms, the statistics that an attack holds constant, a hook. Each of them says with :func:`recomputed_within`
how to come back. All ways to checkpoint (torch's own and its wrappers, timm, MMAction2, transformers) end in
the two places of ``torch.utils.checkpoint`` that are replaced here for the duration of such a context.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, _GeneratorContextManager, contextmanager
from typing import Any

from torch.utils import checkpoint
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from taf_fast.models.compilation import uncompiled

#: Called when a part of the model is checkpointed; returns how to make the context for its recomputation.
Capture = Callable[[], Callable[[], AbstractContextManager]]

_PLAIN = checkpoint._checkpoint_without_reentrant_generator
_REENTRANT = checkpoint.CheckpointFunction
_CHECKPOINT = checkpoint.checkpoint
_COMPOSABLE = "torch.distributed._composable.checkpoint_activation"


class _Captures(threading.local):
    """The captures of the contexts that this thread is in, outermost first; and whether checkpointing may be
    selective."""

    def __init__(self):
        self.active: tuple[Capture, ...] = ()
        self.selective = True


_captures = _Captures()
_lock = threading.Lock()
_users = 0


@contextmanager
def recomputed_within(capture: Capture) -> Iterator[None]:
    """What is checkpointed within this context is recomputed within the context that ``capture`` describes.

    Reentrant checkpoints become non-reentrant ones: their numbers are the same, and an attack's gradient,
    which is taken of the pixels alone, can go through them.
    """
    before = _captures.active
    _captures.active = (*before, capture)
    _replace(1)
    try:
        yield
    finally:
        _replace(-1)
        _captures.active = before


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Selective checkpointing within this context saves nothing: what it saves serves one backward only, and
    a gradient of a gradient goes back twice. The numbers are the same. Compiled parts run as they are."""
    before = _captures.selective
    _captures.selective = False
    try:
        with uncompiled():
            yield
    finally:
        _captures.selective = before


def checkpointed_selectively() -> bool:
    """Whether this is the forward of a selectively checkpointed part: its recomputation has to run the same
    operations."""
    modes = _get_current_dispatch_mode_stack()
    return any(isinstance(mode, checkpoint._CachingTorchDispatchMode) for mode in modes)


def _replace(change: int) -> None:
    global _users
    with _lock:
        _users += change
        function = _generator if _users else _PLAIN
        checkpoint._checkpoint_without_reentrant_generator = function  # type: ignore[assignment]
        checkpoint.CheckpointFunction = _NonReentrant if _users else _REENTRANT  # type: ignore
        checkpoint.checkpoint = _uncompiled if _users else _CHECKPOINT  # type: ignore
        if _COMPOSABLE in sys.modules:
            sys.modules[_COMPOSABLE]._checkpoint_without_reentrant_generator = function  # type: ignore


def _uncompiled(*args: Any, **kwargs: Any) -> Any:
    """Takes the place of torch's function, which torch.compile knows and makes part of its graph: the batch
    norms in there would not be seen. What is not that function runs as it is, between two graphs."""
    return _CHECKPOINT(*args, **kwargs)


def _generator(
    function: Callable, preserve_rng_state: bool, context_fn: Callable, *args: Any, **kwargs: Any
) -> Any:
    """Takes the place of torch's generator, which calls ``function`` only to recompute."""
    contexts = [capture() for capture in _captures.active]

    @functools.wraps(function, updated=())
    def recompute(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            return function(*args, **kwargs)

    if context_fn is not checkpoint.noop_context_fn:
        context_fn = functools.partial(_for_every_backward, context_fn, _captures.selective)
    return _PLAIN(recompute, preserve_rng_state, context_fn, *args, **kwargs)


def _for_every_backward(
    context_fn: Callable, selective: bool
) -> tuple[AbstractContextManager, AbstractContextManager]:
    """The contexts of the forward and of its recomputations. An attack's gradient takes two backwards, and
    what ``contextmanager`` makes can be entered for one: the next enters that of another call."""
    forward, first = context_fn()
    if isinstance(forward, checkpoint._CachingTorchDispatchMode) and not selective:
        return checkpoint.noop_context_fn()
    unused = [first]

    class Recomputation(ExitStack):
        def __enter__(self) -> "Recomputation":
            self.enter_context(unused.pop() if unused else context_fn()[1])
            return super().__enter__()

    return forward, Recomputation() if isinstance(first, _GeneratorContextManager) else first


class _NonReentrant:
    """Takes the place of ``CheckpointFunction``."""

    @staticmethod
    def apply(function: Callable, preserve_rng_state: bool, *args: Any) -> Any:
        if not _captures.active:  # another thread's forward
            return _REENTRANT.apply(function, preserve_rng_state, *args)
        return _CHECKPOINT(
            function,
            *args,
            use_reentrant=False,
            preserve_rng_state=preserve_rng_state,
            determinism_check="none",  # as of a reentrant one
        )
