"""Cache keys: hashes of everything that changes a result, and of nothing else.

Never put paths, times or unrelated environment into a key. A file enters a key as its `content_digest`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from qeff_framework.artifacts.digests import DigestMemo
from qeff_framework.artifacts.json_values import Json, to_json_value
from qeff_framework.artifacts.root import store_root
from qeff_framework.errors import ArtifactError

#: Name of the digest memo in the root of a store.
MEMO_FILE = "digests.json"


def key_value(value: object, place: str = "") -> Json:
    """`value` as the plain JSON that enters a key. Raises `ArtifactError` for NaN, paths and unknown objects."""
    return to_json_value(value, _refuse, place)


def canonical_json(value: object) -> str:
    """The one text for `value`: sorted keys, no blanks, ASCII only.

    Values that mean the same in JSON share it: a tuple and a list, a dataclass and the dict of its fields, an enum
    member and its value. Raises `ArtifactError` for NaN, paths and unknown kinds of objects.
    """
    return json.dumps(key_value(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def cache_key(parts: Mapping[str, object]) -> str:
    """SHA-256 of the canonical JSON of `parts`, 64 hex digits. Directory names use the first 16."""
    return hashlib.sha256(canonical_json(parts).encode("ascii")).hexdigest()


def content_digest(path: Path, *, memo: Path | None = None) -> str:
    """SHA-256 of what `path` contains, 64 hex digits: of a file's bytes, or of a directory's files by relative name.

    Every file below a directory counts, hidden ones too; symbolic links are followed. Digests of large files are
    remembered in the JSON file `memo` (by default ``digests.json`` in the store's root), see `DigestMemo`. Raises
    `ArtifactError` for what cannot be read, is neither file nor directory, or changes meanwhile.
    """
    digests = DigestMemo(memo or store_root() / MEMO_FILE)
    try:
        if path.is_dir():
            named = {file.relative_to(path).as_posix(): digests.digest(file) for file in _files(path)}
            result = cache_key(named)
        else:
            result = digests.digest(path)
    except OSError as error:
        raise ArtifactError(f"cannot compute the digest of {path}: {error}") from error
    digests.save()
    return result


def _files(directory: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    real = os.path.realpath(directory)
    if real in above:
        raise ArtifactError(f"cannot compute the digest of {directory}: it links to a directory above itself")
    for path in sorted(directory.iterdir()):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            yield from _files(path, (*above, real))
        else:
            yield path


def _refuse(value: object, place: str) -> Json:
    where = f"key part '{place}'" if place else "a key"
    if isinstance(value, (PurePath, os.PathLike)):
        raise ArtifactError(
            f"{where} is the path {os.fspath(value)!r}, and a key must not depend on where a file lies: "
            "put content_digest(path) there"
        )
    raise ArtifactError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which has no canonical form: "
        "put text, numbers, lists, dicts, enums or dataclasses there"
    )
