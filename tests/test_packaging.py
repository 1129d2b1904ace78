"""The wheels work away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import save_tiny_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of the core, a backend and a package for users, unpacked as pip would install them, without their dependencies."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    sources = [str(ROOT), *(str(ROOT / "plugins" / name) for name in ("ort_sim_backend", "qefficient_compat"))]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), *sources], check=True, cwd=wheels)
    built = [str(wheel) for wheel in wheels.glob("*.whl")]
    assert len(built) == 3
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", str(target), *built], check=True)
    return target


def test_wheels_hold_the_package_and_nothing_else(site: Path) -> None:
    names = {path.name for path in site.iterdir()}
    assert {"qeff_framework", "ort_sim_backend", "QEfficient"} <= names
    assert not names & {"tests", "docs", "benchmarks", "plugins"}
    assert (site / "qeff_framework" / "py.typed").exists()
    assert (site / "ort_sim_backend" / "py.typed").exists()
    assert (site / "QEfficient" / "py.typed").exists()
    assert (site / "QEfficient" / "peft" / "lora" / "__init__.py").exists()
    templates = Path("qeff_framework", "backend_template")
    files = {path.relative_to(ROOT) for path in (ROOT / templates).rglob("*.tmpl")}
    assert files == {path.relative_to(site) for path in (site / templates).rglob("*.tmpl")}
    assert {path.name for path in (site / "qeff_framework" / "serving" / "http" / "page").iterdir()} == {
        "index.html",
        "page.css",
        "page.js",
    }
    assert templates / "common" / ".github" / "workflows" / "ci.yml.tmpl" in files


def test_generate_from_the_wheels(site: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("QEFF_")},
        "PYTHONPATH": str(site),
        "QEFF_HOME": str(tmp_path / "home"),
    }
    code = "import qeff_framework, ort_sim_backend; print(qeff_framework.__file__, ort_sim_backend.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert where.stdout.count(str(site)) == 2
    command = ["generate", str(checkpoint), "--backend", "ort_sim", "--ctx-len", "64", "--prompt", "w5 w9 w3"]
    done = subprocess.run(
        [sys.executable, "-m", "qeff_framework", *command, "--max-new-tokens", "4"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ort_sim" in done.stdout
    written = subprocess.run(
        [sys.executable, "-m", "qeff_framework", "new-backend", "acme"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "qeff-acme-backend" / "src" / "acme_backend" / "descriptor.py").exists()
