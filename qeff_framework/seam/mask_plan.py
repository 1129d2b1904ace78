"""Closed forms of a model's attention masks, found in the probe run by trying its own mask functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from qeff_framework.errors import ExportError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

#: Every configuration field of Transformers that holds such a size has one of these in its name.
_SIZE_FIELD_MARKS = ("window", "chunk")


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """A mask that indices alone decide: attributes of the op ``CausalMask``, or everything visible when not `causal`."""

    causal: bool = True
    window: int = 0
    chunk: int = 0

    def evaluate(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """The mask on concrete indices."""
        visible = key <= query
        if not self.causal:
            return torch.ones_like(visible)
        if self.window:
            visible = visible & (key > query - self.window)
        if self.chunk:
            visible = visible & (query // self.chunk == key // self.chunk)
        return visible


@dataclass
class MaskPlan:
    """What the probe run found out about each mask that the model asks for, in the order of the calls."""

    forms: list[ClosedForm | None] = field(default_factory=list)
    #: How often the attention interface was called.
    attention_calls: int = 0
    #: Masks of cross-attention that were asked for in the recorded run.
    memory_calls: int = 0
    #: The attention adds its masks to the scores by code of its own, so they are numbers and not true or false.
    additive: bool = False
    #: This is the probe run, whose tensors of positions and masks can be looked at.
    recording: bool = True
    #: Masks of the step's tokens, where a run is to show which of them look ahead; `None`: none may.
    watched: list[torch.Tensor] | None = None
    _next: int = 0

    def finish_recording(self) -> None:
        """From the next forward pass on, calls are answered from the record."""
        self.recording = False

    def rewind(self) -> None:
        """Starts a forward pass."""
        self._next = 0

    @property
    def calls(self) -> int:
        """How many masks this forward pass has asked for so far."""
        return self._next

    def form_of_call(
        self, function: MaskFunction, config: PreTrainedConfig | None, local_size: int | None
    ) -> ClosedForm | None:
        """The closed form of this call's mask, `None` when it has none.

        Raises:
            UnsupportedModelError: the call is about a window in which there is no token.
        """
        if local_size is not None and local_size <= 0 and _may_have_windows(config):
            raise UnsupportedModelError(
                f"its attention has a window of {local_size} tokens, in which no token sees anything, not even itself; for "
                "attention without a window write null in its config (sliding_window)"
            )
        if self.recording:
            self.forms.append(recognise(function, candidate_sizes(config, local_size)))
        if self._next >= len(self.forms):
            raise ExportError("the model asks for more attention masks in the trace than in the probe run")
        form = self.forms[self._next]
        self._next += 1
        return form


def _may_have_windows(config: PreTrainedConfig | None) -> bool:
    """Whether a layer may use the mask of a window; some models ask for it although none does (Qwen2-MoE)."""
    kinds = getattr(config, "layer_types", None)
    return kinds is None or any(kind != "full_attention" for kind in kinds)


def candidate_sizes(config: PreTrainedConfig | None, local_size: int | None) -> tuple[int, ...]:
    """Window and chunk sizes that this call may be about: its own argument and the fields of the configuration."""
    sizes: set[Any] = {local_size}
    for name, value in vars(config).items() if config is not None else ():
        if any(mark in name for mark in _SIZE_FIELD_MARKS):
            sizes.update(value if isinstance(value, (list, tuple)) else (value,))
    return tuple(sorted(size for size in sizes if type(size) is int and size > 0))


def recognise(function: MaskFunction, sizes: tuple[int, ...]) -> ClosedForm | None:
    """The closed form that equals `function` on every pair of boundary positions, or `None`."""
    points = _boundary_positions(sizes)
    query, key = points[None, None, :, None], points[None, None, None, :]
    first = torch.zeros((1, 1, 1, 1), dtype=torch.int64)
    try:
        wanted = function(first, first, query, key).expand(1, 1, len(points), len(points))
        return next((form for form in _forms(sizes) if torch.equal(form.evaluate(query, key), wanted)), None)
    except (IndexError, RuntimeError, NotImplementedError):
        # The function looks indices up in tensors of this step (packed sequences, padding), or in tensors without data.
        return None


def _forms(sizes: tuple[int, ...]) -> Iterator[ClosedForm]:
    yield ClosedForm()
    yield ClosedForm(causal=False)
    for size in sizes:
        yield ClosedForm(window=size)
        yield ClosedForm(window=size + 1)  # A window of `size` tokens before the query itself.
        yield ClosedForm(chunk=size)


def _boundary_positions(sizes: tuple[int, ...]) -> torch.Tensor:
    """Positions around every boundary that a window or chunk of one of `sizes` can have, ascending."""
    points = set(range(12))
    for size in sizes:
        for multiple in (1, 2, 3):
            points.update(multiple * size + offset for offset in range(-2, 3))
    return torch.tensor(sorted(point for point in points if point >= 0))
