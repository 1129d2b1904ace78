"""The container `programqpc.bin` (row C23).

The header starts as the published container format does: magic, major, minor, compression type, size, base. Image count and
segment table follow it; the byte layout of that table and the content of the segments are the stand-in's own, since the real
ones are for the device only. A plugin has no business reading any of it.

Segments: `networkdesc.bin` (JSON description of the program), `iodesc.bin` (IO descriptor), `constantsdesc.bin` (JSON table of
the constants), `network.elf` (the reference graph without large weights), `constants.bin` (weights), optional `*.crc`.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAGIC = 0x00A1CD7C
MAJOR = 0
MINOR = 1
PROGRAM_FILE = "programqpc.bin"

NETWORK_DESCRIPTION = "networkdesc.bin"
IO_DESCRIPTION = "iodesc.bin"
CONSTANTS_DESCRIPTION = "constantsdesc.bin"
NETWORK = "network.elf"
CONSTANTS = "constants.bin"

_HEADER = struct.Struct("<IBBHQQ")
_COUNT = struct.Struct("<Q")
_ENTRY = struct.Struct("<QQ32sQ")
_COMPRESSION_FAST = 0
# The format asks for 8; ONNX Runtime maps the weights in place, and vector loads are happier with 64.
_ALIGNMENT = 64


class QpcError(Exception):
    """The file is not a complete stand-in container."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Place of one segment in the file."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class QpcFile:
    """An opened container."""

    path: Path
    segments: dict[str, Segment]

    def read(self, name: str) -> bytes:
        """The bytes of one segment."""
        segment = self.segments[name]
        with self.path.open("rb") as handle:
            handle.seek(segment.offset)
            return handle.read(segment.size)


def write_qpc(path: Path, segments: Sequence[tuple[str, bytes | Path]], *, with_crc: bool = False) -> None:
    """Write a container. A `Path` segment is copied from that file, so that weights are never held in memory.

    The caller gives a temporary name and renames it, so that a reader never sees a part of the file.
    """
    parts: list[tuple[str, bytes | Path]] = list(segments)
    if with_crc:
        parts += [(f"{name}.crc", struct.pack("<I", _crc(content))) for name, content in segments]
    offset = _aligned(_HEADER.size + _COUNT.size + len(parts) * _ENTRY.size)
    base = offset
    placed = []
    for name, content in parts:
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        placed.append((Segment(name=name, offset=offset, size=size), content))
        offset = _aligned(offset + size)
    with path.open("wb") as handle:
        handle.write(_HEADER.pack(MAGIC, MAJOR, MINOR, _COMPRESSION_FAST, offset, base))
        handle.write(_COUNT.pack(len(placed)))
        for segment, _ in placed:
            handle.write(_ENTRY.pack(segment.size, segment.offset, segment.name.encode(), 0))
        for segment, content in placed:
            handle.write(b"\0" * (segment.offset - handle.tell()))
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, handle, 16 * 1024 * 1024)
            else:
                handle.write(content)
        handle.write(b"\0" * (offset - handle.tell()))


def open_qpc(path: Path) -> QpcFile:
    """Open a container and check that it is complete.

    Raises:
        QpcError: missing, truncated, not a container, or a segment's CRC is wrong.
    """
    if not path.is_file():
        raise QpcError(f"no such file: {path}")
    length = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(_HEADER.size + _COUNT.size)
        if len(head) < _HEADER.size + _COUNT.size:
            raise QpcError(f"{path} is too short for a header")
        magic, major, minor, _, size, _ = _HEADER.unpack_from(head)
        if (magic, major, minor) != (MAGIC, MAJOR, MINOR):
            raise QpcError(f"{path} has magic {magic:#x} version {major}.{minor}")
        if size != length:
            raise QpcError(f"{path} is truncated: {length} of {size} bytes")
        (count,) = _COUNT.unpack_from(head, _HEADER.size)
        table = handle.read(count * _ENTRY.size)
    segments = {}
    for segment_size, offset, raw_name, _ in _ENTRY.iter_unpack(table):
        name = raw_name.rstrip(b"\0").decode()
        segments[name] = Segment(name=name, offset=offset, size=segment_size)
    opened = QpcFile(path=path, segments=segments)
    for name in segments:
        if f"{name}.crc" in segments and opened.read(f"{name}.crc") != struct.pack("<I", zlib.crc32(opened.read(name))):
            raise QpcError(f"{path}: wrong CRC of segment {name}")
    return opened


def _crc(content: bytes | Path) -> int:
    if isinstance(content, bytes):
        return zlib.crc32(content)
    value = 0
    with content.open("rb") as handle:
        while block := handle.read(16 * 1024 * 1024):
            value = zlib.crc32(block, value)
    return value


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
