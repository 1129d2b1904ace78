"""Positions of several axes: tokens of an image count in time, height and width, those of text alike on all axes.

Transformers makes them in torch from the sizes of the images (``get_rope_index``), with a method of each model. Running a program
needs no torch, so the rule is written here once more, in NumPy; an export compares the two, and refuses a model whose rule is
another one.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.images.rope_positions import rope_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Sizes of images in patches: time, height, width.
_OTHER_RULE = "it places the tokens of images by a rule of its own"
_EXAMPLES = (((1, 4, 6),), ((1, 4, 4), (1, 8, 4)))


def merge_size(model: PreTrainedModel, token_id: int) -> int:
    """Patches of an image that become one token, along each axis of the image.

    Raises:
        UnsupportedModelError: the model's own positions differ from those of `rope_positions`.
    """
    vision = getattr(model.config, "vision_config", None)
    size = getattr(vision, "spatial_merge_size", None)
    if not isinstance(size, int):
        raise UnsupportedModelError(
            "its config names no spatial_merge_size, by which positions of image tokens are made"
        )
    start = getattr(model.config, "vision_start_token_id", None)
    start = start if isinstance(start, int) else 4
    for grids in _EXAMPLES:
        ids = [3]
        for time, height, width in grids:
            ids += [start, *[token_id] * (time * height * width // size**2), 5]
        try:
            own = _own(model, ids, token_id, grids)
        except Exception as error:
            raise UnsupportedModelError(f"{_OTHER_RULE}: {error}") from error
        if not torch.equal(own, torch.from_numpy(rope_positions(ids, token_id, grids, size)[0])):
            raise UnsupportedModelError(_OTHER_RULE)
    return size


def _own(model: PreTrainedModel, ids: list[int], token_id: int, grids: Any) -> torch.Tensor:
    owner: Any = next(part for part in (model, getattr(model, "model", None)) if hasattr(part, "get_rope_index"))
    tokens = torch.tensor([ids])
    given = {
        "input_ids": tokens,
        "image_grid_thw": torch.tensor(grids),
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == token_id).long(),
    }
    known = inspect.signature(owner.get_rope_index).parameters
    positions: torch.Tensor = owner.get_rope_index(**{name: value for name, value in given.items() if name in known})[0]
    return positions[:, 0]
