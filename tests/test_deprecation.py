"""Names on their way out work, warn, and go in time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import qeff_framework.plugin_api  # noqa: F401 -- registers what it deprecates
from qeff_framework.contracts import CompiledModel
from qeff_framework.deprecation import DEPRECATIONS, Deprecation
from qeff_framework.options import CompileOptions, MicroscalingOptions

ROOT = Path(__file__).parents[1]


def compiled(**keywords: object) -> CompiledModel:
    fields = {
        "directory": Path(),
        "backend": "acme",
        "task": "encoder",
        "specializations": (),
        "inputs": (),
        "outputs": (),
    }
    return CompiledModel(**{**fields, **keywords})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "value"), [("bundle_result", "dry_run_result", "a.bin"), ("qpc_config", "qconfig", {"a": 1})]
)
def test_old_keywords_and_attributes_are_the_new_ones(old: str, new: str, value: object) -> None:
    with pytest.warns(
        DeprecationWarning, match=rf"CompiledModel\.{old} is deprecated .*; use CompiledModel\.{new}"
    ) as told:
        model = compiled(**{old: value})
    assert told[0].filename == __file__, "whoever wrote the old name is told"
    assert model == compiled(**{new: value})
    with pytest.warns(DeprecationWarning, match=old):
        assert getattr(model, old) == value
    with pytest.raises(TypeError, match="not both"):
        compiled(**{old: value, new: value})


def test_formats_are_no_options_of_every_backend_any_more() -> None:
    with pytest.warns(DeprecationWarning, match=r"use MicroscalingOptions\.mxfp6_matmul"):
        assert getattr(CompileOptions(), "mxfp6_matmul") is False  # noqa: B009 -- for mypy it is not there
    assert MicroscalingOptions(mxfp6_matmul=True).mxfp6_matmul is True


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


@pytest.mark.parametrize("deprecation", DEPRECATIONS, ids=lambda each: each.name)
def test_it_warns_for_a_minor_version_is_announced_and_not_overdue(deprecation: Deprecation) -> None:
    own = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert own is not None
    assert version(deprecation.removal) > version(own[1]), f"{deprecation.name} is overdue: remove it"
    assert version(deprecation.removal) > version(deprecation.since)
    notes = [ROOT / "CHANGELOG.md", *(ROOT / "changelog.d").glob("*.removed.md")]
    name = deprecation.name.rpartition(".")[2]
    assert any(name in note.read_text(encoding="utf-8") for note in notes), f"no changelog fragment names {name}"
