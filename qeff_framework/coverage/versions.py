"""Checks a few structurally different model types with the oldest and the newest Transformers that the package allows.

    python -m qeff_framework.coverage.versions [--only oldest|newest] [--backend NAME] [TYPE ...]

Each version gets a virtual environment of its own, in which every other library is the one of this environment.
"""

from __future__ import annotations

import argparse
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from qeff_framework.coverage.families import KINDS
from qeff_framework.errors import QEFFError

_MINUTES_TO_INSTALL = 15


def allowed_versions() -> dict[str, str]:
    """What pip is asked for, by ``"oldest"`` and ``"newest"``: from the requirements of the installed distribution."""
    import importlib_metadata
    from packaging.requirements import Requirement

    requirements = map(Requirement, importlib_metadata.requires("qeff-framework") or [])
    specifiers = next(each.specifier for each in requirements if each.name == "transformers" and each.marker is None)
    lower = next(each.version for each in specifiers if each.operator == ">=")
    return {"oldest": f"transformers=={lower}", "newest": f"transformers{specifiers}"}


def environment_with(requirement: str, folder: Path) -> Path:
    """A virtual environment in `folder` with this requirement, in front of everything that this one has; its interpreter.

    Raises:
        QEFFError: pip cannot install it; the message has pip's last line.
    """
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    own = next(folder.glob("lib*/python*/site-packages"))
    # addsitedir, unlike a plain path, reads the .pth files of editable installs. What is installed here comes before it.
    lent = [path for path in (*site.getsitepackages(), site.getusersitepackages()) if Path(path).is_dir()]
    (own / "lent.pth").write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in lent), encoding="utf-8"
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--upgrade",
        "--target",
        str(own),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * _MINUTES_TO_INSTALL, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise QEFFError(f"pip cannot install {requirement}: {last}")
    return folder / "bin" / "python"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every type passes with every version, else 1."""
    allowed = allowed_versions()
    parser = argparse.ArgumentParser(
        prog="python -m qeff_framework.coverage.versions",
        description="Check a few model types with the oldest and the newest Transformers that the package allows.",
    )
    parser.add_argument("types", metavar="TYPE", nargs="*", help=f"causal LMs (default: {' '.join(KINDS.values())})")
    parser.add_argument("--only", choices=tuple(allowed), help="one end of the range")
    parser.add_argument("--backend", metavar="NAME", help="an installed backend (default: as `qeff coverage`)")
    parser.add_argument("--time-limit", default="300", help="seconds for each type (default 300)")
    options = parser.parse_args(arguments)
    failed = False
    for end in [options.only] if options.only else allowed:
        with tempfile.TemporaryDirectory(prefix="qeff-versions-") as folder:
            sys.stdout.write(f"{end} allowed: {allowed[end]}\n")
            sys.stdout.flush()
            python = environment_with(allowed[end], Path(folder))
            types = options.types or KINDS.values()
            backend = ["--backend", options.backend] if options.backend else []
            command = [python, "-m", "qeff_framework", "coverage", *backend, *types]
            failed |= (
                subprocess.run([*map(str, command), "--time-limit", options.time_limit], check=False).returncode != 0
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
