"""Whether a call leaves files or processes behind."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qeff_framework.testing.subject import environment

if TYPE_CHECKING:
    from qeff_framework.testing.subject import Subject


@dataclass(kw_only=True)
class Left:
    """What a block has left behind, once it has ended."""

    #: Names in the working directory and in the directory for temporary files.
    files: list[str] = field(default_factory=list)
    #: Ids of child processes that still run.
    processes: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        told = [*self.files, *(f"process {number}" for number in self.processes)]
        return ", ".join(told)


@contextlib.contextmanager
def watched(subject: Subject) -> Iterator[Left]:
    """Runs a block with a working directory and a directory for temporary files of its own, both empty."""
    left, before = Left(), set(_children())
    here, temporary = subject.folder("cwd"), subject.folder("tmp")
    place, known = Path.cwd(), tempfile.tempdir
    os.chdir(here)
    tempfile.tempdir = str(temporary)
    try:
        with environment(TMPDIR=str(temporary), TEMP=str(temporary), TMP=str(temporary)):
            yield left
    finally:
        os.chdir(place)
        tempfile.tempdir = known
        left.files += [f"{path.name} in the working directory" for path in sorted(here.iterdir())]
        left.files += [f"{path.name} in {temporary.name}" for path in sorted(temporary.iterdir())]
        left.processes += sorted(set(_children()) - before)


def _children() -> list[int]:
    """Child processes of this one, without those that have ended; none where the system does not tell."""
    found = []
    for tasks in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(number) for number in tasks.read_text().split()]
    return [number for number in found if not _has_ended(number)]


def _has_ended(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state == "Z"
