"""How the tests of the stand-in QAIC SDK run its compiler, its tools and its runtime."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import yaml
from tests.sdk_standins.graphs import Decoder
from tests.sdk_standins.host_session import HostSession
from tests.sdk_standins.qaic import StandinSdk

PREFILL_AND_DECODE = (
    {"batch_size": "1", "seq_len": "4", "ctx_len": "16"},
    {"batch_size": "1", "seq_len": "1", "ctx_len": "16"},
)
KV_FLOAT16 = {"past_key.0": "float16", "past_key.0_RetainedState": "float16"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one compiler run."""

    code: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def program(self) -> Path:
        return self.folder / "programqpc.bin"


class Compiler:
    """Runs one tree's compiler on models and side files that it writes to a folder of its own.

    In this process by default, which saves half a second a run; `in_subprocess` starts the installed executable.
    """

    def __init__(self, sdk: StandinSdk, folder: Path) -> None:
        self.sdk = sdk
        self.folder = folder
        self._main: Callable[[str, Sequence[str]], int] = _module_of(sdk, "compiler.main").main

    def arguments(self, model: onnx.ModelProto | Path | None = None, **files: Any) -> list[str]:
        """A complete command line. `files`: specializations, custom_io, mdp, node_precision, as Python values."""
        path = model if isinstance(model, Path) else self.write_model(model or Decoder().model())
        version = "-aic-hw-version=ai100" if self.sdk.profile.name == "1.22" else "-aic-hw-version=2.0"
        arguments = [f"-m={path}", "-aic-hw", version, "-aic-num-cores=4", f"-aic-binary-dir={self.folder / 'qpc'}"]
        if self.sdk.profile.needs_compile_only:
            arguments.append("-compile-only")
        if "specializations" in files:
            document = {"specializations": list(files["specializations"])}
            arguments.append(f"-network-specialization-config={self.write('specializations.json', document)}")
        if "custom_io" in files:
            items = [{"IOName": name, "Precision": kind} for name, kind in files["custom_io"].items()]
            arguments.append(f"-custom-IO-list-file={self.write('custom_io.yaml', items)}")
        if "mdp" in files:
            arguments.append(f"-mdp-load-partition-config={self.write('mdp.json', files['mdp'])}")
        if "node_precision" in files:
            arguments.append(f"-node-precision-info={self.write('node_precision.yaml', files['node_precision'])}")
        return arguments

    def decoder_arguments(self, *extra: str, model: onnx.ModelProto | Path | None = None, **files: Any) -> list[str]:
        """The usual command line of a decoder with retained FP16 state."""
        files = {"specializations": PREFILL_AND_DECODE, "custom_io": KV_FLOAT16, **files}
        return [*self.arguments(model, **files), "-retained-state", "-convert-to-fp16", *extra]

    def write(self, name: str, content: Any) -> Path:
        path = self.folder / name
        if isinstance(content, str):
            path.write_text(content)
        elif path.suffix == ".json":
            path.write_text(json.dumps(content))
        else:
            path.write_text(yaml.safe_dump(content))
        return path

    def write_model(self, model: onnx.ModelProto) -> Path:
        path = self.folder / "model.onnx"
        onnx.save_model(model, str(path))
        return path

    def __call__(self, arguments: Sequence[str]) -> Outcome:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = self._main(self.sdk.compiler.name, arguments)
        return Outcome(code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue(), folder=self.folder / "qpc")

    def in_subprocess(
        self, arguments: Sequence[str], env: Mapping[str, str] | None = None, tool: Path | None = None
    ) -> Outcome:
        done = run_tool(tool or self.sdk.compiler, arguments, env)
        return Outcome(code=done.returncode, stdout=done.stdout, stderr=done.stderr, folder=self.folder / "qpc")

    def ok(self, arguments: Sequence[str]) -> Path:
        """Compile, expect success, return the QPC folder."""
        outcome = self(arguments)
        assert outcome.code == 0, outcome.stderr
        assert outcome.program.is_file()
        return outcome.folder

    def fails(self, arguments: Sequence[str], *parts: str, code: int = 1) -> None:
        """Compile, expect this exit code, these parts in stderr, and no result."""
        (self.folder / "qpc" / "programqpc.bin").unlink(missing_ok=True)
        outcome = self(arguments)
        assert outcome.code == code, (outcome.code, outcome.stderr)
        for part in parts:
            assert part in outcome.stderr
        assert not outcome.program.exists()


def run_tool(
    tool: Path, arguments: Sequence[str], env: Mapping[str, str] | None = None, **keywords: Any
) -> subprocess.CompletedProcess[str]:
    """Run an installed executable as a plugin does: by path, without a shell, and without this process's modules."""
    environment = {"PATH": "/usr/bin:/bin", **(env or {})}
    return subprocess.run(
        [str(tool), *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60, **keywords
    )


def _module_of(sdk: StandinSdk, name: str) -> ModuleType:
    """A module of the package that was copied into the tree."""
    package = f"standin_under_test_{abs(hash(sdk.root)):x}"
    if package not in sys.modules:
        folder = sdk.layout.private / "qaic_standin"
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


@dataclass(frozen=True)
class Runtime:
    """Imported runtime modules of a tree, and sessions that are deactivated at the end of the test."""

    sdk: StandinSdk
    modules: tuple[ModuleType, ModuleType]
    stack: contextlib.ExitStack

    @property
    def rt(self) -> Any:
        return self.modules[0]

    @property
    def api(self) -> Any:
        return self.modules[1]

    def session(self, qpc: Path, device_ids: Sequence[int] = (0,), *, activate: bool = True) -> HostSession:
        session = HostSession(self.modules, qpc, device_ids, activate=activate)
        self.stack.callback(session.deactivate)
        return session
