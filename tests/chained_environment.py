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
        options = ["--disable-pip-version-check", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        done = self.run("pip", "install", *options, *(part for folder in folders for part in ("-e", str(folder))))
        assert done.returncode == 0, done.stderr

    def download(self, *requirements: str) -> None:
        """Installs from the package index, without dependencies."""
        done = self.run("pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps", *requirements)
        assert done.returncode == 0, done.stderr


def _site_of(root: Path) -> Path:
    return root / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
