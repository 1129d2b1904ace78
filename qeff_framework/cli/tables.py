"""Plain-text tables, sizes and times for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from qeff_framework.plugin_metadata import printable_lines

_UNITS = ("B", "kB", "MB", "GB", "TB")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Left-aligned columns, two spaces apart."""
    cells = [[*header], *([printable_lines(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def facts(pairs: Mapping[str, object]) -> str:
    """One ``name  value`` line per entry; a value of several lines is indented below its first one. Empty ones are left out."""
    shown = {name: printable_lines(str(value)) for name, value in pairs.items() if str(value) != ""}
    width = max(map(len, shown), default=0) + 2
    return "\n".join(name.ljust(width) + textwrap.indent(text, " " * width).lstrip(" ") for name, text in shown.items())


def size(count: float) -> str:
    """A number of bytes in powers of 1000."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def when(moment: datetime) -> str:
    """Local date and minute; ``-`` for the epoch, which stands for an unknown time."""
    return "-" if moment.timestamp() == 0 else moment.astimezone().strftime("%Y-%m-%d %H:%M")
