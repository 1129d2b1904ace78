"""What the backend says about itself and this machine."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from qaic_backend import QaicBackend, QaicOptions, QaicRuntimeOptions, flags
from qaic_backend.devices import choose_group, query_devices
from qaic_backend.sdk import find_sdk, generation_of, read_version
from qeff_framework.errors import OptionError
from qeff_framework.options import describe_options, parse_options
from qeff_framework.plugin_api import Status
from tests.sdk_standins.qaic import NOISE_VARIABLE, ProcessFault, fault_environment


def statuses(probe) -> dict[str, Status]:
    return {check.name: check.status for check in probe.checks}


def test_without_sdk_the_probe_is_quick_and_names_remedies(no_sdk) -> None:
    started = time.monotonic()
    probe = QaicBackend().probe()
    assert time.monotonic() - started < 0.5
    assert not probe.can_compile
    assert not probe.can_execute
    failed = [check for check in probe.checks if check.status is Status.FAILED]
    assert [check.name for check in failed] == ["compiler", "runtime"]
    assert all(str(no_sdk) in check.detail and "QEFF_QAIC_SDK_ROOT" in check.remedy for check in failed)
    assert QaicBackend().fingerprint()["qaic_apps_version"] == "none"


@pytest.mark.parametrize(
    ("without", "devices", "can_compile", "can_execute", "not_ok"),
    [
        (set(), "ultra", True, True, {}),
        ({"runtime"}, "none", True, False, {"runtime": Status.FAILED, "devices": Status.FAILED}),
        ({"compiler"}, "standard", False, True, {"compiler": Status.FAILED}),
        ({"util"}, "standard", True, True, {"devices": Status.WARNING}),
        ({"xml"}, "standard", True, True, {"SDK versions": Status.WARNING}),
        (set(), "error", True, False, {"devices": Status.FAILED}),
    ],
    ids=["complete", "apps only", "platform only", "no util", "no versions", "device in error"],
)
def test_standin_probe_tells_compiling_from_executing(
    without, devices, can_compile, can_execute, not_ok, standin
) -> None:
    standin(without=without, devices=devices)
    probe = QaicBackend().probe()
    assert (probe.can_compile, probe.can_execute) == (can_compile, can_execute)
    assert {name: status for name, status in statuses(probe).items() if status is not Status.OK} == not_ok
    assert all(check.remedy for check in probe.checks if check.status is not Status.OK)


def test_standin_versions_come_from_the_files(standin) -> None:
    sdk = standin(profile="1.21")
    fingerprint = QaicBackend().fingerprint()
    assert fingerprint["qaic_apps_version"] == fingerprint["qaic_platform_version"] == sdk.profile.version
    (sdk.root / "versions" / "apps.xml").write_text("<versions><broken")
    assert read_version(sdk.root / "versions" / "apps.xml") is None
    # A compiler that does not say its version is another one when its file is.
    before = QaicBackend().fingerprint()
    with (sdk.root / "exec" / "qaic-compile").open("a") as compiler:
        compiler.write("\n")
    assert QaicBackend().fingerprint() != before


@pytest.mark.parametrize(
    ("version", "compiler", "legacy", "named"),
    [
        ("1.18.3.9", "qaic-exec", True, False),
        ("1.21.6.80", "qaic-compile", False, False),
        ("1.22.0.42", "qaic-compile", False, True),
        ("1.100.0", None, False, True),
        (None, "qaic-exec", True, False),
        (None, None, False, True),
    ],
)
def test_generation_follows_the_version(version, compiler, legacy, named) -> None:
    generation = generation_of(version, compiler)
    assert (generation.legacy, generation.named_specializations) == (legacy, named)


def test_standin_device_report(standin, monkeypatch) -> None:
    monkeypatch.setenv(NOISE_VARIABLE, "1")
    standin(devices="two_boards")
    devices = query_devices(find_sdk().util)
    assert [device.qid for device in devices] == list(range(8))
    assert choose_group(devices, count=4, cores=16) == (0, 1, 2, 3)
    assert choose_group(devices[1:], count=4, cores=16) == (4, 5, 6, 7)
    assert choose_group(devices, count=5, cores=16) is None
    standin(devices="mdp_off")
    assert choose_group(query_devices(find_sdk().util), count=2, cores=16) is None
    standin(devices="ai200")
    assert query_devices(find_sdk().util)[0].generation == "ai200"


def test_standin_util_that_fails_is_a_failed_check(standin, monkeypatch) -> None:
    standin()
    monkeypatch.setenv(*fault_environment(util=ProcessFault(exit_code=3, stderr="no driver")).popitem())
    probe = QaicBackend().probe()
    assert not probe.can_execute
    assert "exit code 3: no driver" in probe.checks[-1].detail


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        ({"num_coers": 14}, ["did you mean 'num_cores'"]),
        ({"mos": 3, "num_cores": 17}, ["mos=3 must be a power of two", "num_cores=17 is out of range"]),
        ({"aic_depth_first_mem": 40}, ["aic_depth_first_mem=40 is out of range: 8 to 32"]),
        ({"extra_flags": ("-aic-num-cores=4",)}, ["set by the backend, use the option 'num_cores'"]),
        ({"extra_flags": ("-mos=2",), "mos": 1}, ["given by the option 'mos' as well"]),
        ({"extra_flags": ("--x", "-a", "-a")}, ["'--x' must have the form", "-a is given twice"]),
        ({"sdp_cluster_sizes": (8, 4)}, ["must add up to num_cores=16"]),
    ],
)
def test_options_are_refused_before_any_work(values, messages) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(QaicOptions, values, owner="backend 'qaic'")
    for message in messages:
        assert message in str(caught.value)


def test_every_flag_of_the_table_is_a_documented_option() -> None:
    described = {info.name: info for info in describe_options(QaicOptions)}
    for flag in flags.FLAGS:
        assert f"(-{flag.flag})" in described[flag.option].help
    assert not {flag.flag for flag in flags.FLAGS} & flags.OWN_FLAGS.keys()


def test_switches_can_be_turned_off_and_text_is_read() -> None:
    values = {"combine_inputs": "false", "mos": "2", "sdp_cluster_sizes": "8,8", "io_crc": "true"}
    options = parse_options(QaicOptions, values, owner="backend 'qaic'", from_text=True)
    assert flags.arguments(options) == ["-mos=2", "-sdp-cluster-sizes=8,8", "-combine-inputs=false", "-io-crc"]


def test_device_ids_must_differ() -> None:
    with pytest.raises(OptionError, match="different QIDs"):
        parse_options(QaicRuntimeOptions, {"device_ids": (1, 1)}, owner="backend 'qaic'")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, qaic_backend; print(sorted({'onnx', 'onnx_ir', 'numpy', 'torch', 'google.protobuf'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
