"""Positions of several axes: tokens of an image count in time, height and width, those of text alike on all axes.

Transformers makes them in torch from the sizes of the images (``get_rope_index``), with a method of each model. Running a program
needs no torch, and the size of an image is a constant of its program. So the method is called with prompts that hold such images,
and what it does to them is read off its results: a `RopeLayout`. A model whose positions are no such layout is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.images.rope_positions import BASES, RopeLayout, rope_positions
from qeff_framework.images.units import TIMES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

_OTHER_RULE = "it places the tokens of images by a rule of its own"
#: Tokens of text in front of each image of a prompt. More than one image, and unequal distances: what a position counts from
#: shows in its differences. Between two images there are two: the rules of some models count on a token that ends the first and
#: one that starts the second.
_EXAMPLES = ((2,), (5,), (2, 3), (4, 2, 3))
_TEXT = 3
#: Names of tokens that have no part in a prompt of images and text.
_OTHER_MODALITIES = ("audio", "video")
#: Distances of the times of a video, in seconds, that a layout is checked with: such as clips have whose frames were chosen, and
#: ones whose products with whole numbers are rounded. The long one is a power of two, which leaves the digits of a rate.
_SECONDS = (1.0, 0.5, 1.5, 1 / 3, 0.0833, 0.7, 2.9, 12.34, 61.7)
_LONG = 4096.0
#: Values of ``mm_token_type_ids``.
_KINDS = {"image": 1, "video": 2}


def rope_axes(model: PreTrainedModel, token_id: int) -> int:
    """The number of axes of the model's positions."""
    with torch.no_grad():
        return len(_Rule(model, token_id, {}, 0)([_TEXT] * 2, 0))


def rope_layout(
    model: PreTrainedModel,
    token_id: int,
    sizes: Mapping[str, torch.Tensor],
    tokens: int,
    modality: str = "image",
    groups: int = 1,
) -> RopeLayout:
    """Where the tokens of an image stand.

    Args:
        model: the whole model.
        token_id: the id of an image token.
        sizes: the tensors that tell an image's size, by name; of one image. The layout is for any distance of times.
        tokens: the tokens of such an image.
        modality: what it is, if not an image.
        groups: its tokens stand in so many groups of equal length, with text between them; the layout is that of a group.

    Raises:
        UnsupportedModelError: no such layout gives the model's own positions.
    """
    timed = [name for name in sizes if name in TIMES]
    if not timed:
        return _layout_of_size(model, token_id, sizes, tokens, modality, groups)

    def at(seconds: float) -> RopeLayout:
        given = {**sizes, **{name: torch.full_like(sizes[name], seconds) for name in timed}}
        return _layout_of_size(model, token_id, given, tokens, modality, groups)

    layout = _follows_seconds(at(_LONG), at(0.0))
    for seconds in _SECONDS:
        own, told = at(seconds), layout.at(seconds)
        if not np.array_equal(own.offsets, told.offsets) or own.advance != told.advance:
            raise UnsupportedModelError(_OTHER_RULE)
    return layout


