"""Directories for unfinished work, recognisable as abandoned when their owner has died.

The owner of ``<name>`` holds the lock file ``<name>.lock`` beside it. It takes the lock before it creates the
directory, so whoever finds the directory and can take the lock knows that the owner is dead: the operating system
releases the locks of dead processes, however they died.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qeff_framework.artifacts.disk import os_errors_explained

_log = logging.getLogger(__name__)

#: A lock file without a directory may belong to an owner that is about to create it. An hour later that is impossible.
_ORPHAN_AGE_SECONDS = 3600.0


@contextmanager
def staging_directory(parent: Path, *, prefix: str, remedy: str) -> Iterator[Path]:
    """An empty directory in `parent`, removed with what is left in it at the end. Rename it away to keep it.

    Raises `ArtifactError`, ending in `remedy`, when `parent` cannot be written to.
    """
    path = parent / f"{prefix}{uuid.uuid4().hex}"
    lock = FileLock(_lock_file(path))
    with os_errors_explained(f"cannot write to {parent}", remedy):
        lock.acquire(timeout=0)
        try:
            path.mkdir()
        except OSError:
            _release(lock, path)
            raise
    try:
        yield path
    finally:
        _remove_tree(path)
        _release(lock, path)


def sweep(parent: Path, *, prefix: str) -> list[Path]:
    """Removes the staging directories in `parent` whose owners are dead; says which.

    What cannot be removed is left to the next run.
    """
    ours = re.compile(re.escape(prefix) + r"[0-9a-f]{32}(\.lock)?")
    removed = []
    try:
        found = sorted(path for path in parent.iterdir() if ours.fullmatch(path.name))
    except OSError as error:
        _log.debug("%s is not swept: %s", parent, error)
        return []
    for path in found:
        try:
            if path.suffix == ".lock":
                _remove_orphan(path)
            elif path.is_dir() and not path.is_symlink() and _remove_abandoned(path):
                removed.append(path)
        except OSError as error:
            _log.debug("%s is not swept: %s", path, error)
    return removed


def _remove_abandoned(path: Path) -> bool:
    lock = FileLock(_lock_file(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        _remove_tree(path)
    finally:
        _release(lock, path)
    _log.info("removed what a killed process had left in %s", path)
    return not path.exists()


def _remove_orphan(lock_file: Path) -> None:
    directory = lock_file.with_name(lock_file.name.removesuffix(".lock"))
    old = time.time() - lock_file.stat().st_mtime > _ORPHAN_AGE_SECONDS
    if old and not directory.exists():
        _remove_abandoned(directory)


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _release(lock: FileLock, path: Path) -> None:
    # Names are never used twice, so nobody can be waiting for this file.
    try:
        _lock_file(path).unlink(missing_ok=True)
    except OSError as error:
        _log.debug("%s stays: %s", _lock_file(path), error)
    lock.release()


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        _log.warning("%s could not be removed completely; a later run tries again", path)
