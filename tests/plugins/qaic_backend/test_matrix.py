"""The table of the README is complete and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROWS = re.findall(
    r"^\| ((?:compile|run): .+?) \| `([\w./]+\.py)::(\w+)` \|$", (HERE / "README.md").read_text(), re.MULTILINE
)

#: The entries of the contract's matrix by their first words; the language models of this framework have no vision part, so the
#: entry about two programs on one device is tested with two language programs.
COMPILE = (
    "success, cache hit, bad flag, bad ONNX, OOM kill, empty stderr, partial output then rerun, named to flat fallback, "
    "two processes at once, path with blanks, read-only cache"
)
RUN = (
    "plain, CB with more prompts than slots, chunked prefill with a partial last chunk, CCL buckets, TLM two Ks, "
    "prefix slots F > N, sliding window wrap, sampler partial inputs, two programs with deactivate/activate, multi-device ids, "
    "shape mismatch message, ExecObj failure frees NSPs, missing module messages, session from two threads"
)


def test_every_entry_of_the_contract_has_a_row() -> None:
    wanted = [f"compile: {entry}" for entry in COMPILE.split(", ")] + [f"run: {entry}" for entry in RUN.split(", ")]
    assert [entry for entry, _, _ in ROWS] == wanted


@pytest.mark.parametrize(("file", "name"), sorted({(file, name) for _, file, name in ROWS}))
def test_the_test_exists(file: str, name: str) -> None:
    assert f"\ndef {name}(" in (HERE / file).read_text(encoding="utf-8")
