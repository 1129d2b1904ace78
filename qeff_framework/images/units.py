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

PIXELS, VIDEO_PIXELS = "pixel_values", "pixel_values_videos"
#: Tensors ``[N, 2 or 3]`` by which the patches of all images are split; the product of a row is an image's number of patches.
_GRIDS = ("image_grid_thw", "image_grid_hw", "target_sizes", "video_grid_thw")
#: What belongs to the second view of an image, and how many tiles of it each image has.
_LOCAL, _LOCAL_COUNTS = "pixel_values_local", "num_local_patches"
#: ``[M, K]``: which patches become a token, numbered over the crops of all images, -1 for none; and ``[N, 4]``: height and width
#: of the whole image and of its crops in tokens.
_POOLED, _POOLED_GRIDS = "image_token_pooling", "image_grids"
_SIZES = "image_sizes"
#: Numbers that say how far the times of a video are apart: they have a part in positions alone, so that any fit a program.
TIMES = ("second_per_grid_ts",)
#: Which of the shapes that a model knows an image has, ``[B, M]``, 0 for none, and which of its tiles are filled, ``[B, M, T]``:
#: contents, since all images have the size of the largest shape.
_SHAPES, _FILLED = "aspect_ratio_ids", "aspect_ratio_mask"
#: The last axis of an image counts channels if it is no longer, else pixels.
_CHANNELS = 3


def pixel_names(unit: Unit) -> tuple[str, ...]:
    """The tensors of a unit that hold what is seen, ``pixel_values`` first. Integers say how it lies, and come with the size."""
    contents = [
        name
        for name, value in unit.items()
        if (np.issubdtype(value.dtype, np.floating) and name not in (_SIZES, *TIMES)) or name in (_SHAPES, _FILLED)
    ]
    return tuple(sorted(contents, key=lambda name: (name != PIXELS, name)))


def image_units(tensors: Mapping[str, Any]) -> list[Unit]:
    """The units in ``pixel_values`` and the tensors that belong to it, in the order of the images; so of ``pixel_values_videos``.

    Six forms are known. Patches of all images, along the first axis of ``pixel_values`` or along its last one, with a grid
    ``[N, 2 or 3]``: a unit is an image. Tiles ``[B, T, C, H, W]`` of each prompt, filled up with empty ones: a unit is a tile
    that is not empty. Images of tiles ``[B, M, T, C, H, W]`` with ``aspect_ratio_ids``: a unit is an image that is not empty.
    Images with ``pixel_values_local``: a unit is an image with its tiles. Crops of all images with
    ``image_token_pooling``: a unit is an image with its crops. Any other tensors: a unit is a row
    of each.
    """
    arrays = {name: _array(value) for name, value in tensors.items() if value is not None}
    main = next((name for name in (PIXELS, VIDEO_PIXELS) if name in arrays), next(iter(arrays)))
    pixels = arrays[main]
    odd = next((name for name, array in arrays.items() if array.ndim < 1 or array.dtype.kind not in "biuf"), None)
    if odd is not None:
        raise InputError(
            f"{odd} must hold real numbers for each image, and is {list(arrays[odd].shape)} of type {arrays[odd].dtype}; "
            "pass what the processor returns as it is"
        )
    grid = next((name for name in _GRIDS if name in arrays), None)
    if grid is not None:
        parts = _split_patches(pixels, arrays[grid], grid)
        return [
            {main: part, **{name: rows[place][None] for name, rows in arrays.items() if name != main}}
            for place, part in enumerate(parts)
        ]
    if main == PIXELS and pixels.ndim == 5 and _SIZES not in arrays and pixels.shape[-1] > _CHANNELS:
        places = [
            (row, tile) for row in range(pixels.shape[0]) for tile in range(pixels.shape[1]) if pixels[row, tile].any()
        ]
        return [{name: rows[row, tile][None, None] for name, rows in arrays.items()} for row, tile in places]
    if _SHAPES in arrays:
        places = [(row, image) for row, image in np.argwhere(arrays[_SHAPES]).tolist()]
        return [{name: rows[row, image][None, None] for name, rows in arrays.items()} for row, image in places]
    if _LOCAL in arrays:
        ends = np.cumsum(arrays[_LOCAL_COUNTS].reshape(-1))
        tiles = np.split(arrays[_LOCAL], ends[:-1])
        others = [name for name in arrays if name != _LOCAL]
        return [
            {_LOCAL: tiles[place], **{name: arrays[name][place][None] for name in others}}
            for place in range(pixels.shape[0])
        ]
    if _POOLED in arrays:
        return _pooled_units(pixels, arrays[_POOLED], arrays[_POOLED_GRIDS])
    lengths = {name: rows.shape[0] for name, rows in arrays.items()}
    if len(set(lengths.values())) != 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"the tensors of the images have unequal numbers of rows: {told}")
    return [{name: rows[place][None] for name, rows in arrays.items()} for place in range(pixels.shape[0])]


def _pooled_units(pixels: NDArray[Any], pooled: NDArray[Any], grids: NDArray[Any]) -> list[Unit]:
    """Images whose tokens name their patches, the numbers of each counted from its own first patch."""
    tokens = grids[:, 0] * grids[:, 1] + grids[:, 2] * grids[:, 3]
    if int(tokens.sum()) != pooled.shape[0]:
        raise InputError(
            f"{_POOLED} has {pooled.shape[0]} tokens, and {_POOLED_GRIDS} tells of {int(tokens.sum())}; pass what the processor "
            "returns as it is"
        )
    parts = np.split(pooled, np.cumsum(tokens)[:-1])
    patches = pixels.shape[1]
    # The crop of the whole image comes first and begins with its first patch.
    first = [int(part[part >= 0].min()) // patches for part in parts]
    return [
        {
            PIXELS: pixels[start:end],
            _POOLED: np.where(part >= 0, part - start * patches, part),
            _POOLED_GRIDS: grids[place][None],
        }
        for place, (part, start, end) in enumerate(zip(parts, first, [*first[1:], pixels.shape[0]], strict=True))
    ]


def _split_patches(pixels: NDArray[Any], grid: NDArray[Any], name: str) -> list[NDArray[Any]]:
    """The patches of each image."""
    ends = np.cumsum(grid.prod(axis=1))
    patches = int(ends[-1]) if ends.size else 0
    if pixels.shape[0] == 1 and pixels.ndim == 4 and patches and pixels.shape[-1] % patches == 0:
        return np.split(pixels, ends[:-1] * (pixels.shape[-1] // patches), axis=-1)
    if patches == 0 or patches != pixels.shape[0]:
        raise InputError(
            f"the images or videos have {pixels.shape[0]} patches, and {name} tells of {patches}; pass what the processor "
            "returns as it is"
        )
    return np.split(pixels, ends[:-1])


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no such type.
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if isinstance(value, Sequence):
        value = (
            np.stack([_array(each) for each in value]) if value and hasattr(value[0], "shape") else np.asarray(value)
        )
    return np.asarray(value)
