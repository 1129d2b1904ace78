"""Discovery, selection, isolation: against real distributions on `sys.path`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from qeff_framework.errors import (
    BackendBlockedError,
    BackendBrokenError,
    BackendConflictError,
    BackendIncompatibleError,
    BackendNotInstalledError,
    BackendUnavailableError,
    ExtensionError,
)
from qeff_framework.registry import Registry, Stage
from tests.fake_distributions import ECHO_BACKEND, echo_backend, was_imported, write_distribution


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of distributions; only what the test lays down there may be chosen from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for variable in ("QEFF_BACKEND", "QEFF_BACKENDS", "QEFF_DISABLE_BACKENDS", "QEFF_EXTENSIONS"):
        monkeypatch.delenv(variable, raising=False)
    # The real backends of this environment stay out of the tests that let the registry choose.
    monkeypatch.setenv("QEFF_DISABLE_BACKENDS", "ort_sim,qnn,qaic")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("qeff_") and not name.startswith("qeff_framework"):
            del sys.modules[name]


def broken(root: Path, name: str, failure: str = "raise OSError('libAcme.so: cannot open shared object file')") -> str:
    source = "from pathlib import Path\nPath(__file__).with_suffix('.imported').touch()\n" + failure + "\n"
    return echo_backend(root, name, source=source.replace("{", "{{").replace("}", "}}"))


def test_listing_reads_metadata_and_imports_nothing(site: Path) -> None:
    modules = [echo_backend(site, "acme"), echo_backend(site, "beta"), broken(site, "cracked")]
    listed = {backend.name: backend for backend in Registry().installed()}
    assert {"acme", "beta", "cracked"} <= set(listed)
    assert listed["acme"].distribution == "qeff-acme-backend"
    assert listed["acme"].version == "1.0"
    assert listed["acme"].status == "available"
    assert not any(was_imported(site, module) for module in modules)


def test_only_the_selected_backend_runs(site: Path) -> None:
    acme, beta, cracked = echo_backend(site, "acme"), echo_backend(site, "beta"), broken(site, "cracked")
    assert Registry().get("acme").name == "acme"
    assert was_imported(site, acme)
    assert not was_imported(site, beta)
    assert not was_imported(site, cracked)


def test_names_differ_neither_by_case_nor_by_dashes(site: Path) -> None:
    echo_backend(site, "my_npu")
    assert Registry().get("My-NPU").name == "my_npu"


def test_a_misspelt_backend_that_is_to_be_left_out_is_told(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    echo_backend(site, "acme")
    monkeypatch.setenv("QEFF_DISABLE_BACKENDS", "acmme,of_another_machine,ort_sim,qnn")
    assert Registry().choose() == "acme"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == "QEFF_DISABLE_BACKENDS names 'acmme', which is no installed backend; did you mean 'acme'?"


def test_not_installed(site: Path) -> None:
    echo_backend(site, "acme")
    with pytest.raises(BackendNotInstalledError, match=r"no backend named 'acne'.*did you mean 'acme'"):
        Registry().get("acne")
    with pytest.raises(BackendNotInstalledError, match="pip install qeff-zeta-backend"):
        Registry().get("zeta")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("QEFF_BACKENDS", "beta"),
        ("QEFF_BACKENDS", ""),
        ("QEFF_DISABLE_BACKENDS", "acme"),
        ("QEFF_DISABLE_BACKENDS", "qeff-acme-backend"),
    ],
)
def test_blocked(site: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    module = echo_backend(site, "acme")
    monkeypatch.setenv(variable, value)
    with pytest.raises(BackendBlockedError, match=f"blocked by {variable}="):
        Registry().get("acme")
    assert not was_imported(site, module)
    assert next(backend for backend in Registry().installed() if backend.name == "acme").status == "blocked"


@pytest.mark.parametrize("allowed", ["acme", "qeff-acme-backend", "beta, ACME"])
def test_allowed(site: Path, monkeypatch: pytest.MonkeyPatch, allowed: str) -> None:
    echo_backend(site, "acme")
    monkeypatch.setenv("QEFF_BACKENDS", allowed)
    assert Registry().get("acme").name == "acme"


def test_other_major_is_refused_without_import(site: Path) -> None:
    module = echo_backend(site, "acme", group="qeff_framework.backends.v2")
    with pytest.raises(BackendIncompatibleError, match=r"built for plugin API v2, this qeff_framework speaks v1"):
        Registry().get("acme")
    assert not was_imported(site, module)
    assert next(backend for backend in Registry().installed() if backend.name == "acme").status == "incompatible"


@pytest.mark.parametrize("api", ["1.99", "2.0", "one"])
def test_newer_minor_is_refused(site: Path, api: str) -> None:
    echo_backend(site, "acme", api=api)
    with pytest.raises(BackendIncompatibleError, match=api):
        Registry().get("acme")


@pytest.mark.parametrize(
    "failure", ["raise OSError('libAcme.so: no such file')", "import module_that_is_not_there", "raise SystemExit(3)"]
)
def test_broken_at_import_names_the_cause(site: Path, failure: str) -> None:
    broken(site, "acme", failure)
    with pytest.raises(
        BackendBrokenError, match=r"'acme' \(qeff-acme-backend 1.0\).*(libAcme|module_that|SystemExit)"
    ) as error:
        Registry().get("acme")
    assert error.value.__cause__ is not None


def test_two_packages_with_one_name(site: Path) -> None:
    echo_backend(site, "acme", distribution="one-acme")
    echo_backend(site, "acme", distribution="other-acme")
    echo_backend(site, "beta")
    registry = Registry()
    with pytest.raises(BackendConflictError, match=r"one-acme 1\.0, other-acme 1\.0"):
        registry.get("acme")
    assert registry.get("other-acme:acme").origin == "other-acme 1.0"
    assert registry.get("beta").name == "beta"
    assert {backend.status for backend in registry.installed() if backend.name == "acme"} == {"conflict"}


def test_entry_point_and_descriptor_must_agree(site: Path) -> None:
    echo_backend(site, "acme", entry_name="emca")
    with pytest.raises(BackendIncompatibleError, match="named 'emca' but the descriptor says 'acme'"):
        Registry().get("emca")


def test_entry_point_that_is_no_backend(site: Path) -> None:
    write_distribution(
        site,
        "qeff-odd",
        entry_points={"qeff_framework.backends.v1": {"odd": "qeff_odd:x"}},
        modules={"qeff_odd": "x = 1"},
    )
    with pytest.raises(BackendIncompatibleError, match="resolves to int"):
        Registry().get("odd")


# --- the choice without a name ----------------------------------------------------------------------------------------


def test_environment_chooses(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    echo_backend(site, "acme", rank=9)
    echo_backend(site, "beta")
    monkeypatch.setenv("QEFF_BACKEND", "beta")
    assert Registry().get().name == "beta"


def test_hardware_comes_before_simulators_and_the_log_says_why(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    echo_backend(site, "sim", rank=100)
    echo_backend(site, "card", hardware=True, rank=1)
    echo_backend(site, "absent", hardware=True, rank=500, status="FAILED")
    broken(site, "cracked")
    with caplog.at_level(logging.INFO, logger="qeff_framework"):
        assert Registry().get().name == "card"
    [line] = [record.getMessage() for record in caplog.records if "chosen" in record.getMessage()]
    assert "'card' chosen: hardware" in line
    assert "sim (simulator, rank 100)" in line
    assert "absent (echo: made by a test)" in line
    assert "cracked (backend 'cracked'" in line


@pytest.mark.parametrize(
    ("source", "reason"),
    [("import time; time.sleep(100)", "did not end within 1 s"), ("import os; os.abort()", "SIGABRT")],
)
def test_one_that_hangs_or_dies_when_it_is_imported_is_passed_over(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, source: str, reason: str
) -> None:
    echo_backend(site, "alive")
    Registry().descriptor("alive")  # Imported here it is not tried again, so that the short limit is for the other one.
    monkeypatch.setattr("qeff_framework.plugin_imports.IMPORT_SECONDS", 1.0)
    broken(site, "dead", source)
    caplog.set_level("INFO")
    assert Registry().choose() == "alive"
    assert (
        "dead (backend 'dead' (qeff-dead-backend 1.0) is installed but could not be imported: importing" in caplog.text
    )
    assert reason in caplog.text
    assert "QEFF_DISABLE_BACKENDS=dead" in caplog.text
    with pytest.raises(BackendBrokenError, match=reason):
        Registry().descriptor("dead", tried=True)


def test_one_that_dies_in_its_probe_is_passed_over(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    echo_backend(site, "alive")
    fatal = ECHO_BACKEND.replace("    def probe(self):", "    def probe(self):\n        import os\n        os.abort()")
    echo_backend(site, "dead", rank=9, source=fatal)
    caplog.set_level("INFO")
    assert Registry().choose() == "alive"
    assert (
        "dead (backend 'dead' (qeff-dead-backend 1.0) failed in probe(): asking it crashed with signal SIGABRT"
        in caplog.text
    )


def test_rank_decides_among_equals(site: Path) -> None:
    echo_backend(site, "low", rank=1)
    echo_backend(site, "high", rank=2)
    assert Registry().choose() == "high"


def test_nothing_usable(site: Path) -> None:
    echo_backend(site, "absent", status="FAILED")
    with pytest.raises(BackendUnavailableError, match=r"absent \(echo: made by a test\)"):
        Registry().get()


def test_the_chosen_backend_is_not_revised_by_its_failure(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    echo_backend(site, "fine", rank=5)
    broken(site, "cracked")
    monkeypatch.setenv("QEFF_BACKEND", "cracked")
    with pytest.raises(BackendBrokenError):
        Registry().get()


# --- registered by hand -----------------------------------------------------------------------------------------------


def test_a_descriptor_can_be_registered_for_a_while(site: Path) -> None:
    echo_backend(site, "acme")
    descriptor = Registry().descriptor("acme")
    registry = Registry()
    with registry.registered(descriptor):
        assert registry.descriptor("acme") is descriptor
    assert registry.descriptor("acme") is not descriptor
    assert registry.get(descriptor).origin == "passed as an object"


# --- extensions -------------------------------------------------------------------------------------------------------


def test_extensions_are_off_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QEFF_EXTENSIONS", raising=False)
    assert Registry().extensions() == {}
    monkeypatch.setenv("QEFF_EXTENSIONS", "timing")
    assert list(Registry().extensions()) == ["timing"]


def test_unknown_extension() -> None:
    with pytest.raises(ExtensionError, match="did you mean 'timing'"):
        Registry().extensions(["timin"])


# --- two implementation classes ---------------------------------------------------------------------------------------

SPLIT = """
from qeff_framework.plugin_api import Backend, Capabilities


