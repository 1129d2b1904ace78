"""The public surface is what ``tests/public_surface.txt`` says: docs/stability.md says what may change when."""

from __future__ import annotations

import difflib
import importlib

import pytest

from tests.public_surface import MODULES, STORED, surface


def test_every_change_of_the_surface_is_written_down() -> None:
    stored, found = STORED.read_text(encoding="utf-8").splitlines(), surface().splitlines()
    changes = list(difflib.unified_diff(stored, found, "written down", "found", n=0, lineterm=""))
    assert not changes, "\n".join(
        [
            "the public surface has changed. A name that goes or changes is deprecated first (docs/stability.md). If the change is",
            "meant, run `python -m tests.public_surface` and announce it in changelog.d:",
            *changes,
        ]
    )


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_there(module: str) -> None:
    loaded = importlib.import_module(module)
    assert len(set(loaded.__all__)) == len(loaded.__all__)
    assert all(hasattr(loaded, name) for name in loaded.__all__)


def test_the_toolkits_are_the_public_packages() -> None:
    from qeff_framework.plugin_api import TOOLKITS

    assert {f"qeff_framework.{name}" for name in TOOLKITS} <= set(MODULES)


def test_the_version_of_the_plugin_api_and_the_groups_agree() -> None:
    from qeff_framework import plugin_api

    major = plugin_api.API_VERSION.partition(".")[0]
    assert plugin_api.BACKEND_GROUP.endswith(f".v{major}")
    assert plugin_api.EXTENSION_GROUP.endswith(f".v{major}")
