"""Without the extra, the commands and functions say what to install, and nothing of it is imported."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from qeff_framework.errors import OptionError
from qeff_framework.scale import deployment, map_dataset
from qeff_framework.scale.extra import needs_ray
from qeff_framework.serving.parquet import parquet_rows


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qeff_framework.scale.extra.find_spec", lambda name: None)
    for call in (
        lambda: map_dataset(None, tmp_path),
        lambda: deployment(tmp_path, model="m"),
        lambda: needs_ray("--engine ray"),
    ):
        with pytest.raises(OptionError, match=r"needs ray.*pip install 'qeff-framework\[ray\]'"):
            call()


@pytest.mark.skipif(find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_names_its_extra(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"pip install 'qeff-framework\[parquet\]'"):
        next(parquet_rows(tmp_path / "in.parquet"))


def test_the_import_brings_neither_ray_nor_torch() -> None:
    code = (
        "import sys, qeff_framework.scale, qeff_framework.serving.batch, qeff_framework.scale.batch\n"
        "print([name for name in ('ray', 'pyarrow', 'fsspec', 'fastapi', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
