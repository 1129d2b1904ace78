"""Durable writes, and errors of the operating system in words that help."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qeff_framework.errors import ArtifactError
from qeff_framework.parallel import Claims, part_name

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_PLACES = "(QEFF_HOME, or the output directory)"


def is_disk_full(error: OSError) -> bool:
    """Whether the disk, or the user's quota on it, is used up, or takes no file of this size."""
    return error.errno in _DISK_FULL


@dataclass(frozen=True, kw_only=True)
class _Claim:
    directory: Path
    needed: int
    #: Bytes in the directory when it was made.
    before: int

    def left(self, device: int) -> int:
        """Bytes that are still to be written there, if that is on this device."""
        try:
            same = self.directory.stat().st_dev == device
        except OSError:  # it has ended
            return 0
        return max(0, self.needed - (_size(self.directory) - self.before)) if same else 0


_claims: Claims[_Claim] = Claims()


def require_space(directory: Path, needed: int, what: str) -> None:
    """Raises `ArtifactError` unless the file system of `directory` has `needed` bytes left; `what` is to be written.

    What other parts of `run_parts` have yet to write there counts as well.
    """
    before = _size(directory) if part_name() else 0
    others = _claims.claim(_Claim(directory=directory, needed=needed, before=before))
    beside = sum(each.left(directory.stat().st_dev) for each in others)
    free = shutil.disk_usage(directory).free
    if free < needed + beside:
        told = f" beside {told_bytes(beside)} of the programs that are compiled at the same time" if beside else ""
        instead = ", or compile one program after the other" if beside else ""
        raise ArtifactError(
            f"{what} needs {told_bytes(needed)}{told}, and the disk of {directory} has {told_bytes(free)} left. Free some space, "
            f"or use a larger disk {_PLACES}{instead}"
        )


def _size(directory: Path) -> int:
    """Bytes of the files below `directory`, without those that vanish meanwhile."""
    return sum(size for _, size in sizes_of_files(directory))


def told_bytes(count: float) -> str:
    """So many bytes, in words for people."""
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= size / 10:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


@contextmanager
def os_errors_explained(asked: str, remedy: str) -> Iterator[None]:
    """Turns an `OSError` of the body into an `ArtifactError` that says what was asked and what to do."""
    try:
        yield
    except OSError as error:
        raise explained(error, asked, remedy) from error


def explained(error: OSError, asked: str, remedy: str = "") -> ArtifactError:
    """An error that says what was asked and what to do; `remedy` where the disk is not full."""
    if error.errno == errno.EFBIG:
        remedy = f"Raise the limit of file sizes (ulimit -f), or use a disk that takes such files {_PLACES}"
    elif is_disk_full(error):
        remedy = f"Free some space, or use a larger disk {_PLACES}"
    return ArtifactError(f"{asked}: {error}. {remedy}")


def sync_tree(directory: Path) -> None:
    """Forces every file and directory below `directory`, and itself, to the disk."""
    for parent, _, names in os.walk(directory):
        for name in names:
            file = Path(parent, name)
            # Opening a pipe waits for its other end; what is no file is refused when the files are described.
            if stat.S_ISREG(file.lstat().st_mode):
                sync(file)
        sync(Path(parent))


@contextmanager
def synced_meanwhile(directory: Path) -> Iterator[Future[None]]:
    """Forces large files below `directory` to the disk while the body writes them, so that `sync_tree` finds little to wait for.

    Whoever publishes the files asks for the result first: an `OSError` where the disk has not taken what was written, which a
    system may tell once and never again.
    """
    over = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="qeff sync") as other:
        try:
            yield other.submit(_sync_growing, directory, over)
        finally:
            over.set()


#: Seconds between two looks, and bytes by which a file must have grown.
_LOOK_SECONDS = 0.2
_GROWN_BYTES = 32 * 2**20


def _sync_growing(directory: Path, over: threading.Event) -> None:
    """Forces files to the disk that have grown, until `over` is set."""
    forced: dict[Path, int] = {}
    while not over.wait(_LOOK_SECONDS):
        for file, size in sizes_of_files(directory):
            if size - forced.get(file, 0) >= _GROWN_BYTES and not over.is_set():
                # One that has been moved or deleted is the body's own affair.
                with suppress(FileNotFoundError):
                    sync(file)
                forced[file] = size


def sizes_of_files(directory: Path) -> Iterator[tuple[Path, int]]:
    """The regular files below `directory` with their bytes, without those that vanish meanwhile."""
    for parent, _, names in os.walk(directory):
        for name in names:
            file = Path(parent, name)
            with suppress(OSError):
                found = file.lstat()
                if stat.S_ISREG(found.st_mode):
                    yield file, found.st_size


def sync(path: Path) -> None:
    """Forces one file or directory to the disk."""
    if os.name == "nt":  # read-only handles and directories cannot be synced there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
