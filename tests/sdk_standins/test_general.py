"""Rows G1 to G7: the installed tree, its profiles, its log, its faults."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.sdk_standins.graphs import Decoder
from tests.sdk_standins.harness import Compiler, run_tool
from tests.sdk_standins.qaic import (
    NOISE_VARIABLE,
    PROFILE_VARIABLE,
    CallFault,
    ProcessFault,
    StandinSdk,
    fault_environment,
    install_standin,
)
from tests.sdk_standins.qaic.qaic_standin.faults import FaultError, parse_faults

Install = Callable[..., StandinSdk]


def test_g1_layout(sdk: StandinSdk) -> None:
    places = [
        "exec/qaic-compile",
        "exec/qaic-exec",
        "tools/qaic-util",
        "tools/qaic-version-util",
        f"dev/lib/{platform.machine()}/qaicrt.py",
        "dev/python/QAicApi_pb2.py",
        "versions/apps.xml",
        "versions/platform.xml",
    ]

    assert [place for place in places if not (sdk.root / place).is_file()] == []
    assert all(os.access(tool, os.X_OK) for tool in (sdk.compiler, sdk.util, sdk.version_util))


def test_g1_tools_need_nothing_from_the_tests(compiler: Compiler, tmp_path: Path) -> None:
    """The executables run with this interpreter, from elsewhere, with an empty environment, and import only from the tree."""
    arguments = compiler.decoder_arguments()
    done = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", str(compiler.sdk.compiler), *arguments],
        env={},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "qaic_standin.compiler.main" in done.stderr
    assert "sdk_standins" not in done.stderr


def test_g1_root_with_blanks(tmp_path: Path) -> None:
    sdk = install_standin(tmp_path / "root with blanks")
    folder = tmp_path / "work with blanks"
    folder.mkdir()
    compiler = Compiler(sdk, folder)

    assert compiler.in_subprocess(compiler.decoder_arguments()).code == 0


def test_g1_interpreter_path_with_blanks(tmp_path: Path) -> None:
    link = tmp_path / "my python"
    link.symlink_to(sys.executable)
    sdk = install_standin(tmp_path / "root", interpreter=link)

    # The linked interpreter does not find the environment's packages, which this tool does not need.
    assert run_tool(sdk.version_util, ["--apps"]).stdout == "AIC.1.21.6.80\n"


def test_g1_root_must_be_empty(sdk: StandinSdk) -> None:
    with pytest.raises(ValueError, match="is not empty"):
        install_standin(sdk.root)


@pytest.mark.parametrize(
    ("profile", "version", "compilers"),
    [
        ("legacy", "1.18.3", {"qaic-exec"}),
        ("1.21", "1.21.6", {"qaic-compile", "qaic-exec"}),
        ("1.22", "1.22.0", {"qaic-compile"}),
    ],
)
def test_g2_profiles(install: Install, profile: str, version: str, compilers: set[str]) -> None:
    sdk = install(profile=profile)

    assert {path.name for path in (sdk.root / "exec").iterdir()} == compilers
    for package in ("apps", "platform"):
        root = ET.parse(sdk.root / "versions" / f"{package}.xml").getroot()
        assert root.tag == "versions"
        assert root.findtext("ci_build/base_name") == "AIC"
        assert root.findtext(".//base_version") == version
        assert (root.findtext("ci_build/build_id") or "").isdecimal()
    assert run_tool(sdk.version_util, ["--platform"]).stdout.startswith(f"AIC.{version}.")


def test_g2_profile_from_the_environment(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROFILE_VARIABLE, "1.22")
    assert install().profile.name == "1.22"
    assert install(profile="legacy").profile.name == "legacy"
    monkeypatch.setenv(PROFILE_VARIABLE, "2.0")
    with pytest.raises(ValueError, match=r"Unknown profile '2\.0'"):
        install()


@pytest.mark.parametrize(
    ("part", "gone"),
    [
        ("compiler", ["exec/qaic-compile", "exec/qaic-exec"]),
        ("runtime", [f"dev/lib/{platform.machine()}/qaicrt.py", "dev/python/QAicApi_pb2.py"]),
        ("util", ["tools/qaic-util"]),
        ("xml", ["versions/apps.xml", "versions/platform.xml"]),
    ],
)
def test_g3_missing_part(install: Install, part: str, gone: list[str]) -> None:
    whole, partial = install(), install(without={part})

    def files(sdk: StandinSdk) -> set[str]:
        return {str(path.relative_to(sdk.root)) for path in sdk.root.rglob("*") if path.is_file()}

    assert files(whole) - files(partial) == set(gone)


def test_g3_version_tool_without_xml(install: Install) -> None:
    done = run_tool(install(without={"xml"}).version_util, ["--apps"])

    assert done.returncode == 1
    assert "apps.xml" in done.stderr


def test_g4_invocation_log(install: Install, tmp_path: Path) -> None:
    sdk = install()
    compiler = Compiler(sdk, tmp_path)
    arguments = compiler.decoder_arguments()
    compiler.in_subprocess(arguments, env={"QAIC_VISIBLE_DEVICES": "0", "SECRET": "no"})
    compiler.in_subprocess(["-nonsense"])
    run_tool(sdk.util, ["-q"])

    good, bad = sdk.invocations("qaic-compile")
    assert good.argv == tuple(arguments)
    assert good.exit_code == 0
    assert good.env == {"QAIC_VISIBLE_DEVICES": "0"}
    assert good.written == (tmp_path / "qpc" / "programqpc.bin",)
    assert {path.name for path in good.read} == {"model.onnx", "specializations.json", "custom_io.yaml"}
    assert "past_key.0" in good.text_of("-custom-IO-list-file")
    with pytest.raises(KeyError):
        good.text_of("-mdp-load-partition-config")
    assert (bad.argv, bad.exit_code) == (("-nonsense",), 1)
    assert [entry.tool for entry in sdk.invocations()] == ["qaic-compile", "qaic-compile", "qaic-util"]


def test_g5_exit_code_and_stderr(compiler: Compiler) -> None:
    fault = fault_environment(compile=ProcessFault(exit_code=7, stderr="injected"))
    outcome = compiler.in_subprocess(compiler.decoder_arguments(), fault)
    assert (outcome.code, outcome.stderr, outcome.program.exists()) == (7, "injected", False)

    silent = compiler.in_subprocess(compiler.decoder_arguments(), fault_environment(compile=ProcessFault(exit_code=1)))
    assert (silent.code, silent.stderr) == (1, "")


def test_g5_kill(compiler: Compiler) -> None:
    outcome = compiler.in_subprocess(compiler.decoder_arguments(), fault_environment(compile=ProcessFault(kill=True)))

    assert outcome.code == -signal.SIGKILL
    assert outcome.stderr == ""
    assert outcome.folder.is_dir()
    assert not outcome.program.exists()
    assert compiler.sdk.invocations()[-1].exit_code == -signal.SIGKILL


def test_g5_sleep(compiler: Compiler) -> None:
    fault = fault_environment(compile=ProcessFault(sleep_seconds=30))
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([str(compiler.sdk.compiler), *compiler.decoder_arguments()], env=fault, timeout=1.5, check=False)


def test_g5_truncated_output(compiler: Compiler) -> None:
    fault = fault_environment(compile=ProcessFault(truncate_output=100, exit_code=3))
    outcome = compiler.in_subprocess(compiler.decoder_arguments(), fault)
    assert (outcome.code, outcome.program.stat().st_size) == (3, 100)

    rerun = compiler(compiler.decoder_arguments())
    assert rerun.code == 0
    assert rerun.program.stat().st_size > 100


def test_g5_fault_variable_refuses_what_it_does_not_know() -> None:
    """The variable knows every call that can be made to fail, and refuses what it does not know."""
    everything = fault_environment(
        runtime={"Program.load": CallFault(status=500), "execute": CallFault(sleep_seconds=1)}
    )
    assert json.loads(everything["QAIC_STANDIN_FAULTS"])["runtime"]["Program.load"]["status"] == 500
    for wrong in ('{"compiler": {}}', '{"compile": {"exit": 1}}', '{"runtime": {"Program.lod": {"status": 1}}}', "{"):
        with pytest.raises(FaultError):
            parse_faults(wrong)


def test_g6_noise(install: Install, tmp_path: Path) -> None:
    sdk = install()
    compiler = Compiler(sdk, tmp_path)
    outcome = compiler.in_subprocess(compiler.decoder_arguments(), {NOISE_VARIABLE: "1"})
    assert outcome.code == 0
    assert "WARNING" in outcome.stderr
    assert "[progress]" in outcome.stdout

    text = run_tool(sdk.util, ["-q"], {NOISE_VARIABLE: "1"}).stdout
    assert re.search(r"^\[.*\]", text, re.MULTILINE)


def test_g7_equal_inputs_give_equal_bytes(compiler: Compiler, tmp_path: Path) -> None:
    first = (compiler.ok(compiler.decoder_arguments("-mxfp6-matmul")) / "programqpc.bin").read_bytes()

    elsewhere = Compiler(compiler.sdk, tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    outcome = elsewhere.in_subprocess(elsewhere.decoder_arguments("-mxfp6-matmul"))

    assert outcome.program.read_bytes() == first
    other = elsewhere.arguments(
        Decoder(seed=1).model(), specializations=[{"batch_size": "1", "seq_len": "1", "ctx_len": "8"}]
    )
    assert (elsewhere.ok(other) / "programqpc.bin").read_bytes() != first


def test_defects_of_the_standin_cannot_be_taken_for_refusals(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAIC_STANDIN_FAULTS", '{"misspelt": 1}')

    outcome = compiler(compiler.decoder_arguments())

    assert outcome.code == 70
    assert "Defect in the stand-in" in outcome.stderr


def test_version_tool(sdk: StandinSdk) -> None:
    def output(*arguments: str) -> tuple[int, Any]:
        done = run_tool(sdk.version_util, arguments)
        return done.returncode, done.stdout

    assert output() == (0, "AIC.1.21.6.80\nAIC.1.21.6.80\n")
    assert output("--apps") == (0, "AIC.1.21.6.80\n")
    assert output("--nothing") == (1, "")
