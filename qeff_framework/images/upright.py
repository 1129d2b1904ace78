"""Pictures from files as processors take them: upright, in RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

#: The greatest value of a channel of RGB.
_MOST = 255


def upright_rgb(image: Image) -> Image:
    """The picture in RGB, turned as its EXIF data say (photographs of telephones).

    Raises:
        ValueError: its numbers are none of 8 bits, so that it would become black or white.
    """
    from PIL import ImageOps

    if image.mode.startswith(("I", "F")):
        low, high = (float(each) for each in image.getextrema())  # type: ignore[arg-type]  # of one channel
        if low < 0 or high > _MOST or (image.mode == "F" and high <= 1):
            raise ValueError(
                f"its numbers are {low:g} to {high:g} (mode {image.mode}), and pictures have those of 8 bits, 0 to {_MOST}: "
                "scale it and save it with 8 bits per channel"
            )
    return ImageOps.exif_transpose(image).convert("RGB")
