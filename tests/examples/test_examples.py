"""The packages in ``examples/`` and those of ``qeff new-backend`` pass their own tests, with the real libraries, where an author would
have installed them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from qeff_framework.cli import main
from qeff_framework.testing import BackendConformance
from tests.chained_environment import SHORT_DIALECT, SHORT_KIT, ChainedEnvironment

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
#: Name -> the kind of compiler that it is generated for.
GENERATED = {"acme": "external", "My-NPU": "python"}
#: The kit's checks of imports and of fresh processes: the tests that are generated beside it look at what is imported there. OpenVINO
#: goes through them here, the generated packages in `make authors`.
TWICE = "TestAcme and (test_imports_ or test_processes_fresh)"


@dataclass(frozen=True, kw_only=True)
class PackagesRun:
    """One run of pytest over all packages: most of the time goes into importing torch and Transformers."""

    environment: ChainedEnvironment
    exit_code: int
    output: str
    #: Folder of a package -> how many of its tests have passed.
    passed: Counter[str]


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> PackagesRun:
    place = tmp_path_factory.mktemp("packages")
    environment = ChainedEnvironment.create(place / "environment")
    environment.download(*(requirement for requirements in EXAMPLES.values() for requirement in requirements))
    # Copies: setuptools writes beside the sources of an editable install. Under other names: pytest calls the test modules by
    # their folders, and would put one called like the package in its place.
    folders = [Path(shutil.copytree(ROOT / "examples" / name, place / f"copy-of-{name}")) for name in EXAMPLES]
    for name, compiler in GENERATED.items():
        folders.append(place / f"generated-{compiler}")
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["new-backend", name, "--compiler", compiler, "--dir", str(folders[-1])]) == 0
    environment.install(folders)
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "-p", "tests.forked_compilers", "--import-mode=importlib"]
    # `make authors` runs the conformance kit over both variants and over OpenVINO; here is what fits into the suite's time.
    options += ["--show-capture=no", "-k", f"{SHORT_KIT} and not ({TWICE})"]
    options += [f"--ignore={place / 'generated-python' / 'tests' / 'test_conformance.py'}"]
    report = place / "report.xml"
    options += [f"--junit-xml={report}", f"--rootdir={place}"]
    done = environment.run("pytest", *options, *(str(folder / "tests") for folder in folders))
    cases = ET.parse(report).iter("testcase") if report.exists() else ()
    return PackagesRun(
        environment=environment,
        exit_code=done.returncode,
        output=done.stdout + done.stderr,
        passed=Counter(case.attrib["classname"].partition(".")[0] for case in cases if not len(case)),
    )


def test_every_example_is_tested() -> None:
    assert set(EXAMPLES) == {path.parent.name for path in (ROOT / "examples").glob("*/pyproject.toml")}


def test_the_kit_has_the_checks_that_are_chosen_of_it() -> None:
    """Otherwise an operator of a package would not be checked."""

    class Kit(BackendConformance):
        backend = "ort_sim"

    checks = [name.removeprefix("test_dialect_") for name in dir(Kit)]
    assert [chosen for chosen in SHORT_DIALECT if not any(name.startswith(chosen) for name in checks)] == []


def test_the_packages_pass_their_own_tests(tested: PackagesRun) -> None:
    assert tested.exit_code == 0, tested.output
    least = {"copy-of-openvino_backend": 100, "generated-external": 100, "generated-python": 4}
    least |= {f"copy-of-{name}": 1 for name in EXAMPLES if name.endswith("_extension")}
    assert {*tested.passed} == {*least}
    assert {name: passed for name, passed in tested.passed.items() if passed < least[name]} == {}


def test_doctor_finds_nothing_wrong_with_what_is_generated(tested: PackagesRun) -> None:
    told = tested.environment.run("qeff_framework", "doctor", "acme", "--json")
    assert told.returncode == 0, told.stderr
    [found] = json.loads(told.stdout)["backends"]
    assert {check["name"]: check["status"] for check in found["checks"]} == {"compiler": "ok", "onnxruntime": "ok"}
