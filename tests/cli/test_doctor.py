"""``qeff doctor`` tells what works, what does not, and why."""

from __future__ import annotations

import json
import sys

import pytest

from qeff_framework.plugin_api import BACKEND_GROUP
from tests.cli.conftest import run_process
from tests.cli.toy_backend import DESCRIPTOR, install_toy
from tests.fake_distributions import write_distribution


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site-packages directory on the import path, which starts with nothing but the toy backend."""
    root = install_toy(tmp_path / "site")
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("QEFF_DISABLE_BACKENDS", "ort_sim,qnn,qaic")
    return root


def add(site, name, source, *, target="Descriptor", group=BACKEND_GROUP):
    write_distribution(
        site,
        f"qeff-{name}-backend",
        "2.1",
        entry_points={group: {name: f"{name}_module:{target}"}},
        modules={f"{name}_module": source},
    )


def diagnosed(qeff, *argv):
    result = qeff("doctor", *argv, "--json")
    return result, {item["name"]: item for item in result.json["backends"]}


def test_shows_checks_and_remedies(site, environment):
    environment["PYTHONPATH"] += f":{site}"
    result = run_process({**environment, "QEFF_DISABLE_BACKENDS": "ort_sim,qnn,qaic"}, "doctor", "toy")

    assert result.code == 0
    assert "toy (qeff-toy-backend 0.3.0): can compile and execute here (simulator, rank -5)" in result.out
    assert "warning  toes     in shoes" in result.out
    assert "-> take the shoes off" in result.out


def test_broken_backend_is_reported_and_not_fatal(site, qeff):
    add(site, "broken", "raise ImportError('libbroken.so is missing')")

    result, found = diagnosed(qeff)

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
def test_odd_backends(site, qeff, source, status, told):
    add(site, "odd", source)

    result, found = diagnosed(qeff, "odd")

    assert result.code == 1
    assert found["odd"]["status"] == status
    assert told in found["odd"]["verdict"]
    assert "Traceback" not in result.err


def test_implementation_that_cannot_be_loaded_is_a_failed_check(site, qeff):
    source = DESCRIPTOR.replace('name = "toy"', 'name = "hollow"').replace("toy_hooks", "hollow_hooks")
    add(site, "hollow", source, target="ToyBackend")

    result, found = diagnosed(qeff, "hollow")

    assert result.code == 1
    assert not found["hollow"]["usable"]
    assert found["hollow"]["checks"][-1]["status"] == "failed"
    assert "hollow_hooks" in found["hollow"]["exception"]


def test_other_plugin_api(site, qeff):
    add(site, "future", "raise AssertionError('must not be imported')", group="qeff_framework.backends.v9")

    result, found = diagnosed(qeff, "future")

    assert result.code == 1
    assert found["future"]["status"] == "incompatible"


@pytest.mark.parametrize("api", ["1.99", "2.0"])
def test_descriptor_for_another_plugin_api(site, qeff, api):
    source = DESCRIPTOR.replace('name = "toy"', f'name = "newer"\n    api = "{api}"')
    add(site, "newer", source.replace("toy_hooks", "newer_hooks"), target="ToyBackend")

    result, found = diagnosed(qeff, "newer")

    assert result.code == 1
    assert found["newer"]["status"] == "incompatible"
    assert f"was built for plugin API {api}" in found["newer"]["verdict"]
    assert found["newer"]["checks"] == []
    assert found["newer"]["remedy"] == (
        "install versions that fit together: pip install --upgrade qeff-newer-backend qeff-framework"
    )


def test_two_packages_of_one_name(site, qeff):
    add(site, "twin", "x = 1")
    write_distribution(site, "another-twin", entry_points={BACKEND_GROUP: {"twin": "twin_module:x"}}, modules={})

    result = qeff("doctor", "twin", "--json")

    assert result.code == 1
    assert [item["status"] for item in result.json["backends"]] == ["conflict", "conflict"]


def test_nothing_usable_is_1(site, qeff):
    result = qeff("doctor", QEFF_BACKENDS="")

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
    assert {"qeff-framework", "torch", "transformers", "diffusers", "onnx", "python", "QEFF_HOME"} <= set(described)


# --- the environment ------------------------------------------------------------------------------------------------------


def checks_of(result):
    return {check["name"]: check for check in result.json["checks"]}


def test_nothing_is_wrong_in_this_environment(qeff):
    checks = checks_of(qeff("doctor", "ort_sim", "--json"))

    assert {name for name, check in checks.items() if check["status"] == "failed"} == set()
    assert checks["extension timing"]["status"] == "ok"


def test_versions_that_do_not_fit_and_packages_that_are_there_twice(site, qeff, tmp_path, monkeypatch):
    add(site, "picky", "x = 1")
    metadata = site / "qeff_picky_backend-2.1.dist-info" / "METADATA"
    needs = ["numpy<1", "nowhere-to-be-found>=2", "absent; extra == 'more'", "pluggy>=1"]
    metadata.write_text(metadata.read_text() + "".join(f"Requires-Dist: {need}\n" for need in needs))
    other = tmp_path / "other"
    group = {BACKEND_GROUP: {"picky": "picky_module:x"}}
    write_distribution(other, "qeff-picky-backend", "2.0", entry_points=group, modules={})
    monkeypatch.setattr("sys.path", [*sys.path, str(other)])

    result = qeff("doctor", "toy", "--json")

    bad = {name: check["remedy"] for name, check in checks_of(result).items() if check["status"] != "ok"}
    assert bad == {
        "qeff-picky-backend needs numpy<1": "pip install 'numpy<1'",
        "qeff-picky-backend needs nowhere-to-be-found>=2": "pip install 'nowhere-to-be-found>=2'",
        "qeff-picky-backend is installed 2 times": "pip uninstall qeff-picky-backend, until it is gone, and install it once",
    }
    assert result.code == 0


def test_what_an_editable_install_leaves_beside_its_sources_is_no_second_package(site, qeff, tmp_path, monkeypatch):
    add(site, "edited", "x = 1")
    source = tmp_path / "my source"
    (site / "qeff_edited_backend-2.1.dist-info" / "direct_url.json").write_text(
        json.dumps({"dir_info": {"editable": True}, "url": source.as_uri()})
    )
    left = source / "src" / "qeff_edited_backend.egg-info"
    left.mkdir(parents=True)
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: qeff-edited-backend\nVersion: 2.0\n")
    elsewhere = tmp_path / "elsewhere" / "qeff_edited_backend.egg-info"

    def complaints():
        result = qeff("doctor", "toy", "--json")
        return [name for name, check in checks_of(result).items() if check["status"] != "ok"]

    monkeypatch.setattr("sys.path", [*sys.path, str(left.parent)])
    assert complaints() == []
    elsewhere.parent.mkdir()
    left.rename(elsewhere)
    monkeypatch.setattr("sys.path", [*sys.path, str(elsewhere.parent)])
    assert complaints() == ["qeff-edited-backend is installed 2 times"]


@pytest.mark.parametrize(("rank", "status"), [("hardware=False", "warning"), ("hardware=True", "ok")])
def test_a_device_without_a_backend_is_told(qeff, tmp_path, monkeypatch, rank, status):
    drivers, device = tmp_path / "drivers" / "acme_npu", tmp_path / "accel" / "accel0" / "device"
    drivers.mkdir(parents=True)
    device.mkdir(parents=True)
    (device / "driver").symlink_to(drivers)
    (device / "vendor").write_text("0x17cb\n")
    (device / "device").write_text("0xa100\n")
    monkeypatch.setattr("qeff_framework.cli.environment.ACCELERATORS", tmp_path / "accel")
    site = tmp_path / "site"
    add(
        site,
        "some",
        DESCRIPTOR.replace('"toy"', '"some"').replace("hardware=False", rank).replace("toy_hooks", "some_hooks")
        + "\nDescriptor = ToyBackend",
    )
    install_toy(site)
    (site / "some_hooks.py").write_text((site / "toy_hooks.py").read_text())
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))

    [check] = [each for name, each in checks_of(qeff("doctor", "some", "--json")).items() if name == "device accel0"]

    assert (check["status"], check["detail"].partition(";")[0]) == (status, "driver acme_npu, 17cb:a100")
    assert ("pip install qeff-acme-npu-backend" in check["remedy"]) == (status == "warning")


def test_every_backend_that_cannot_be_used_has_a_remedy(site, qeff, monkeypatch):
    add(site, "broken", "raise ImportError('libbroken.so is missing')")
    add(site, "future", "x = 1", group="qeff_framework.backends.v9")
    add(site, "twin", "x = 1")
    write_distribution(site, "another-twin", entry_points={BACKEND_GROUP: {"twin": "twin_module:x"}}, modules={})
    monkeypatch.setenv("QEFF_BACKEND_", "toy")

    _, found = diagnosed(qeff)
    text = qeff("doctor").out

    assert {item["status"] for item in found.values()} == {"available", "broken", "incompatible", "conflict", "blocked"}
    assert all(item["remedy"] or item["status"] == "available" for item in found.values())
    assert "-> repair what the error names, or reinstall: pip install --force-reinstall qeff-broken-backend" in text
    assert "-> did you mean QEFF_BACKEND?" in text
