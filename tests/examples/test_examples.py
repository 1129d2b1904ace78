"""The packages in ``examples/`` pass their own tests, with the real libraries, in an environment of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.chained_environment import SHORT_KIT, ChainedEnvironment

ROOT = Path(__file__).parents[2]
#: Package -> what it needs beside the environment of the suite, from the package index.
EXAMPLES = {
    "openvino_backend": ["openvino==2026.4.1"],
    "opentelemetry_extension": [
        "opentelemetry-api==1.45.2",
        "opentelemetry-sdk==1.45.2",
        "opentelemetry-semantic-conventions==0.66b2",
    ],
    "shared_store_extension": [],
}


def test_every_example_is_tested() -> None:
    assert set(EXAMPLES) == {path.parent.name for path in (ROOT / "examples").glob("*/pyproject.toml")}


def test_the_examples_pass_their_own_tests(tmp_path: Path) -> None:
    environment = ChainedEnvironment.create(tmp_path / "environment")
    environment.download(*(requirement for requirements in EXAMPLES.values() for requirement in requirements))
    # Copies: setuptools writes beside the sources of an editable install. Under other names: pytest calls the test modules by
    # their folders, and would put one called like the package in its place.
    folders = [Path(shutil.copytree(ROOT / "examples" / name, tmp_path / f"copy-of-{name}")) for name in EXAMPLES]
    environment.install(folders)
    # One process: most of the time goes into importing torch and Transformers.
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "-p", "tests.forked_compilers", "--import-mode=importlib"]
    options += ["--show-capture=no"]
    options += ["-k", SHORT_KIT]
    done = environment.run("pytest", *options, f"--rootdir={tmp_path}", *(str(folder / "tests") for folder in folders))
    assert done.returncode == 0, done.stdout + done.stderr
