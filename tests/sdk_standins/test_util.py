"""Rows U1 to U4: the stand-in `qaic-util`."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.sdk_standins.harness import Compiler, Runtime, run_tool
from tests.sdk_standins.qaic import SCENARIOS, ProcessFault, StandinDevice, StandinSdk, fault_environment

Install = Callable[..., StandinSdk]


def blocks(text: str) -> dict[int, dict[str, str]]:
    """The output by QID, read as users of the tool read it."""
    result: dict[int, dict[str, str]] = {}
    parts = re.split(r"^QID (\d+)$", text, flags=re.MULTILINE)
    for qid, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = [line for line in body.splitlines() if line.startswith("\t")]
        result[int(qid)] = dict(line[1:].split(":", 1) for line in lines)
    return result


def query(sdk: StandinSdk, *arguments: str) -> str:
    done = run_tool(sdk.util, ["-q", *arguments])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_u1_block_format(sdk: StandinSdk) -> None:
    text = query(sdk)

    header, block = text.split("QID 0\n")
    assert header.splitlines()[0].startswith("LRT QC_IMAGE_VERSION: ")
    assert header.splitlines()[-1] == "Number of devices queried: 1"
    assert all(re.match(r"\t[A-Z][^:]*:(\S.*)?$", line) for line in block.splitlines() if "Mask" not in line)
    assert "\tNSP Defective PG Mask: 0x0" in block
    keys = [line[1:].split(":")[0] for line in block.splitlines()]
    order = [
        "Status",
        "PCI Address",
        "Dev Link",
        "HW Version",
        "FW IMAGE_VARIANT",
        "Dram Total",
        "Nsp Total",
        "Nsp Free",
    ]
    order += ["Networks Loaded", "Sku Type", "Device Capabilities", "Board serial", "Board power(Watts)"]
    assert [key for key in keys if key in order] == order


def test_u1_values_come_from_the_configuration(install: Install) -> None:
    device = StandinDevice(qid=3, sku="PCIe Lite", nsp_total=10, board_serial="B7", capabilities=("MDP+",))
    fields = blocks(query(install(devices=[device])))[3]

    assert (fields["Status"], fields["Sku Type"], fields["Nsp Total"], fields["Nsp Free"]) == (
        "Ready",
        "PCIe Lite",
        "10",
        "10",
    )
    assert (fields["Board serial"], fields["Device Capabilities"]) == ("B7", "MDP+")


@pytest.mark.parametrize(
    ("scenario", "qids"),
    [
        ("none", []),
        ("standard", [0]),
        ("error", [0]),
        ("ultra", [0, 1, 2, 3]),
        ("two_boards", list(range(8))),
        ("ai200", [0]),
        ("mdp_off", [0, 1, 2, 3]),
        ("fourteen_nsp", [0]),
        ("derived", [0, 100]),
    ],
)
def test_u2_scenarios(install: Install, scenario: str, qids: list[int]) -> None:
    text = query(install(devices=scenario))

    found = blocks(text)
    assert list(found) == qids
    assert f"Number of devices queried: {len(qids)}" in text
    assert {device.qid: device.status for device in SCENARIOS[scenario]()} == {q: f["Status"] for q, f in found.items()}


def test_u2_what_users_derive(install: Install) -> None:
    def fields(scenario: str) -> list[dict[str, str]]:
        return list(blocks(query(install(devices=scenario))).values())

    assert {f["Board serial"] for f in fields("ultra")} == {"STANDIN-BOARD-0"}
    assert [f["Board serial"] for f in fields("two_boards")].count("STANDIN-BOARD-1") == 4
    assert re.search(r"FW IMAGE_VARIANT\s*:\s*(\S+)", query(install(devices="ai200")))[1].startswith("AIC200")  # type: ignore[index]
    assert all("MDP+" not in f["Device Capabilities"] for f in fields("mdp_off"))
    assert fields("fourteen_nsp")[0]["Nsp Total"] == "14"
    (error,) = fields("error")
    assert error["Dev Link"] == ""
    assert "Nsp Total" not in error
    assert "FW IMAGE_VARIANT" not in error


def test_u2_interleaved_log_lines(install: Install) -> None:
    sdk = install(devices="ultra")
    noisy = run_tool(sdk.util, ["-q"], {"QAIC_STANDIN_NOISE": "1"}).stdout

    assert noisy != query(sdk)
    assert blocks(noisy) == blocks(query(sdk))


def test_u3_device_selection(install: Install) -> None:
    sdk = install(devices="two_boards")

    assert list(blocks(query(sdk, "-d", "1", "-d", "5"))) == [1, 5]
    assert list(blocks(query(sdk, "-f", "Board serial==STANDIN-BOARD-1"))) == [4, 5, 6, 7]
    done = run_tool(sdk.util, ["-q", "-d", "9"])
    assert (done.returncode, done.stderr) == (255, "Device 9 invalid\n")


def test_u3_usage(sdk: StandinSdk, tmp_path: Path) -> None:
    assert run_tool(sdk.util, ["-h"]).returncode == 255
    assert run_tool(sdk.util, ["--query"]).returncode == 255
    assert run_tool(sdk.util, []).returncode == 255
    assert run_tool(sdk.util, ["-V"]).stdout == "1.21.6.80\n"
    query(sdk, "-j", str(tmp_path / "devices.json"))
    assert json.loads((tmp_path / "devices.json").read_text())[0]["qid"] == 0


def test_u3_hang_and_failure(sdk: StandinSdk) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(
            [str(sdk.util), "-q"], env=fault_environment(util=ProcessFault(sleep_seconds=30)), timeout=0.5, check=False
        )
    done = run_tool(sdk.util, ["-q"], fault_environment(util=ProcessFault(exit_code=5, stderr="broken")))
    assert (done.returncode, done.stdout, done.stderr) == (5, "", "broken")


def test_u4_free_nsps_follow_activations(runtime: Runtime, compiler: Compiler) -> None:
    qpc = compiler.ok(compiler.decoder_arguments())

    def free() -> str:
        return blocks(query(runtime.sdk))[0]["Nsp Free"]

    session = runtime.session(qpc)
    assert free() == "12"
    assert blocks(query(runtime.sdk))[0]["Networks Active"] == "1"
    session.deactivate()
    assert free() == "16"
