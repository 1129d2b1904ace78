"""Reading examples out of the documents, so that they are executed as they are printed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"^# (\S+/?\S*\.(?:py|toml))\n")


@dataclass(frozen=True, kw_only=True)
class Block:
    document: str
    language: str
    text: str
    #: Named in the block's first line, for a file of an example package.
    file_name: str | None


def blocks(document: str, language: str) -> list[Block]:
    """The fenced blocks of one language in one document."""
    found = []
    for match in _FENCE.finditer((ROOT / document).read_text(encoding="utf-8")):
        if match[1] == language:
            named = _FILE_NAME.match(match[2])
            found.append(
                Block(document=document, language=language, text=match[2], file_name=named[1] if named else None)
            )
    return found


def commands(document: str) -> list[str]:
    """The indented lines of a document that start with ``qeff ``, without their remarks."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("    qeff ")]


def console(document: str) -> list[str]:
    """The lines that start with ``$ qeff ``, in blocks that show what is typed and what is printed."""
    lines = [line for block in blocks(document, "console") for line in block.text.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ qeff ")]
