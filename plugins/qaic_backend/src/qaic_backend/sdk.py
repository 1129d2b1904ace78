"""Where the QAIC SDK lies, which parts of it are there, and which versions they are. Reads files, runs nothing.

Two packages share one root: the apps SDK (x86-64 only) compiles, the platform SDK runs. Either may be there without the other.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT_VARIABLE = "QEFF_QAIC_SDK_ROOT"
DEFAULT_ROOT = Path("/opt/qti-aic")

#: The newer name first; ``qaic-exec`` is the only compiler of SDK 1.18 and older.
COMPILERS = ("qaic-compile", "qaic-exec")

#: The one file of a program; its folder is what compiler and runtime are given.
PROGRAM_FILE = "programqpc.bin"

_FIRST_NAMED = (1, 22)
_FIRST_WITH_GENERATION_NAMES = (1, 19)

Version = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sdk:
    """An SDK root; parts that are absent are `None`."""

    root: Path
    compiler: Path | None
    util: Path | None
    #: Folder of ``qaicrt`` and of ``QAicApi_pb2``, each `None` when it does not exist.
    runtime_folder: Path | None
    messages_folder: Path | None
    #: ``base_version.build_id``.
    apps_version: str | None
    platform_version: str | None

    @property
    def is_installed(self) -> bool:
        """Anything of the SDK is there."""
        return self.compiler is not None or self.runtime_folder is not None or self.util is not None


@dataclass(frozen=True, kw_only=True)
class CompilerGeneration:
    """What differs between compilers of different SDKs."""

    #: The compiler needs ``-compile-only`` and knows the hardware as ``2.0``.
    legacy: bool
    named_specializations: bool


def find_sdk() -> Sdk:
    """Looks at the root that ``QEFF_QAIC_SDK_ROOT`` names, else at ``/opt/qti-aic``."""
    root = Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)
    compilers = (root / "exec" / name for name in COMPILERS)
    return Sdk(
        root=root,
        compiler=next((path for path in compilers if _is_executable(path)), None),
        util=path if _is_executable(path := root / "tools" / "qaic-util") else None,
        runtime_folder=folder if (folder := root / "dev" / "lib" / platform.machine()).is_dir() else None,
        messages_folder=folder if (folder := root / "dev" / "python").is_dir() else None,
        apps_version=read_version(root / "versions" / "apps.xml"),
        platform_version=read_version(root / "versions" / "platform.xml"),
    )


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def read_version(path: Path) -> str | None:
    """``base_version.build_id`` of a version file; `None` when the file is absent or does not say it."""
    try:
        tree = ET.parse(path)  # noqa: S314 -- a file of the vendor's installation, as trusted as its programs
    except (OSError, ET.ParseError):
        return None
    parts = [(tree.findtext(f".//{tag}") or "").strip() for tag in ("base_version", "build_id")]
    return ".".join(part for part in parts if part) if parts[0] else None


def version_key(version: str) -> Version:
    """Numbers to compare. A part that is not a number ends the version."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def generation_of(version: str | None, compiler_name: str | None) -> CompilerGeneration:
    """What a compiler takes, by its version; by its name where there is no version; the newest where there is neither."""
    known = version_key(version) if version else ()
    if not known:
        legacy = compiler_name == COMPILERS[-1]
        return CompilerGeneration(legacy=legacy, named_specializations=not legacy)
    return CompilerGeneration(legacy=known < _FIRST_WITH_GENERATION_NAMES, named_specializations=known >= _FIRST_NAMED)


def install_hint(root: Path, package: str) -> str:
    """What to do when a part is not there."""
    return (
        f"install the Cloud AI {package} SDK, or set {ROOT_VARIABLE} to the root of an installation (looked in {root})"
    )