def _follows_seconds(far: RopeLayout, near: RopeLayout) -> RopeLayout:
    """The layout in which positions grow with the distance of times, from that of a long distance and that of none."""
    gone = far.offsets - near.offsets
    if not gone.any() or not np.array_equal(far.bases, near.bases):
        return near
    step = int(gone[gone > 0].min())
    return replace(near, times=gone // step, per_second=step / _LONG)


def _layout_of_size(
    model: PreTrainedModel,
    token_id: int,
    sizes: Mapping[str, torch.Tensor],
    tokens: int,
    modality: str,
    groups: int,
) -> RopeLayout:
    tokens //= groups
    rule = _Rule(model, token_id, sizes, tokens, modality)
    examples = [tuple(counts[place % len(counts)] for place in range(groups * len(counts))) for counts in _EXAMPLES]
    try:
        with torch.no_grad():
            own = [(counts, rule(rule.prompt(counts), len(counts) // groups)) for counts in examples]
            layout = _read_off(own, tokens)
            told = [(counts, rule.prompt(counts)) for counts in examples]
            told += [(examples[-1], prompt) for prompt in rule.prompts_with_other_tokens(examples[-1])]
            fits = layout is not None and all(
                _gives(layout, rule, prompt, len(counts), groups) for counts, prompt in told
            )
    except Exception as error:
        raise UnsupportedModelError(f"{_OTHER_RULE}: {error}") from error
    if layout is None or not fits:
        raise UnsupportedModelError(_OTHER_RULE)
    return layout


def _gives(layout: RopeLayout, rule: _Rule, prompt: Sequence[int], runs: int, groups: int) -> bool:
    own = rule(prompt, runs // groups)
    composed, _ = rope_positions(np.asarray(prompt) == rule.token_id, [layout] * runs, len(own))
    return np.array_equal(own, composed)


class _Rule:
    """The method of a model, for prompts of images of one size."""

    def __init__(
        self,
        model: PreTrainedModel,
        token_id: int,
        sizes: Mapping[str, torch.Tensor],
        tokens: int,
        modality: str = "image",
    ) -> None:
        owner: Any = next(part for part in (model, getattr(model, "model", None)) if hasattr(part, "get_rope_index"))
        self._method = owner.get_rope_index
        self._known = inspect.signature(self._method).parameters
        self._config = model.config
        self.token_id, self._tokens = token_id, tokens
        self._kind = _KINDS[modality]
        # In a prompt of videos the token of an image is no text.
        self._others = (*_OTHER_MODALITIES, *(() if modality == "image" else ("image",)))
        self._sizes = {name: value for name, value in sizes.items() if name in self._known}
        start = getattr(model.config, "vision_start_token_id", None)
        self._start = start if isinstance(start, int) else _TEXT

    def prompt(self, counts: Sequence[int], around: int = _TEXT) -> list[int]:
        """An image behind each number of text tokens, and text at the end."""
        ids: list[int] = []
        for count in counts:
            ids += [
                *[_TEXT] * (count - 2),
                *[around] * min(1, count - 1),
                self._start,
                *[self.token_id] * self._tokens,
            ]
        return [*ids, around, _TEXT]

    def prompts_with_other_tokens(self, counts: Sequence[int]) -> Iterator[list[int]]:
        """Prompts with each special token beside the images: a rule must not look at tokens that are text to a program."""
        for name, value in vars(self._config).items():
            is_token = name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
            if is_token and value not in (self.token_id, self._start) and not any(o in name for o in self._others):
                yield self.prompt(counts, around=value)

    def __call__(self, ids: Sequence[int], images: int) -> NDArray[np.int64]:
        """Positions ``[A, S]``."""
        tokens = torch.tensor([ids])
        given: dict[str, Any] = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "mm_token_type_ids": (tokens == self.token_id).long() * self._kind,
            **{name: torch.cat([value] * images) for name, value in self._sizes.items() if images},
        }
        result = self._method(**{name: value for name, value in given.items() if name in self._known})
        positions: NDArray[np.int64] = result[0][:, 0].numpy()
        return positions


def _read_off(examples: Sequence[tuple[Sequence[int], NDArray[np.int64]]], tokens: int) -> RopeLayout | None:
    """The layout that examples have in common: the number of text tokens in front of each image, and positions ``[A, S]``.

    `None` where they have none in common.
    """
    found: list[NDArray[np.int64]] = []
    origins: list[list[int]] = []
    advances = set()
    for counts, positions in examples:
        place = following = 0
        for number, count in enumerate(counts):
            place, following = place + count, following + count
            found.append(positions[:, place : place + tokens])
            origins.append([following, place, number, 0])
            place += tokens
            behind = int(positions[0, place])
            advances.add(behind - following)
            following = behind
    if len(advances) != 1:
        return None
    values = np.stack(found)
    offsets, bases = np.zeros(values.shape[1:], np.int64), np.full(values.shape[1:], -1, np.int64)
    for base in reversed(BASES):
        less = values - np.array([origin[base] for origin in origins])[:, None, None]
        fits = (less == less[0]).all(axis=0)
        offsets[fits], bases[fits] = less[0][fits], base
    if (bases < 0).any():
        return None
    return RopeLayout(offsets=offsets, bases=bases, advance=advances.pop())
