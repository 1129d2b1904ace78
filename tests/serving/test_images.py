"""Images of messages: what is opened, and what is refused before anything runs."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest

from qeff_framework.errors import InputError, OptionError
from qeff_framework.serving.http.images import check_pillow, with_opened_images
from qeff_framework.serving.http.transcription import check_soundfile


def url(form: str = "PNG", size: tuple[int, int] = (3, 2), kind: str = "image/png") -> str:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, (250, 0, 0)).save(file, form)
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def deep_url() -> str:
    """A grey picture of 16 bits, which would become white."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.array([[0, 4000]], dtype=np.uint16)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def huge_url() -> str:
    """A picture of one pixel whose header names more than a request may have."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (1, 1)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:20] = (33_554_433).to_bytes(4, "big")  # the width, the first field of the chunk IHDR
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": list(parts)}]


def image(source: Any, **further: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": source, **further}}


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_images_take_the_place_of_their_urls(form: str) -> None:
    system, told = with_opened_images(user(image(url(form)), {"type": "text", "text": "What is it?"}))
    opened, text = told["content"]
    assert system == {"role": "system", "content": "Be brief."}
    assert text == {"type": "text", "text": "What is it?"}
    assert opened["image"].mode == "RGB"
    assert opened["image"].size == (3, 2)
    assert opened["image"].getpixel((1, 1))[0] > 240


def test_a_photograph_stands_upright() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PIL.Image.new("RGB", (3, 2)).save(file, "JPEG", exif=exif)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    _, told = with_opened_images(user(image(source)))
    assert told["content"][0]["image"].size == (2, 3)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (image("http://169.254.169.254/latest"), "the server fetches nothing from elsewhere"),
        (image("file:///etc/passwd"), "the server fetches nothing from elsewhere"),
        (image("data:text/html;base64,AAAA"), "must be a data URL, data:image"),
        (image("data:image/png;base64,A*=="), "is not valid base64"),
        (image("data:image/png;base64,A\u00e4=="), "is not valid base64"),
        (image(deep_url()), r"its numbers are 0 to 4000 \(mode I;16\), and pictures have those of 8 bits"),
        (image(url("BMP")), "cannot be read: cannot identify image file; send PNG, JPEG, WEBP, GIF"),
        (image(url("JPEG", size=(64, 64))[:422]), "cannot be read"),
        (image(huge_url()), "33554433 x 1 pixels, and those of a request may have 33554432 in all"),
        (image(url(), detail="high"), "detail can be 'auto'"),
        (image(5), 'image_url must be {"url"'),
        ({"type": "input_audio"}, "a part of type 'input_audio'; the program reads text, image_url and video_url"),
        ({"type": "image", "path": "/etc/passwd"}, "a part of type 'image'"),
        ("text", "a part of type None"),
    ],
)
def test_what_is_refused(part: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_opened_images(user(part))


def test_the_pixels_of_all_images_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qeff_framework.serving.http.images._MOST_PIXELS", 10_000)
    large = image(url(size=(80, 80)))
    assert len(with_opened_images(user(large))) == 2
    with pytest.raises(InputError, match="in all; send smaller ones"):
        with_opened_images(user(large, large))


@pytest.mark.parametrize(("check", "extra"), [(check_pillow, "vision"), (check_soundfile, "audio")])
def test_a_missing_library_is_named_with_its_extra(
    check: Callable[[], None], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=rf"pip install 'qeff-framework\[{extra}\]'"):
        check()
