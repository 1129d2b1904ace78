"""The directory of an artifact on this machine, also of one that lies behind a URL."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from qeff_framework.artifacts import Manifest, store_root, verify
from qeff_framework.artifacts.staging import staging_directory, sweep
from qeff_framework.errors import ArtifactError, OptionError

_UNFINISHED = ".fetching-"


def local_artifact(artifact: str | os.PathLike[str]) -> Path:
    """A directory with the artifact's files.

    A path is what it is. An artifact behind a URL of `fsspec` (``s3://...``, ``file://...``) is copied into ``fetched/`` in the
    artifact store once, verified against its manifest, and found there by all processes of the machine. What is behind the URL is
    known by its manifest, so that another artifact at the same URL is fetched anew.

    Raises:
        ArtifactError: there is no artifact at the URL, or what arrived differs from its manifest.
        OptionError: fsspec, or what it needs for this kind of URL, is not installed.
    """
    text = os.fspath(artifact)
    if "://" not in text:
        return Path(text)
    text = text.rstrip("/")
    files, root = _file_system(text)
    try:
        manifest = files.cat_file(f"{root}/{Manifest.FILE}")
    except Exception as error:
        raise ArtifactError(f"{text}: there is no artifact that can be read ({_told(error)})") from error
    parent = store_root() / "fetched"
    target = parent / hashlib.sha256(text.encode() + b"\0" + manifest).hexdigest()[:32]
    parent.mkdir(parents=True, exist_ok=True)
    from filelock import FileLock

    with FileLock(parent / f"{target.name}.lock"):
        if not target.is_dir():
            _fetch(files, root, text, target)
    return target


def _fetch(files: Any, root: str, url: str, target: Path) -> None:
    sweep(target.parent, prefix=_UNFINISHED)
    with staging_directory(target.parent, prefix=_UNFINISHED, remedy="Set QEFF_HOME to a writable directory") as place:
        arrived = place / "artifact"
        try:
            files.get(f"{root}/", f"{arrived}{os.sep}", recursive=True)
        except Exception as error:
            raise ArtifactError(f"{url}: the files cannot be fetched ({_told(error)})") from error
        if problems := verify(arrived, full=True):
            told = "; ".join(str(problem) for problem in problems[:3])
            raise ArtifactError(
                f"{url}: what arrived is not what was published ({told}); copy the artifact there again"
            )
        arrived.rename(target)


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise OptionError(f"{url}: URLs need fsspec: pip install 'qeff-framework[ray]'") from error
    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise OptionError(f"{url}: {error}") from error
    return files, root.rstrip("/")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
