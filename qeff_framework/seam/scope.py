"""What the interfaces of Transformers do not hand through to our functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qeff_framework.seam.mask_plan import MaskPlan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Step:
    """One forward pass of a causal LM over a cache of fixed size."""

    #: ``[B, S]`` int64, -1 at padding.
    position_ids: torch.Tensor
    #: ``[L]`` int64: 0 .. L - 1, the slots that this step reads; L is ctx_len unless `reads_part` is set.
    kv_positions: torch.Tensor
    #: ``[B, 1]`` int64: the cache row of each row of the step; `None` when the cache has the rows of the step.
    batch_index: torch.Tensor | None = None
    #: Only the first L slots are read, the compute context of this step.
    reads_part: bool = False
    #: The step is one turn of a loop over the tokens of a graph's step.
    looped: bool = False


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the decoder of an encoder-decoder model attends to: the encoder's output, as keys and values of each layer.

    They are written at the positions of the encoder's tokens and nowhere else, so a step whose encoder reads nothing but padding
    leaves them as they are.
    """

    #: ``[B, T]`` int64, -1 at padding: the encoder's tokens in this step.
    position_ids: torch.Tensor
    #: ``[B, 1]`` int64: the slots of each row that hold something, whatever step has written them.
    lengths: torch.Tensor
    #: ``[E]`` int64: 0 .. E - 1.
    kv_positions: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Scope:
    """One forward pass through the seam."""

    masks: MaskPlan
    #: `None` in a model that has no cache.
    step: Step | None = None
    #: `None` unless the pass is that of a decoder with an encoder.
    memory: Memory | None = None
    #: ``[B, S]`` int64: the length of the text that each token is read with. Rotary frequencies may depend on it.
    token_lengths: torch.Tensor | None = None
    #: Models of sound: which of a number of frames are none of padding, see `qeff_framework.seam.padded_frames`.
    real_frames: Callable[[int | torch.SymInt], torch.Tensor | None] | None = None

    @property
    def given_step(self) -> Step:
        """The step of a model that has a cache."""
        if self.step is None:
            raise RuntimeError("this forward pass has no cache, so it has no step")
        return self.step


_SCOPE: ContextVar[Scope | None] = ContextVar("qeff_scope", default=None)


@contextmanager
def forward_scope(scope: Scope) -> Iterator[None]:
    """Makes `scope` the current one; its first attention mask is the model's first."""
    scope.masks.rewind()
    token = _SCOPE.set(scope)
    try:
        yield
    finally:
        _SCOPE.reset(token)


def in_forward_scope() -> bool:
    """Whether a forward pass of an exported graph is running in this thread."""
    return _SCOPE.get() is not None


def current_scope() -> Scope:
    """The forward pass that is running."""
    scope = _SCOPE.get()
    if scope is None:
        raise RuntimeError("the seam's functions run inside a forward pass of an exported graph only")
    return scope


def current_step() -> Step | None:
    """The step that is running, `None` in a model that has no cache."""
    return current_scope().step
