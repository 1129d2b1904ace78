"""Files of an artifact that are other names of a file elsewhere: hard links, which take no disk and are not read again."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from qeff_framework.artifacts.digests import DigestMemo, file_sha256
from qeff_framework.artifacts.keys import MEMO_FILE
from qeff_framework.artifacts.manifest import Manifest
from qeff_framework.artifacts.root import store_root

#: Smaller files are not worth a name that they share.
_LEAST_BYTES = 1 << 16

_log = logging.getLogger(__name__)


def hard_link(source: Path, target: Path) -> bool:
    """Gives `source` the second name `target`; `False` where that is refused, as between file systems.

    A new name moves the time of the file's last change. What is remembered about the file under any of its names stays known.
    """
    source = Path(os.path.realpath(source))
    try:
        before = source.stat()
        os.link(source, target)
    except OSError as error:
        _log.info("%s is not linked: %s", source, error)
        return False
    after = source.stat()
    if (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
        memo = DigestMemo(store_root() / MEMO_FILE)
        memo.renew_links(before, after)
        memo.save()
    return True


def shared_digests(directory: Path, origins: Sequence[Path]) -> Mapping[str, str]:
    """Digests, by name, of files of `directory` that are files of the artifacts `origins` as well."""
    known = {}
    for origin in origins:
        if not (origin / Manifest.FILE).is_file():
            continue  # An export that is not published.
        for name, record in Manifest.load(origin).files.items():
            found = (origin / name).stat()
            known[found.st_dev, found.st_ino] = record.sha256
    digests = {}
    for path in directory.rglob("*"):
        found = path.lstat()
        if (digest := known.get((found.st_dev, found.st_ino))) is not None:
            digests[path.relative_to(directory).as_posix()] = digest
    return digests


def link_equal_files(directory: Path) -> Mapping[str, str]:
    """Makes large files of `directory` with equal contents names of one file, such as the weights of programs for several sizes.

    Returns:
        The digests, by name, of the files that were read for it.
    """
    by_size: defaultdict[int, list[Path]] = defaultdict(list)
    for path in sorted(directory.rglob("*")):
        found = path.lstat()
        if path.is_file() and not path.is_symlink() and found.st_size >= _LEAST_BYTES:
            by_size[found.st_size].append(path)
    digests: dict[str, str] = {}
    for group in by_size.values():
        firsts: dict[str, Path] = {}
        for path in group if len(group) > 1 else ():
            digest = digests[path.relative_to(directory).as_posix()] = file_sha256(path)
            first = firsts.setdefault(digest, path)
            if not path.samefile(first):
                _replace(path, first)
    return digests


def _replace(path: Path, source: Path) -> None:
    beside = path.with_name(f".{path.name}.linked")
    if hard_link(source, beside):
        beside.replace(path)
