"""Processes of their own, over a tiny program of ort_sim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.checkpoints import save_tiny_checkpoint


def tiny_artifact(home: Path) -> Path:
    """A tiny Llama with continuous batching, in the artifact store `home`."""
    checkpoint = save_tiny_checkpoint(home / "tiny")
    sizes = ["--prefill-seq-len", "4", "--ctx-len", "64", "--full-batch-size", "4"]
    done = run(home, "-m", "qeff_framework", "compile", str(checkpoint), "--backend", "ort_sim", *sizes, "--json")
    return Path(json.loads(done.stdout)["directory"])


def environment(home: Path, **further: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QEFF_", "RAY_"))}
    return {**kept, "QEFF_HOME": str(home), **further}


def run(home: Path, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=environment(home, **variables), capture_output=True, text=True, check=check
    )
