"""Images and videos in the messages of a chat: opened from data URLs, never fetched from elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import InputError, OptionError
from qeff_framework.images.upright import upright_rgb
from qeff_framework.runtime.video_files import MOST_PIXELS, VideoFile, read_video

if TYPE_CHECKING:
    from PIL.Image import Image

_DATA_URL = re.compile(r"data:(image|video)/[\w.+-]+(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
#: Those that OpenAI's interface names.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
#: Of all images of a request: a small file can hold very many.
_MOST_PIXELS = 2**25
#: What `image_url.detail` may be: an image is resized to what the program was compiled for.
_DETAILS = (None, "auto")


def check_pillow() -> None:
    """Raises `OptionError` where images cannot be opened."""
    from importlib.util import find_spec

    if find_spec("PIL") is None:
        raise OptionError(
            "programs of images need Pillow, which is not installed here: pip install 'qeff-framework[vision]'"
        )


def with_opened_images(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with ``{"type": "image", "image": ...}`` in the place of each ``image_url``; so of each ``video_url``.

    Raises `InputError` for what is elsewhere, too large, damaged or of another format, and for other parts.
    """
    opened, pixels, moving = [], 0, 0
    for number, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):
            opened.append(message)
            continue
        parts: list[dict[str, Any]] = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                parts.append({"type": "text", "text": part["text"]})
            elif kind == "image_url":
                image = _opened(part.get("image_url"), f"message {number}", _MOST_PIXELS - pixels)
                pixels += image.width * image.height
                parts.append({"type": "image", "image": image})
            elif kind == "video_url":
                video = _opened_video(part.get("video_url"), f"message {number}", MOST_PIXELS - moving)
                moving += video.total_frames * video.width * video.height
                parts.append({"type": "video", "video": video})
            else:
                raise InputError(
                    f"message {number} holds a part of type {kind!r}; the program reads text, image_url and video_url"
                )
        opened.append({**message, "content": parts})
    return opened


def _opened(given: Any, place: str, most_pixels: int) -> Image:
    """An image in RGB, turned as its EXIF data say (photographs of telephones)."""
    from PIL import Image

    if isinstance(given, dict) and given.get("detail") not in _DETAILS:
        raise InputError(
            f"{place}: image_url.detail can be 'auto': an image gets the size that the program was made for"
        )
    content = _content(given, place, "image", "png", ("url", "detail"))
    try:
        with Image.open(BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > most_pixels:
                raise InputError(
                    f"{place}: an image has {image.width} x {image.height} pixels, and those of a request may have "
                    f"{_MOST_PIXELS} in all; send smaller ones"
                )
            return upright_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{place}: the image cannot be read: {_without_address(error)}; send {', '.join(_FORMATS)}"
        ) from error


def _opened_video(given: Any, place: str, most_pixels: int) -> VideoFile:
    return read_video(f"of {place}", _content(given, place, "video", "mp4", ("url",)), most_pixels=most_pixels)


def _content(given: Any, place: str, kind: str, example: str, keys: Sequence[str]) -> bytes:
    """What a data URL of this kind holds."""
    described = given if isinstance(given, dict) else {"url": given}
    url = described.get("url")
    if not isinstance(url, str) or described.keys() - set(keys):
        raise InputError(f'{place}: {kind}_url must be {{"url": "data:{kind}/{example};base64,..."}}')
    head = _DATA_URL.match(url)
    if head is None or head[1] != kind:
        raise InputError(
            f"{place}: {kind}_url must be a data URL, data:{kind}/{example};base64,...: the server fetches nothing from "
            f"elsewhere, neither addresses of other hosts nor files; send the {kind} itself"
        )
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except ValueError as error:  # of characters that are not ASCII too
        raise InputError(f"{place}: the {kind} is not valid base64: {error}") from error


def _without_address(error: Exception) -> str:
    """Pillow names the object that it read from, by its address in memory."""
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error))
