"""Requests with files that are none: images in messages, and sound in forms, for `http_faults.py`."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import wave
import zlib

_BOUNDARY = b"----boundary"
FORM = f"multipart/form-data; boundary={_BOUNDARY.decode()}"


def picture() -> bytes:
    """A PNG of 28 x 28 pixels."""
    return _png(28, 28, b"\x00" + bytes(3 * 28))


def speech() -> bytes:
    """A WAV of 0.4 s."""
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(16_000)
        written.writeframes(bytes(random.Random(0).randbytes(2 * 6400)))
    return file.getvalue()


def message_with(url: str) -> bytes:
    """A conversation about an image."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "w5"}]
    return json.dumps({"model": "model", "messages": [{"role": "user", "content": parts}], "max_tokens": 4}).encode()


def data_url(content: bytes, kind: str = "image/png") -> str:
    """The content of a file as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def wrong_images(rng: random.Random) -> bytes:
    """A body whose image is none."""
    good = picture()
    cut = good[: rng.randrange(len(good))]
    flipped = bytearray(good)
    flipped[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
    return rng.choice(
        [
            message_with(data_url(cut)),
            message_with(data_url(bytes(flipped))),
            message_with(data_url(rng.randbytes(rng.randrange(300)))),
            message_with(data_url(b"")),
            message_with(data_url(_png(rng.choice([0, 1, 60_000]), rng.choice([0, 1, 60_000]), b"\x00"))),
            message_with(data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")),
            message_with(data_url(good)[: rng.randrange(60)]),
            message_with(data_url(good).replace("A", rng.choice(["%", "\u00e4", "\n", "="]), 3)),
            message_with(
                rng.choice(["", "data:", "data:,", "http://127.0.0.1:1/a.png", "file:///etc/passwd", "/etc/passwd"])
            ),
            message_with("data:image/png;base64," + "A" * rng.choice([1, 1000, 1_000_000])),
            message_with(data_url(good)).replace(b'"url"', rng.choice([b'"uri"', b'"url": 5, "a"', b'"detail"'])),
            message_with(data_url(good)).replace(b'"user"', rng.choice([b'"system"', b'"tool"', b'"assistant"', b"5"])),
            _many(rng.choice([2, 50, 2000]), good),
        ]
    )


def form(fields: dict[str, bytes], content: bytes, name: bytes = b"a.wav") -> bytes:
    """A form with a file."""
    parts = [b'name="%s"\r\n\r\n%s' % (key.encode(), value) for key, value in fields.items()]
    parts.append(b'name="file"; filename="%s"\r\nContent-Type: audio/wav\r\n\r\n%s' % (name, content))
    told = b"".join(b"--%s\r\nContent-Disposition: form-data; %s\r\n" % (_BOUNDARY, part) for part in parts)
    return told + b"--%s--\r\n" % _BOUNDARY


def wrong_sounds(rng: random.Random) -> bytes:
    """A form whose sound is none, or that is none itself."""
    good, model = speech(), {"model": b"model"}
    cut = good[: rng.randrange(len(good))]
    header = bytearray(good)
    header[rng.randrange(44)] = rng.randrange(256)
    sizes = good[:40] + struct.pack("<I", rng.choice([0, 1, 2**31, 2**32 - 1])) + good[44:]
    return rng.choice(
        [
            form(model, b""),
            form(model, cut),
            form(model, bytes(header)),
            form(model, sizes),
            form(model, rng.randbytes(rng.randrange(2000))),
            form(model, b"hello, I am text\n"),
            form(model, good, rng.choice([b"", b"../../a.wav", b"a" * 5000, b"\xff\xfe.wav", b"a\x00.wav"])),
            form(model | {"language": rng.choice([b"klingon", b"", b"\xff", b"e" * 10_000])}, good),
            form(model | {"response_format": rng.choice([b"mp3", b"", b"verbose_json"])}, good),
            form(model | {"temperature": rng.choice([b"NaN", b"-1", b"1e999", b"x", b"1"])}, good),
            form(model | {"prompt": rng.choice([b"", b"\xf0\x9f", b"w " * 50_000])}, good),
            form(model | {"stream": b"true"}, good),
            form({}, good),
            form({"model": b"another"}, good),
            form(model, good)[: rng.randrange(400)],
            form(model, good).replace(_BOUNDARY, b"--other", rng.randrange(1, 4)),
            form(model, good).replace(b'name="file"', rng.choice([b'name="files"', b"name=file", b""])),
            json.dumps({"model": "model", "file": "a.wav"}).encode(),
        ]
    )


def _many(count: int, image: bytes) -> bytes:
    part = {"type": "image_url", "image_url": {"url": data_url(image)}}
    content = [part] * count
    return json.dumps({"model": "model", "messages": [{"role": "user", "content": content}], "max_tokens": 4}).encode()


def _png(width: int, height: int, row: bytes) -> bytes:
    """A PNG that tells of a size, with so many equal rows as it has at most 100 of."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * min(height, 100))),
        (b"IEND", b""),
    ]
    told = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(told)
