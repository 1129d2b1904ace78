"""SHA-256 of files, remembered by their stat so that a large checkpoint is read once."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock

from qeff_framework.errors import ArtifactError

_log = logging.getLogger(__name__)

_FORMAT = 1

#: Smaller files are read each time: that costs less than the memo does.
MEMO_MIN_BYTES = 1 << 20

#: A younger file may change again and keep its time stamp: file systems count in steps of up to 2 s.
MEMO_MIN_AGE_NS = 2_000_000_000


_SAVE_TIMEOUT_SECONDS = 2.0


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits. The holes of a sparse file are not read."""
    # Unbuffered: file_digest reads large blocks into a buffer of its own, a second copy would only cost time.
    with path.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if hasattr(os, "SEEK_DATA") and found.st_blocks * _STAT_BLOCK_BYTES < found.st_size:
            return _sparse_sha256(file, found.st_size).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


#: Unit of ``st_blocks``, whatever the file system's own blocks are.
_STAT_BLOCK_BYTES = 512
_ZEROS = bytes(1 << 20)


def _sparse_sha256(file: FileIO, size: int) -> hashlib._Hash:
    """Of a file with holes: the bytes of a hole are zeros, which are fed without reading them."""
    result = hashlib.sha256()
    position = 0
    while position < size:
        data = min(size, _first(file, position, os.SEEK_DATA, default=size))
        if data > position:
            result = _zeros_sha256(data) if position == 0 else _fed(result, data - position)
        end = min(size, _first(file, data, os.SEEK_HOLE, default=size))
        file.seek(data)
        pending = end - data
        while pending and (block := file.read(min(pending, len(_ZEROS)))):
            result.update(block)
            pending -= len(block)
        if pending:
            break  # The file was cut meanwhile: what watches it says so.
        position = end
    return result


def _first(file: FileIO, position: int, kind: int, *, default: int) -> int:
    """Where the next data, or the next hole, begins; `default` where there is none."""
    try:
        return os.lseek(file.fileno(), position, kind)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return default


def _zeros_sha256(count: int) -> hashlib._Hash:
    """The state after so many zeros from the beginning. Files of a model that is all holes are alike, so states are kept."""
    known = max(length for length in list(_zeros_states) if length <= count)
    state = _fed(_zeros_states[known].copy(), count - known)
    if len(_zeros_states) < _MOST_STATES:
        _zeros_states[count] = state.copy()
    return state


def _fed(state: hashlib._Hash, zeros: int) -> hashlib._Hash:
    for _ in range(zeros // len(_ZEROS)):
        state.update(_ZEROS)
    state.update(_ZEROS[: zeros % len(_ZEROS)])
    return state


_MOST_STATES = 64
_zeros_states = {0: hashlib.sha256()}


class DigestingFile:
    """A new file whose SHA-256 is computed while it is written, so that a manifest need not read it again.

    It has no ``fileno``: whatever wrote past this object would not be in the digest.
    """

    def __init__(self, path: Path) -> None:
        """A file of that name is replaced; who has it open keeps it."""
        path.unlink(missing_ok=True)
        self._path = path
        self._file = path.open("xb", buffering=0)
        self._digest = hashlib.sha256()

    def write(self, content: bytes | memoryview) -> int:
        """Writes all of `content`."""
        octets = memoryview(content).cast("B")
        self._digest.update(octets)
        written = 0
        while written < len(octets):
            written += self._file.write(octets[written:]) or 0
        return written

    def writelines(self, contents: Iterable[bytes | memoryview]) -> None:
        """Writes one after the other."""
        for content in contents:
            self.write(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is not None:
                self._path.unlink(missing_ok=True)
            else:
                descriptor = self._file.fileno()
                found = os.fstat(descriptor)
                # Earlier than the clock can be: otherwise a later write within its step would leave the time as it is.
                os.utime(descriptor, ns=(found.st_atime_ns, found.st_mtime_ns - 1))
                _written[_file_identity(os.fstat(descriptor))] = self._digest.hexdigest()


def sha256_as_written(found: os.stat_result) -> str | None:
    """SHA-256 of a file with these facts, where a `DigestingFile` has written it and nobody since; told once."""
    return _written.pop(_file_identity(found), None)


def _file_identity(found: os.stat_result) -> tuple[int | str, ...]:
    return (found.st_dev, *_identity(found))


_written: dict[tuple[int | str, ...], str] = {}


class DigestMemo:
    """Digests of files as long as size, time stamps and inode stay what they were.

    The memo saves time and decides nothing else: when its file is missing, damaged or not writable, the files are read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = _load(file)
        self._new: dict[str, list[int | str]] = {}

    def digest(self, path: Path) -> str:
        """SHA-256 of a regular file. Raises `ArtifactError` when `path` is none, or changes while it is read."""
        before = path.stat()
        if not stat.S_ISREG(before.st_mode):
            raise ArtifactError(f"cannot compute the digest of {path}: it is not a regular file")
        name = os.path.realpath(path)
        identity = _identity(before)
        entry = self._known.get(name)
        if entry and entry[:-1] == identity:
            return str(entry[-1])
        self._known.pop(name, None)
        result = file_sha256(path)
        if _identity(path.stat()) != identity:
            raise ArtifactError(
                f"cannot compute the digest of {path}: it changed while it was read. Wait until it is complete"
            )
        if before.st_size >= MEMO_MIN_BYTES and time.time_ns() - before.st_mtime_ns >= MEMO_MIN_AGE_NS:
            self._new[name] = [*identity, result]
        return result

    def renew_links(self, before: os.stat_result, after: os.stat_result) -> None:
        """Takes what is known of the file with the facts `before`, under all its names, for the one with the facts `after`."""
        old = _identity(before)
        self._new |= {name: [*_identity(after), entry[-1]] for name, entry in self._known.items() if entry[:-1] == old}

    def save(self) -> None:
        """Writes the memo if there is something new. Entries of files that have gone are dropped."""
        if not self._new:
            return
        temporary = self._file.with_name(f"{self._file.name}.tmp")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._file.with_name(f"{self._file.name}.lock"), timeout=_SAVE_TIMEOUT_SECONDS):
                # Read again: another process may have written since.
                files = {**_load(self._file), **self._new}
                present = {name: entry for name, entry in files.items() if Path(name).exists()}
                temporary.write_text(json.dumps({"format": _FORMAT, "files": present}), encoding="utf-8")
                temporary.replace(self._file)
        except OSError as error:  # filelock's Timeout is one
            _log.debug("digests are not remembered: %s", error)


def _identity(found: os.stat_result) -> list[int | str]:
    # ctime also moves when a tool restores the old mtime after writing.
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _load(file: Path) -> dict[str, list[int | str]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            return {}
        return {name: list(entry) for name, entry in content["files"].items() if len(entry) == 5}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.debug("%s is not used: %s", file, error)
        return {}
