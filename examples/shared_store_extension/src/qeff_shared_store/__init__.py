"""A store that several machines share, read before something is built and written afterwards, behind fsspec."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Generator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar

import fsspec

from qeff_framework.plugin_api import CompiledModel, CompileRequest, ExportedModel, ExportRequest, hookimpl

logger = logging.getLogger(__name__)

#: Names the place: ``s3://bucket/qeff``, ``gs://...``, ``file:///mnt/share/qeff``.
PLACE_VARIABLE = "QEFF_SHARED_STORE"
INDEX = "index.json"

Result = TypeVar("Result", ExportedModel, CompiledModel)


class SharedStoreExtension:
    """Answers the hooks for exporting and compiling from the shared store, and keeps there what others have built."""

    #: An artifact from the store is the one that would be built here: the key says so.
    changes_program: ClassVar[bool] = False

    def __init__(self) -> None:
        place = os.environ.get(PLACE_VARIABLE)
        if not place:
            raise ValueError(f"{PLACE_VARIABLE} must name the shared store, for instance s3://bucket/qeff")
        self._files, self._root = fsspec.url_to_fs(place)
        #: Keys that came from the store in this process, and need not be put there.
        self._found: set[str] = set()

    @hookimpl(tryfirst=True)
    def export(self, request: ExportRequest) -> ExportedModel | None:
        """The export of this key, if the store has it."""
        return self._fetched(ExportedModel, request)

    @hookimpl(tryfirst=True)
    def compile(self, request: CompileRequest) -> CompiledModel | None:
        """The program of this key, if the store has it."""
        return self._fetched(CompiledModel, request)

    @hookimpl(wrapper=True, specname="export")
    def keep_export(self, request: ExportRequest) -> Generator[None, ExportedModel, ExportedModel]:
        """Puts an export that was made here into the store."""
        return self._kept((yield), request.key)

    @hookimpl(wrapper=True, specname="compile")
    def keep_program(self, request: CompileRequest) -> Generator[None, CompiledModel, CompiledModel]:
        """Puts a program that was compiled here into the store; what a dry run has written is no program."""
        compiled = yield
        return compiled if request.dry_run else self._kept(compiled, request.key)

    # --- the store ----------------------------------------------------------------------------------------------------

    def _fetched(self, kind: type[Result], request: Any) -> Result | None:
        place = f"{self._root}/{request.key}"
        try:
            index = json.loads(self._files.cat_file(f"{place}/{INDEX}"))
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - every file system has errors of its own
            logger.warning("the shared store %s cannot be read, building here: %s", self._root, error)
            return None
        request.progress(f"taking {len(index['files'])} files from the shared store")
        try:
            for name, digest in index["files"].items():
                self._take(f"{place}/{name}", request.output_dir / _inner(name), digest)
            result = kind.load(request.output_dir)
        except Exception as error:  # noqa: BLE001 - as above
            _clear(request.output_dir)
            logger.warning("%s in the shared store cannot be used, building here: %s", request.key[:16], error)
            return None
        # The framework writes the description itself.
        (request.output_dir / kind.FILE).unlink()
        self._found.add(request.key)
        return result

    def _take(self, source: str, target: Path, digest: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._files.get_file(source, str(target))
        if _digest(target) != digest:
            raise ValueError(f"{source} does not fit its digest")

    def _kept(self, result: Result, key: str) -> Result:
        if key in self._found:
            return result
        place, description = f"{self._root}/{key}", result.save()
        try:
            names = [
                path.relative_to(result.directory).as_posix() for path in result.directory.rglob("*") if path.is_file()
            ]
            self._files.makedirs(place, exist_ok=True)
            for name in names:
                self._files.makedirs(f"{place}/{name}".rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(result.directory / name), f"{place}/{name}")
            index = {"files": {name: _digest(result.directory / name) for name in names}}
            # Last: what has no index is not complete, and nobody takes it.
            self._files.pipe_file(f"{place}/{INDEX}", json.dumps(index).encode())
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning("%s is not put into the shared store %s: %s", key[:16], self._root, error)
        finally:
            description.unlink()
        return result


def _inner(name: str) -> str:
    """`name`, if it stays inside of a directory."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"{name!r} leads out of the artifact")
    return name


def _clear(directory: Path) -> None:
    """Makes a directory empty again, as whoever builds next expects it."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
