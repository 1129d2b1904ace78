"""Source code whose version says nothing about it, as a part of keys: the core's own, and that of a plugin which is an editable
install or a class that was passed as it is.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from qeff_framework.sources.fingerprint import NotIdentifiableError

#: Folders below a package that hold no source.
_NOT_SOURCE = ("__pycache__",)
#: Rooms of the core that no export or compilation imports.
_BESIDE_RESULTS = ("backend_template", "bench", "cli", "compare", "coverage", "scale", "serving", "testing")


@functools.cache
def core_digest() -> str:
    """SHA-256 over the files of the core that can change an export or a program. Takes 0.02 s once in a process."""
    return source_digest([__name__], without=_BESIDE_RESULTS)


def source_digest(modules: Iterable[str], *, without: Iterable[str] = ()) -> str:
    """SHA-256 over the files of the packages that `modules` belong to, 64 hex digits. Nothing is imported that is not yet.

    Of a module in a regular package the whole outermost package counts, since it may import anything of it, but for its folders
    `without`; of another module its file.

    Raises:
        NotIdentifiableError: a module has no file, as in a notebook, or a file cannot be read.
    """
    digest = hashlib.sha256()
    left_out = (*_NOT_SOURCE, *without)
    files = {name: file for module in modules for name, file in _files_of(module, left_out)}
    for name, file in sorted(files.items()):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise NotIdentifiableError(f"{file} cannot be read: {error}") from error
        digest.update(f"{name}|{len(content)}|".encode())
        digest.update(content)
    return digest.hexdigest()


def _files_of(module: str, left_out: Iterable[str]) -> Iterator[tuple[str, Path]]:
    top = module.partition(".")[0]
    locations = _locations(top)
    if not locations:
        file = _file_of(module)
        yield file.name, file
    for location in locations:
        for parent, folders, names in os.walk(location):
            folders[:] = [name for name in folders if name not in left_out]
            for name in names:
                file = Path(parent, name)
                yield f"{top}/{file.relative_to(location).as_posix()}", file


def _locations(top: str) -> list[Path]:
    """Folders of a regular package; empty for anything else."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None or spec.origin is None:
        return []
    return [Path(place) for place in spec.submodule_search_locations or ()]


def _file_of(module: str) -> Path:
    loaded = sys.modules.get(module)
    name = getattr(loaded, "__file__", None)
    if name is None and loaded is None:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        name = spec.origin if spec else None
    if name is None:
        raise NotIdentifiableError(f"module '{module}' has no file")
    return Path(name)
