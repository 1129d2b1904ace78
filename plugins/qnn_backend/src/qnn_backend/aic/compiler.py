"""The compile stage of target ``aic``, from request to artifact: converter, then context generator."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from qeff_framework.plugin_api import BackendUnavailableError, CompiledModel, CompileError, CompileRequest
from qnn_backend.aic.bundle import PROGRAM_FOLDER, Bundle, write_bundle, write_compiler_config
from qnn_backend.aic.failures import explain
from qnn_backend.aic.names import renamed_states, renamed_tensors
from qnn_backend.aic.qaic import shared
from qnn_backend.aic.script import SCRIPT_FILE, write_script
from qnn_backend.aic.sdk import Sdk, needs_model_library, usable_sdk
from qnn_backend.aic.side_files import graph_names
from qnn_backend.aic.user_config import read_user_config
from qnn_backend.constants import QnnConstants

_CONVERTER = "qairt-converter"
_GENERATOR = "qnn-context-binary-generator"
#: Stands for the SDK's folder in what is recorded: the artifact holds no path of this machine there.
_ROOT = f"${QnnConstants.QNN_SDK_PATH_ENV_VAR_NAME}"


def compile_model(request: CompileRequest) -> CompiledModel:
    """Writes the tools' input into the artifact and, unless it is a dry run, lets them make the program.

    Raises:
        BackendUnavailableError: there is no SDK here, or the qaic distribution is missing.
        CompileError: the model cannot be compiled as asked, or a tool failed.
    """
    options, specializations = request.options, request.specializations
    exported = dataclasses.replace(
        request.exported,
        inputs=renamed_tensors(request.exported.inputs),
        outputs=renamed_tensors(request.exported.outputs),
        states=renamed_states(request.exported.states),
    )
    found = None if request.dry_run else usable_sdk()
    graph_names(specializations)
    shared().check_program(exported, specializations)
    request.progress("writing the compiler's input")
    bundle = write_bundle(
        request.output_dir,
        request.model,
        inputs=exported.inputs,
        outputs=exported.outputs,
        states=exported.states,
        specializations=specializations,
        options=options,
        user=read_user_config(options.qnn_config),
    )
    description: Mapping[str, str] = {}
    if found is None:
        write_script(bundle)
        request.progress(f"to compile on a machine with the QAIRT SDK: run {SCRIPT_FILE}")
    else:
        sdk, description = found
        _run_tools(bundle, sdk, description, request)
    return CompiledModel(
        directory=request.output_dir,
        backend="qnn",
        task=exported.task,
        specializations=specializations,
        inputs=exported.inputs,
        outputs=exported.outputs,
        states=exported.states,
        options=dataclasses.asdict(options),
        program={
            "folder": PROGRAM_FOLDER,
            "converter_arguments": bundle.converter_arguments,
            "generator_arguments": bundle.generator_arguments(_ROOT, model_library=_needs_library(description)),
            "sdk": description,
        },
        bundle_result=f"{PROGRAM_FOLDER}/{QnnConstants.CONTEXT_BIN_QPC_NAME}",
        qpc_config={"qnn_config": {"qnn_config_path": options.qnn_config, **description}},
        transforms=request.transforms,
        metadata=exported.metadata,
    )


def _needs_library(description: Mapping[str, str]) -> bool:
    return needs_model_library(description.get("version", ""))


def _run_tools(bundle: Bundle, sdk: Sdk, description: Mapping[str, str], request: CompileRequest) -> None:
    minutes = request.options.qairt_timeout_minutes
    deadline = time.monotonic() + 60 * minutes
    if bundle.converter_arguments is not None:
        request.progress(f"running {_CONVERTER}")
        _run(_CONVERTER, [*sdk.converter_command(), *bundle.converter_arguments], bundle, sdk, deadline, minutes)
        if not _has_content(bundle.dlc):
            raise _failed(bundle, f"{_CONVERTER} ended with exit code 0, but left no {bundle.dlc.name}")
    write_compiler_config(bundle.directory, str(sdk.root))
    bundle.program.parent.mkdir()
    request.progress(f"running {_GENERATOR}; large models take tens of minutes")
    arguments = bundle.generator_arguments(str(sdk.root), model_library=_needs_library(description))
    command = [str(sdk.part(QnnConstants.QNN_CONTEXT_BIN)), *arguments]
    _run(_GENERATOR, command, bundle, sdk, deadline, minutes)
    _take_program(bundle)


def _run(tool: str, command: Sequence[str], bundle: Bundle, sdk: Sdk, deadline: float, minutes: int) -> None:
    left = max(deadline - time.monotonic(), 0.0)
    try:
        ended = shared().run_compiler(command, bundle.directory, timeout_seconds=left, environment=sdk.environment())
    except OSError as error:
        raise BackendUnavailableError(
            f"backend 'qnn', target aic, cannot run {command[0]}: {error}. The QAIRT tools are for x86-64 Linux only"
        ) from error
    if ended.timed_out:
        raise _failed(bundle, f"{tool} did not end within {minutes} minutes (qairt_timeout_minutes)")
    if ended.exit_code != 0:
        raise _failed(bundle, explain(tool, ended.exit_code, ended.output))


def _take_program(bundle: Bundle) -> None:
    """Finds the program. The public documents disagree on whether ``_backend`` is added to its name."""
    program = bundle.program
    if not program.exists():
        others = [*program.parent.glob(f"{program.stem}*.bin")]
        if len(others) == 1:
            others[0].rename(program)
    if not _has_content(program):
        there = ", ".join(sorted(path.name for path in program.parent.iterdir())) or "nothing"
        raise _failed(bundle, f"{_GENERATOR} ended with exit code 0, but left no {program.name} ({there} is there)")


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _failed(bundle: Bundle, reason: str) -> CompileError:
    """The framework removes the directory of a failed compile; the log is kept where the message says."""
    with tempfile.NamedTemporaryFile(prefix="qeff-qnn-aic-compile-", suffix=".log", delete=False) as kept:
        kept.write((bundle.directory / shared().LOG_FILE).read_bytes())
    return CompileError(f"qnn, target aic: {reason}. Full output: {kept.name}")
