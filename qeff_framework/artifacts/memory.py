"""Memory: what long work takes is told, and compared with what there is, before the work starts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qeff_framework.errors import ArtifactError
from qeff_framework.parallel import Claims, part_name

logger = logging.getLogger(__name__)

#: More than any machine has: how the kernel says that there is no limit.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of this machine, or of the control group that this process runs in; swap included."""

    #: What can be had now.
    free: int
    #: What could be had if nothing else ran.
    total: int


@dataclass(frozen=True, kw_only=True)
class _Claim:
    needed: float
    least: float
    #: Bytes that were free when it was made.
    free: int


_claims: Claims[_Claim] = Claims()


def announce_memory(what: str, needed: float, *, least: float = 0, remedy: str = "") -> None:
    """Says what `what` takes, and warns where less memory is free. Parts of `run_parts` count together.

    Args:
        what: the work, as the subject of a sentence.
        needed: estimate of the peak, in bytes that no file stands behind: mapped files can be dropped, other memory not.
        least: bytes that the work certainly holds at one time.
        remedy: what takes less, as the continuation of "... or ".

    Raises:
        ArtifactError: the machine has less than `least` in all, so that the work would be killed.
    """
    part = part_name()
    what = f"{part}: {what}" if part else what
    found = memory()
    # What the others hold already is no longer free: their sum is compared with what was free before the first of them.
    others = _claims.claim(_Claim(needed=needed, least=least, free=found.free if found else 0))
    if others:
        needed += sum(each.needed for each in others)
        least += sum(each.least for each in others)
        what = f"{what}, with what is compiled beside it,"
        remedy = " or ".join([*([remedy] if remedy else []), "compile one program after the other"])
    logger.info("%s takes about %.1f GB of memory", what, needed / 1e9)
    if found is None:
        return
    free = max([found.free, *(each.free for each in others)])
    advice = f"Use a machine with more memory, raise the limit of the container{f', or {remedy}' if remedy else ''}"
    if least > found.total:
        raise ArtifactError(
            f"{what} holds at least {least / 1e9:.1f} GB of memory at one time, and there are {found.total / 1e9:.1f} GB in "
            f"all: it would be killed. {advice}"
        )
    if needed > free:
        logger.warning(
            "%s takes about %.1f GB of memory, and %.1f GB are free: it may be killed. End other programs. %s",
            what,
            needed / 1e9,
            free / 1e9,
            advice,
        )


def memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Memory | None:
    """What this process may take; `None` where the system does not tell (it is none of Linux)."""
    try:
        lines = (proc / "meminfo").read_text(encoding="utf-8").splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        free = sizes["MemAvailable"] + sizes.get("SwapFree", 0)
        total = sizes["MemTotal"] + sizes.get("SwapTotal", 0)
    except (OSError, ValueError, KeyError, IndexError):
        return None
    for group in _groups(proc / "self" / "cgroup", groups):
        limit = _number(group, "memory.max", "memory.limit_in_bytes")
        used = _number(group, "memory.current", "memory.usage_in_bytes")
        if limit is None or used is None or limit >= _NO_LIMIT:
            continue
        # The swap of a group is not counted.
        free = min(free, max(0, limit - used + _droppable(group)))
        total = min(total, limit)
    return Memory(free=free, total=total)


def _groups(listing: Path, root: Path) -> Iterator[Path]:
    """The directories of the control groups of this process that may limit its memory, and those around them."""
    try:
        entries = [line.split(":", 2) for line in listing.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for entry in entries:
        if len(entry) != 3 or entry[1] not in ("", "memory"):
            continue
        top = root / entry[1]
        inner = top / entry[2].strip().lstrip("/")
        yield inner
        # In a container the path may be that outside of it; the limit is then at the top.
        yield from (parent for parent in inner.parents if parent.is_relative_to(top))


def _number(group: Path, *names: str) -> int | None:
    for name in names:
        try:
            text = (group / name).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def _droppable(group: Path) -> int:
    """Bytes of mapped and cached files, which are dropped before anything is killed."""
    try:
        lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    sizes = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
    # In the first version of control groups, the names without the prefix leave out the groups inside.
    prefix = "total_" if "total_inactive_file" in sizes else ""
    return sum(sizes.get(f"{prefix}{name}_file", 0) for name in ("inactive", "active"))
