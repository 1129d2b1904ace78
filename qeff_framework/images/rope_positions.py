"""Positions of several axes for rotary embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What the position of an image token counts from: the position that text would have in the image's place, the number of tokens
#: in front of the image, the number of images in front of it, or nothing.
FOLLOWING, TOKENS, IMAGES, ORIGIN = range(4)
BASES = (FOLLOWING, TOKENS, IMAGES, ORIGIN)


@dataclass(frozen=True, kw_only=True)
class RopeLayout:
    """Where the N tokens of an image of one size stand on A axes."""

    #: ``[A, N]``: the position of each token, less what it counts from.
    offsets: NDArray[np.int64]
    #: ``[A, N]``: what it counts from, one of `BASES`.
    bases: NDArray[np.int64]
    #: By how much the text behind the image is further than the text in front of it.
    advance: int
    #: ``[A, N]``: how many times of a video lie in front of a token, on an axis of seconds; else 0. Not in the offsets.
    times: NDArray[np.int64] | None = None
    #: Positions in a second of such an axis.
    per_second: float = 0.0

    def at(self, seconds: float) -> RopeLayout:
        """The layout of a video whose times are `seconds` apart."""
        if self.times is None:
            return self
        # Single precision: which whole number a product is rounded down to depends on it.
        distance = np.float32(self.per_second) * np.float32(seconds)
        gone = (self.times.astype(np.float32) * distance).astype(np.int64)
        return replace(self, offsets=self.offsets + gone, times=None)

    def as_json(self) -> dict[str, Any]:
        """For the metadata of a program. Axes whose tokens all count from the same name it once."""
        bases = [axis[:1] if len(set(axis)) == 1 else axis for axis in self.bases.tolist()]
        content = {"offsets": self.offsets.tolist(), "bases": bases, "advance": self.advance}
        if self.times is not None:
            content |= {"times": self.times.tolist(), "per_second": self.per_second}
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RopeLayout:
        """What `as_json` has written."""
        offsets = np.asarray(content["offsets"], dtype=np.int64)
        bases = [np.broadcast_to(np.asarray(axis), offsets.shape[1:]) for axis in content["bases"]]
        times = np.asarray(content["times"], dtype=np.int64) if "times" in content else None
        return cls(
            offsets=offsets,
            bases=np.stack(bases).astype(np.int64),
            advance=int(content["advance"]),
            times=times,
            per_second=float(content.get("per_second", 0.0)),
        )


def rope_positions(
    is_image: Sequence[bool] | NDArray[np.bool_], layouts: Sequence[RopeLayout], axes: int
) -> tuple[NDArray[np.int64], int]:
    """Positions ``[A, S]`` of a prompt, and what the position of each later token adds to its number.

    A token of text is one further than the text in front of it, on all axes. `layouts` has an entry for each image, in order.
    """
    positions = np.zeros((axes, len(is_image)), dtype=np.int64)
    place = following = number = 0
    while place < len(is_image):
        if not is_image[place]:
            positions[:, place] = following
            place, following = place + 1, following + 1
            continue
        layout = layouts[number]
        origins = np.array([following, place, number, 0])
        end = place + layout.offsets.shape[1]
        positions[:, place:end] = layout.offsets + origins[layout.bases]
        place, following, number = end, following + layout.advance, number + 1
    return positions, following - len(is_image)
