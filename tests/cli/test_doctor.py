"""``qeff doctor`` tells what works, what does not, and why."""

from __future__ import annotations

import pytest

from qeff_framework.plugin_api import BACKEND_GROUP
from tests.cli.conftest import run_process
from tests.cli.toy_backend import DESCRIPTOR, install_toy
from tests.fake_distributions import write_distribution


@pytest.fixture
def site(environment, tmp_path):
    """A site-packages directory for the command's process, which starts with nothing but the toy backend."""
    root = install_toy(tmp_path / "site")
    environment["PYTHONPATH"] += f":{root}"
    environment["QEFF_DISABLE_BACKENDS"] = "ort_sim,qnn,qaic"
    return root


def add(site, name, source, *, target="Descriptor", group=BACKEND_GROUP):
    write_distribution(
        site,
        f"qeff-{name}-backend",
        "2.1",
        entry_points={group: {name: f"{name}_module:{target}"}},
        modules={f"{name}_module": source},
    )


def diagnosed(environment, *argv):
    result = run_process(environment, "doctor", *argv, "--json")
    return result, {item["name"]: item for item in result.json["backends"]}


def test_shows_checks_and_remedies(site, environment):
    result = run_process(environment, "doctor", "toy")

    assert result.code == 0
    assert "toy (qeff-toy-backend 0.3.0): can compile and execute here (simulator, rank -5)" in result.out
    assert "warning  toes     in shoes" in result.out
    assert "-> take the shoes off" in result.out


def test_broken_backend_is_reported_and_not_fatal(site, environment):
    add(site, "broken", "raise ImportError('libbroken.so is missing')")

    result, found = diagnosed(environment)

    assert result.code == 0
    assert found["toy"]["usable"]
    assert found["broken"]["status"] == "broken"
    assert "ImportError: libbroken.so is missing" in found["broken"]["exception"]
    assert found["ort_sim"]["status"] == "blocked"


@pytest.mark.parametrize(
    ("source", "status", "told"),
    [
        ("raise SystemExit('no SDK')", "broken", "no SDK"),
        ("class Descriptor: pass", "incompatible", "expected a subclass"),
        (DESCRIPTOR.replace('"toy"', '"other"') + "Descriptor = ToyBackend", "incompatible", "descriptor says 'other'"),
        (
            DESCRIPTOR.replace('name = "toy"', 'name = "odd"').replace(
                "checks = [", "raise OSError('driver gone')\n        checks = ["
            )
            + "Descriptor = ToyBackend",
            "broken",
            "driver gone",
        ),
    ],
    ids=["exits at import", "no descriptor", "other name", "probe raises"],
)
def test_odd_backends(site, environment, source, status, told):
    add(site, "odd", source)

    result, found = diagnosed(environment, "odd")

    assert result.code == 1
    assert found["odd"]["status"] == status
    assert told in found["odd"]["verdict"]
    assert "Traceback" not in result.err


def test_implementation_that_cannot_be_loaded_is_a_failed_check(site, environment):
    source = DESCRIPTOR.replace('name = "toy"', 'name = "hollow"').replace("toy_hooks", "hollow_hooks")
    add(site, "hollow", source, target="ToyBackend")

    result, found = diagnosed(environment, "hollow")

    assert result.code == 1
    assert not found["hollow"]["usable"]
    assert found["hollow"]["checks"][-1]["status"] == "failed"
    assert "hollow_hooks" in found["hollow"]["exception"]


def test_other_plugin_api(site, environment):
    add(site, "future", "raise AssertionError('must not be imported')", group="qeff_framework.backends.v9")

    result, found = diagnosed(environment, "future")

    assert result.code == 1
    assert found["future"]["status"] == "incompatible"


def test_two_packages_of_one_name(site, environment):
    add(site, "twin", "x = 1")
    write_distribution(site, "another-twin", entry_points={BACKEND_GROUP: {"twin": "twin_module:x"}}, modules={})

    result = run_process(environment, "doctor", "twin", "--json")

    assert result.code == 1
    assert [item["status"] for item in result.json["backends"]] == ["conflict", "conflict"]


def test_nothing_usable_is_1(site, environment):
    result = run_process({**environment, "QEFF_BACKENDS": ""}, "doctor")

    assert result.code == 1
    assert "qeff-framework" in result.out
    assert result.err == (
        "qeff: error: none of the installed backends can compile or execute here; see their checks for the remedies\n"
    )


def test_environment_is_described(qeff, tmp_path):
    result = qeff("doctor", "ort_sim", "--json")

    assert result.code == 0
    described = result.json["environment"]
    assert described["store"] == str(tmp_path / "home")
    assert {"qeff-framework", "torch", "transformers", "onnx", "python", "QEFF_HOME"} <= set(described)
