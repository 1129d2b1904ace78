"""The images of one prompt, as the steps of a language model need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.images.rope_positions import RopeLayout, rope_positions

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Inputs of the language program:
#: ``[B, V, F]`` float32: the features of each row's image tokens, in the order of its images.
VISION_EMBEDS = "vision_embeds"
#: ``[B, S]`` int64: which of them stands in the place of a token, -1 at tokens of text and at padding, `BESIDE` at tokens of text
#: in a prompt with images.
VISION_INDEX = "vision_index"
BESIDE = -2
#: ``[A, B, S]`` int64: where a token stands on each axis (in time, height and width), for rotary embeddings of several axes.
ROPE_POSITIONS = "rope_position_ids"
#: ``[B, ctx_len]`` int64: the kind of token in each slot of the cache, for masks in which the tokens of an image see each other.
TOKEN_TYPES = "token_type_ids"  # noqa: S105 - no secret
#: Which tokens see each other, and must be read in one step: those of an image, those from the first image of a prompt to its
#: last one, the whole prompt, or none.
OF_IMAGE, OF_IMAGES, OF_PROMPT, NO_BLOCK = "image", "images", "prompt", ""
#: Of one program for images and text, ``[B, T]`` int64: the places of an image's tokens among those of its row, -1 for none.
IMAGE_POSITIONS = "encoder_position_ids"
#: Of a decoder that attends to images beside its text, ``[B, S, G]`` int64: which tiles a token sees, see
#: `qeff_framework.seam.attended_images`. ``vision_embeds [B, T, F]`` are then the features of one image, with such places too.
TILES_SEEN = "cross_attention_mask"
IMAGE_INPUTS = (VISION_EMBEDS, VISION_INDEX, ROPE_POSITIONS, TOKEN_TYPES, TILES_SEEN)


@dataclass(frozen=True, kw_only=True)
class RowImages:
    """What belongs to one prompt."""

    #: ``[N, F]``: features of its image tokens, in order.
    embeds: NDArray[np.float32]
    #: ``[P]``: which of them stands in the place of a token; negative at text, see `VISION_INDEX`.
    index: NDArray[np.int64]
    #: ``[A, P]``, and what later tokens add to their number; `None` for models whose positions have one axis.
    rope: tuple[NDArray[np.int64], int] | None = None
    #: Which tokens see each other.
    block: str = NO_BLOCK
    #: The kind of a token that sees those in front of it alone: 0 or 1.
    plain_type: int = 0
    #: What the image encoder of one program for images and text reads, for each image; `embeds` has no rows then.
    pixels: Sequence[Mapping[str, NDArray[Any]]] = ()
    #: ``[P, G]``: which tiles of the row's images a token sees, see `TILES_SEEN`; `None` for models whose image tokens are
    #: read as text is.
    sees: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        embeds: NDArray[np.float32],
        image_tokens: Sequence[int],
        *,
        layouts: Sequence[RopeLayout] = (),
        rope_axes: int = 1,
        block: str = NO_BLOCK,
        plain_type: int = 0,
        pixels: Sequence[Mapping[str, NDArray[Any]]] = (),
    ) -> RowImages:
        """`image_tokens`: ids that stand for features; `layouts` of the images in order, where positions have several axes."""
        is_image = np.isin(np.asarray(ids), image_tokens)
        index = np.where(is_image, np.cumsum(is_image) - 1, BESIDE if is_image.any() else -1).astype(np.int64)
        rope = rope_positions(is_image, layouts, rope_axes) if rope_axes > 1 else None
        return cls(embeds=embeds, index=index, rope=rope, block=block, plain_type=plain_type, pixels=pixels)

    @property
    def in_block(self) -> NDArray[np.bool_]:
        """``[P]``: the tokens that see others behind them."""
        return np.full(len(self.index), fill_value=True) if self.block == OF_PROMPT else self.index >= 0

    @cached_property
    def _cuts(self) -> NDArray[np.bool_]:
        """``[P + 1]``: whether a step may end in front of a token."""
        places = np.flatnonzero(self.index >= 0)
        cuts = np.full(len(self.index) + 1, fill_value=True)
        if self.block == OF_PROMPT:
            cuts[1:-1] = False
        elif self.block == OF_IMAGES and len(places):
            cuts[places[0] + 1 : places[-1] + 1] = False
        elif self.block == OF_IMAGE:
            cuts[1:-1] = ~((self.index[1:] >= 0) & (self.index[:-1] >= 0))
        return cuts

    @property
    def longest_block(self) -> int:
        """The most tokens that must be read in one step."""
        ends = np.flatnonzero(self._cuts)
        return int(np.diff(ends).max()) if len(ends) > 1 else len(self.index)

    def chunk(self, start: int, width: int) -> int:
        """How many of the next `width` tokens a step may read so that no block is cut in two; no block is longer."""
        stop = start + width
        if stop >= len(self.index):
            return width
        return int(np.flatnonzero(self._cuts[: stop + 1])[-1]) - start


class ImageStepInputs:
    """The arrays of one kind of step, allocated once and filled anew for each step."""

    def __init__(
        self,
        fed: Mapping[str, Any],
        *,
        rows: int,
        width: int,
        vision_size: int,
        ctx_len: int,
        image_tokens: int = 1,
        tiles: int = 0,
    ) -> None:
        #: By name, as the session takes them.
        self.arrays: dict[str, NDArray[Any]] = {}
        sizes = {
            "batch_size": rows,
            "seq_len": width,
            "vision_size": vision_size,
            "ctx_len": ctx_len,
            "encoder_seq_len": image_tokens,
            "image_tiles": tiles,
        }
        for name, spec in fed.items():
            shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
            self.arrays[name] = np.full(shape, -1 if name in (VISION_INDEX, IMAGE_POSITIONS) else 0, dtype=spec.dtype)
        #: Whose features each row holds: they stay over all chunks of a prompt.
        self._owners: list[RowImages | None] = [None] * rows

    def clear(self) -> None:
        """Makes every place text."""
        for name, value in ((VISION_INDEX, -1), (TILES_SEEN, 0)):
            if name in self.arrays:
                self.arrays[name].fill(value)

    def place_pixels(self, row: int, images: RowImages, number: int) -> None:
        """An image of a row, for a step of one program for images and text that reads it and no tokens."""
        positions = self.arrays[IMAGE_POSITIONS]
        positions.fill(-1)
        tokens = positions.shape[1]
        positions[row] = np.arange(number * tokens, (number + 1) * tokens)
        for name, value in images.pixels[number].items():
            self.arrays[name][...] = value

    def place(self, row: int, images: RowImages, start: int, count: int) -> None:
        """What belongs to `count` tokens of a prompt, or behind it, from position `start` on."""
        prompt = len(images.index)
        known = max(0, min(prompt - start, count))
        if images.sees is not None:
            # What is generated sees what the last token of the prompt sees.
            tokens = np.minimum(np.arange(start, start + count), prompt - 1)
            self.arrays[TILES_SEEN][row, :count, : images.sees.shape[1]] = images.sees[tokens]
            return
        self.arrays[VISION_INDEX][row, :known] = images.index[start : start + known]
        if known and self._owners[row] is not images and len(images.embeds):
            self.arrays[VISION_EMBEDS][row, : len(images.embeds)] = images.embeds
            self._owners[row] = images
        if images.rope is not None:
            positions, shift = images.rope
            target = self.arrays[ROPE_POSITIONS]
            target[:, row, :known] = positions[:, start : start + known]
            target[:, row, known:count] = np.arange(start + known, start + count) + shift
        if TOKEN_TYPES in self.arrays and known:
            kinds = self.arrays[TOKEN_TYPES]
            kinds[row].fill(images.plain_type)
            kinds[row, :prompt] = np.where(images.in_block, 1 - images.plain_type, images.plain_type)