class Descriptor(Backend):
    name = "halves"
    capabilities = Capabilities(tasks=frozenset({{"causal-lm"}}))
    implementation = "qeff_halves_compiling:Hooks"
    execute_implementation = "qeff_halves_running:Hooks"
"""
HALF = """
from qeff_framework.plugin_api import hookimpl


class Hooks:
    @hookimpl
    def {hook}(self, request):
        return "{hook}"
"""


def halves(site: Path, compiling: str = "compile", running: str = "execute") -> None:
    for module, hook in (("qeff_halves_compiling", compiling), ("qeff_halves_running", running)):
        (site / f"{module}.py").write_text(HALF.format(hook=hook))
    echo_backend(site, "halves", source=SPLIT)


@pytest.mark.parametrize(
    ("stage", "imported"), [("compile", ["compiling"]), ("execute", ["running"]), (None, ["compiling", "running"])]
)
def test_only_the_half_that_a_stage_needs_is_imported(site: Path, stage: Stage | None, imported: list[str]) -> None:
    halves(site)
    assert Registry().get("halves", stage=stage).name == "halves"
    assert sorted(name for name in sys.modules if name.startswith("qeff_halves_") and name.endswith("ing")) == [
        f"qeff_halves_{half}" for half in imported
    ]


def test_a_hook_in_the_wrong_half_is_refused(site: Path) -> None:
    halves(site, compiling="execute")
    with pytest.raises(BackendIncompatibleError, match=r"execute\(\) of Hooks would not be called"):
        Registry().get("halves", stage="compile")
