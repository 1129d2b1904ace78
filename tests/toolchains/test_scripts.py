"""Parts of scripts that run on another machine, in the shell of this one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from qeff_framework.toolchains import own_copies


def test_files_with_other_names_get_copies(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (tmp_path / "checkpoint").write_text("weights")
    os.link(tmp_path / "checkpoint", folder / "one.onnx.data")
    os.link(tmp_path / "checkpoint", folder / "two.bin")
    (folder / "alone.onnx.data").write_text("alone")
    before = (folder / "alone.onnx.data").stat().st_ino
    subprocess.run(["sh", "-c", own_copies("*.onnx.data", "*.missing")], cwd=folder, check=True)
    assert {file.name: (file.read_text(), file.stat().st_nlink) for file in folder.iterdir()} == {
        "one.onnx.data": ("weights", 1),
        "two.bin": ("weights", 2),
        "alone.onnx.data": ("alone", 1),
    }
    assert (folder / "alone.onnx.data").stat().st_ino == before
