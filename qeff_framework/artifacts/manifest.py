"""The manifest of an artifact: which files it consists of, and whether they are what was published."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import ClassVar, Self, TypeVar

from qeff_framework.artifacts.digests import file_sha256, sha256_as_written
from qeff_framework.artifacts.json_values import Json
from qeff_framework.contracts import COMPANIONS
from qeff_framework.errors import ArtifactCorruptError, ArtifactError

T = TypeVar("T")

#: Files up to this size are read at each check: that takes no time worth sparing.
ALWAYS_READ_BYTES = 1 << 20


class ProblemKind(StrEnum):
    """What can be wrong with an artifact."""

    NO_MANIFEST = "no manifest"
    BROKEN_MANIFEST = "broken manifest"
    UNKNOWN_FORMAT = "unknown format"
    UNSAFE_NAME = "unsafe name"
    MISSING = "missing"
    NOT_A_FILE = "not a file"
    TRUNCATED = "truncated"
    GROWN = "grown"
    ALTERED = "altered"
    UNREADABLE = "unreadable"
    UNLISTED = "unlisted"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with an artifact; as text it reads ``file detail``."""

    #: Relative to the artifact's directory.
    file: str
    kind: ProblemKind
    detail: str

    def __str__(self) -> str:
        return f"{self.file} {self.detail}"


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file was when it was published."""

    size: int
    sha256: str
    mtime_ns: int
    #: Of the file that was published; a copy has others. They also move when a tool sets the old modification time after writing.
    ctime_ns: int | None = None
    inode: int | None = None

    @classmethod
    def of(cls, found: os.stat_result, sha256: str) -> Self:
        """The record of a file with these facts."""
        return cls(
            size=found.st_size,
            sha256=sha256,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
            inode=found.st_ino,
        )

    def looks_untouched(self, found: os.stat_result) -> bool:
        """Whether size and time stamps are the recorded ones."""
        is_published_file = found.st_ino == self.inode
        return (
            found.st_size == self.size
            and found.st_mtime_ns == self.mtime_ns
            and (not is_published_file or found.st_ctime_ns == self.ctime_ns)
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """``manifest.json``: identity and files of an artifact. File names are relative, with ``/``.

    Readers ignore fields that they do not know; a change that they must not ignore gets a new format number.
    """

    FILE: ClassVar[str] = "manifest.json"
    FORMAT: ClassVar[int] = 1

    kind: str
    key: str
    #: What the key was computed from, for people.
    key_parts: Mapping[str, Json]
    label: str
    created: datetime
    files: Mapping[str, FileRecord]
    core_version: str

    @classmethod
    def describe(
        cls,
        directory: Path,
        *,
        kind: str,
        key: str,
        key_parts: Mapping[str, Json],
        label: str,
        shared: Mapping[str, str] | None = None,
    ) -> Self:
        """Hashes every file of `directory`, which has no manifest so far; reads those that no `DigestingFile` has written.

        `shared` has the digests of files that have other names elsewhere, such as a checkpoint's own; they are not read. Each new
        name moves the time of their last change, so that they are recorded as a copy is: without it.

        Raises `ArtifactError` when there is no file, or one that an artifact cannot carry: a link, a device,
        ``manifest.json``.
        """
        files = {}
        for name in sorted(_names(directory)):
            path = directory / name
            found = path.lstat()
            if name == cls.FILE or not _is_safe(name) or not stat.S_ISREG(found.st_mode):
                raise ArtifactError(
                    f"{name if name.isprintable() else ascii(name)} cannot be part of an artifact: "
                    f"it must be a regular file with a portable name, and not {cls.FILE}"
                )
            known = (shared or {}).get(name)
            files[name] = (
                FileRecord.of(found, sha256_as_written(found) or file_sha256(path))
                if known is None
                else FileRecord(size=found.st_size, sha256=known, mtime_ns=found.st_mtime_ns)
            )
        if not files:
            raise ArtifactError("no file was written: an artifact has at least one")
        return cls(
            kind=kind,
            key=key,
            key_parts=key_parts,
            label=label,
            created=datetime.now(UTC).replace(microsecond=0),
            files=files,
            core_version=_core_version(),
        )

    def save(self, directory: Path) -> Path:
        """Writes ``manifest.json`` into `directory`."""
        files = {
            name: {fact: value for fact, value in asdict(record).items() if value is not None}
            for name, record in self.files.items()
        }
        content = {"format": self.FORMAT, **asdict(self), "files": files, "created": self.created.isoformat()}
        path = directory / self.FILE
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return path

    @staticmethod
    def load(directory: Path) -> Manifest:
        """Reads the manifest of an artifact; does not look at the files.

        Raises `ArtifactCorruptError` when the manifest is damaged, `ArtifactError` when there is none or its format is
        unknown.
        """
        found = _read(directory)
        if isinstance(found, Manifest):
            return found
        damaged = found.kind not in (ProblemKind.NO_MANIFEST, ProblemKind.UNKNOWN_FORMAT)
        error = ArtifactCorruptError if damaged else ArtifactError
        remedy = ". Delete the directory and build the artifact again" if damaged else ""
        raise error(f"{directory} cannot be used as an artifact: {found}{remedy}")


def verify(directory: Path, full: bool = False) -> list[Problem]:
    """Compares the files of an artifact with its manifest; an empty list means that it is intact.

    Every listed file must be there, as a regular file inside of the directory, with its recorded size. Files up to
    `ALWAYS_READ_BYTES` are read and their hashes compared at each call. So are larger ones, unless their time stamps are the
    recorded ones: the modification time and, of the very file that was published, the time of its last change of any kind. A
    change under the old size and the old modification time is thus missed in a copy, and in a file that the artifact shares with
    its checkpoint, only. Unlisted files are problems where an
    artifact would be read differently with them (`COMPANIONS`).

    With `full` every file is read, and every unlisted file is a problem.
    """
    manifest = _read(directory)
    if isinstance(manifest, Problem):
        return [manifest]
    problems = [
        problem
        for name, record in manifest.files.items()
        if (problem := _check(directory, name, record, always_read=full))
    ]
    # A link in place of a folder shows as its files already.
    folders = {str(parent) for name in manifest.files for parent in PurePosixPath(name).parents}
    unlisted = set(_names(directory)) - {Manifest.FILE, *manifest.files, *folders}
    return problems + [
        Problem(file=name, kind=ProblemKind.UNLISTED, detail="is not listed in the manifest")
        for name in sorted(unlisted)
        if full or name.partition("/")[0] in COMPANIONS
    ]


def _read(directory: Path) -> Manifest | Problem:
    try:
        content = json.loads((directory / Manifest.FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return _manifest_problem(ProblemKind.NO_MANIFEST, "is missing: this is not a directory that qeff has published")
    except OSError as error:
        return _manifest_problem(ProblemKind.UNREADABLE, f"cannot be read: {error}")
    except (ValueError, RecursionError) as error:
        return _manifest_problem(ProblemKind.BROKEN_MANIFEST, f"is not valid JSON: {error}")
    if not isinstance(content, dict) or "format" not in content:
        return _manifest_problem(ProblemKind.BROKEN_MANIFEST, "is not the manifest of an artifact")
    if content["format"] != Manifest.FORMAT:
        return _manifest_problem(
            ProblemKind.UNKNOWN_FORMAT,
            f"has format {content['format']!r}, and this qeff-framework reads format {Manifest.FORMAT}: "
            "upgrade qeff-framework, or build the artifact again",
        )
    return _parse(content)


def _parse(content: dict[str, Json]) -> Manifest | Problem:
    try:
        manifest = Manifest(
            kind=_typed(content, "kind", str),
            key=_typed(content, "key", str),
            key_parts=_typed(content, "key_parts", dict),
            label=_typed(content, "label", str),
            created=datetime.fromisoformat(_typed(content, "created", str)).astimezone(UTC),
            files={name: _record(record) for name, record in _typed(content, "files", dict).items()},
            core_version=_typed(content, "core_version", str),
        )
    except (KeyError, TypeError, ValueError) as error:
        return _manifest_problem(ProblemKind.BROKEN_MANIFEST, f"lacks or misnames a field: {error}")
    for name in manifest.files:
        if not _is_safe(name):
            return _manifest_problem(
                ProblemKind.UNSAFE_NAME,
                f"lists {name!r}, which could lie outside the directory: it was not written by qeff",
            )
    return manifest


def _record(content: Json) -> FileRecord:
    if not isinstance(content, dict):
        raise TypeError("'files' does not hold records")
    return FileRecord(
        size=_typed(content, "size", int),
        sha256=_typed(content, "sha256", str),
        mtime_ns=_typed(content, "mtime_ns", int),
        ctime_ns=_typed(content, "ctime_ns", int) if "ctime_ns" in content else None,
        inode=_typed(content, "inode", int) if "inode" in content else None,
    )


def _check(directory: Path, name: str, record: FileRecord, *, always_read: bool) -> Problem | None:
    path = directory / name
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or Path(os.path.realpath(path)) != (
            Path(os.path.realpath(directory)) / name
        ):
            return Problem(
                file=name,
                kind=ProblemKind.NOT_A_FILE,
                detail="is not a regular file of this directory, or is behind a link",
            )
        if found.st_size != record.size:
            return _size_problem(name, found.st_size, record.size)
        if not always_read and record.size > ALWAYS_READ_BYTES and record.looks_untouched(found):
            return None
        sha256 = file_sha256(path)
    except (FileNotFoundError, NotADirectoryError):
        return Problem(file=name, kind=ProblemKind.MISSING, detail="is missing")
    except OSError as error:
        return Problem(file=name, kind=ProblemKind.UNREADABLE, detail=f"cannot be read: {error}")
    if sha256 == record.sha256:
        return None
    return Problem(
        file=name,
        kind=ProblemKind.ALTERED,
        detail=f"was altered: its SHA-256 is {sha256[:16]}... instead of {record.sha256[:16]}...",
    )


def _size_problem(name: str, found: int, expected: int) -> Problem:
    if found < expected:
        return Problem(file=name, kind=ProblemKind.TRUNCATED, detail=f"is truncated: {found} of {expected} bytes")
    return Problem(file=name, kind=ProblemKind.GROWN, detail=f"has grown: {found} bytes instead of {expected}")


def _manifest_problem(kind: ProblemKind, detail: str) -> Problem:
    return Problem(file=Manifest.FILE, kind=kind, detail=detail)


def _typed(content: Mapping[str, Json], name: str, kind: type[T]) -> T:
    value = content[name]
    if not isinstance(value, kind):
        raise TypeError(f"'{name}' is not {kind.__name__}")
    return value


def _is_safe(name: str) -> bool:
    """Whether `name` is a relative path in its simplest form that stays inside its directory on every system."""
    path = PurePosixPath(name)
    return (
        name not in ("", ".", Manifest.FILE)
        and str(path) == name
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        # Neither a control character, nor half of a surrogate pair: bytes that are no UTF-8.
        and name.isprintable()
    )


def _names(directory: Path) -> Iterator[str]:
    """Relative names of everything below `directory` that is not a directory; links are not followed."""
    for parent, directories, files in os.walk(directory):
        links = [name for name in directories if Path(parent, name).is_symlink()]
        for name in (*files, *links):
            yield Path(parent, name).relative_to(directory).as_posix()


def _core_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("qeff-framework")
    except PackageNotFoundError:
        return "not installed"
