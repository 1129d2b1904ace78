"""A new environment that sees what this one has, and into which pip can install."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Of the kit's checks of the dialect one or two for each operator, those with most of its attributes, by how their names begin.
SHORT_DIALECT = (
    "kv_update_nan",
    "kv_update_cb_nan",
    "kv_gather",
    "causal_mask_window",
    "rms_norm_ordinary",
    "attention_bias_with_softcap",
    "attention_sinks_with_window",
    "attention_padding_mask_nan",
    "unused_slots_bias_nan",
    "encoder_attention_partly_filled",
    "moe_limit",
    "moe_unused_expert_nan",
    "quantized_matmul_4",
    "quantized_moe_biased",
    "quantized_moe_partly",
)
#: For pytest's -k: these, and no whole models. `make authors` runs all of the kit over the backends that are generated and over
#: OpenVINO's.
SHORT_KIT = "not test_generation_ and (not test_dialect_ or {})".format(
    " or ".join(f"test_dialect_{name}" for name in SHORT_DIALECT)
)


@dataclass(frozen=True)
class ChainedEnvironment:
    """An environment in `root`; what is installed into it stays there."""

    root: Path

    @classmethod
    def create(cls, root: Path) -> ChainedEnvironment:
        venv.create(root, with_pip=False)
        (Path(_site_of(root)) / "chain.pth").write_text(
            "\n".join(path for path in sys.path if path and Path(path).is_dir()), encoding="utf-8"
        )
        return cls(root)

    @property
    def site(self) -> Path:
        return Path(_site_of(self.root))

    def run(self, *argv: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs ``python -m ARGV``, without this project's variables."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("QEFF_", "PYTHONPATH"))}
        return subprocess.run(
            [self.root / "bin" / "python", "-m", *argv],
            env={**kept, "QEFF_HOME": str(self.root / "qeff-home"), **environment},
            cwd=cwd or self.root,
            capture_output=True,
            text=True,
            check=False,
        )

    def install(self, folders: Sequence[Path]) -> None:
        """Installs packages as their authors do while they work on them; needs no package index."""
        options = ["--disable-pip-version-check", "--quiet", "--no-compile"]
        options += ["--no-index", "--no-deps", "--no-build-isolation"]
        done = self.run("pip", "install", *options, *(part for folder in folders for part in ("-e", str(folder))))
        assert done.returncode == 0, done.stderr

    def download(self, *requirements: str) -> None:
        """Installs from the package index, without dependencies."""
        options = ["--disable-pip-version-check", "--quiet", "--no-compile", "--no-deps"]
        done = self.run("pip", "install", *options, *requirements)
        assert done.returncode == 0, done.stderr


def _site_of(root: Path) -> Path:
    return root / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
