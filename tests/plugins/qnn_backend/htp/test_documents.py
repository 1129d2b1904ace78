"""The section about chips in ``docs/qnn.md`` says what the code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from qeff_framework.options import MicroscalingOptions, RuntimeOptions, describe_options
from qnn_backend import targets
from qnn_backend.htp.options import HtpOptions, HtpRuntimeOptions
from qnn_backend.htp.pass_names import SWITCHABLE

TEXT = (Path(__file__).parents[4] / "docs" / "qnn.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("place", "schema", "base"),
    [("compile", HtpOptions, MicroscalingOptions), ("execute", HtpRuntimeOptions, RuntimeOptions)],
)
def test_options_are_those_of_the_schema(place: str, schema: type, base: type) -> None:
    inherited = {field.name for field in dataclasses.fields(base)}
    expected = [
        f"| `{info.name}` | `{info.default}` | {info.help} |"
        for info in describe_options(schema)
        if info.name not in inherited
    ]
    printed = re.search(
        rf"<!-- htp options of {place}: begin -->\n(.*?)<!-- htp options of {place}: end -->", TEXT, re.DOTALL
    )
    assert printed is not None
    assert printed[1].strip().splitlines()[2:] == expected


def test_every_target_and_every_pass_is_named() -> None:
    assert all(f"| `{soc.name}` | {soc.id} | {soc.htp} |" in TEXT for soc in targets.SOCS)
    assert all(f"| `{name}` |" in TEXT for name in SWITCHABLE)
