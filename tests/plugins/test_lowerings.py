"""The page about our lowerings is what the passes do."""

from __future__ import annotations

from tests.docs.markdown import ROOT
from tests.plugins.lowerings import page


def test_the_page_is_current() -> None:
    assert (ROOT / "docs/backends/lowerings.md").read_text(encoding="utf-8") == page(), (
        "write it with `python -m tests.plugins.lowerings docs/backends/lowerings.md`"
    )
