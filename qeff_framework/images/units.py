"""What a processor returns for several images, taken apart into what an image encoder reads at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    #: Tensors of one image, or of one tile of it, by name.
    Unit = Mapping[str, NDArray[Any]]

PIXELS = "pixel_values"
_GRID, _SIZES = "image_grid_thw", "image_sizes"


def image_units(tensors: Mapping[str, Any]) -> list[Unit]:
    """The units in ``pixel_values`` and the tensors that belong to it, in the order of the images.

    Three forms are known. Patches ``[P, D]`` of all images with ``image_grid_thw [N, 3]``: a unit is an image. Tiles
    ``[B, T, C, H, W]`` of each prompt, filled up with empty ones: a unit is a tile that is not empty. Any other tensors: a unit
    is a row of each.
    """
    arrays = {name: _array(value) for name, value in tensors.items() if value is not None}
    pixels = arrays[PIXELS]
    if _GRID in arrays:
        ends = np.cumsum(arrays[_GRID].prod(axis=1))
        if ends.size == 0 or ends[-1] != pixels.shape[0]:
            raise InputError(
                f"pixel_values has {pixels.shape[0]} patches, and image_grid_thw tells of {ends[-1] if ends.size else 0}; pass "
                "what the processor returns as it is"
            )
        parts = np.split(pixels, ends[:-1])
        return [
            {PIXELS: part, **{name: rows[place][None] for name, rows in arrays.items() if name != PIXELS}}
            for place, part in enumerate(parts)
        ]
    if pixels.ndim == 5 and _SIZES not in arrays:
        places = [
            (row, tile) for row in range(pixels.shape[0]) for tile in range(pixels.shape[1]) if pixels[row, tile].any()
        ]
        return [{name: rows[row, tile][None, None] for name, rows in arrays.items()} for row, tile in places]
    lengths = {name: rows.shape[0] for name, rows in arrays.items()}
    if len(set(lengths.values())) != 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"the tensors of the images have unequal numbers of rows: {told}")
    return [{name: rows[place][None] for name, rows in arrays.items()} for place in range(pixels.shape[0])]


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, Sequence):
        value = (
            np.stack([_array(each) for each in value]) if value and hasattr(value[0], "shape") else np.asarray(value)
        )
    return np.asarray(value)
