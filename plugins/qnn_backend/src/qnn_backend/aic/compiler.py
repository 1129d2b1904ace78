"""The compile stage of target ``aic``, from request to artifact: converter, then context generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from qeff_framework.lowering import lowered_specs, writing_memory
from qeff_framework.plugin_api import CompiledModel, CompileRequest, announce_memory
from qeff_framework.toolchains import Toolchain
from qnn_backend.aic.bundle import PROGRAM_FOLDER, Bundle, write_bundle, write_compiler_config
from qnn_backend.aic.failures import diagnosis
from qnn_backend.aic.names import renamed_states, renamed_tensors
from qnn_backend.aic.qaic import shared
from qnn_backend.aic.script import SCRIPT_FILE, write_script
from qnn_backend.aic.sdk import Sdk, needs_model_library, usable_sdk
from qnn_backend.aic.side_files import graph_names, sizes_of_outputs
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
        # Heads of the caches may have been replicated.
        inputs=lowered_specs(request.model.graph.inputs, renamed_tensors(request.exported.inputs)),
        outputs=lowered_specs(request.model.graph.outputs, renamed_tensors(request.exported.outputs)),
        states=renamed_states(request.exported.states),
    )
    request = dataclasses.replace(request, exported=exported)
    found = None if request.dry_run else usable_sdk()
    graph_names(specializations)
    sizes = sizes_of_outputs(exported.inputs, exported.outputs, specializations)
    for value in request.model.graph.outputs if sizes else ():
        if value.shape is not None:
            value.shape = value.shape.evaluate(sizes)
    shared().check_program(exported, specializations)
    if options.dlc_file is None:
        announce_memory(f"writing the compiler's input for {request.backend}", writing_memory(request.model))
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
    program = {
        "folder": PROGRAM_FOLDER,
        "converter_arguments": bundle.converter_arguments,
        "generator_arguments": bundle.generator_arguments(_ROOT, model_library=_needs_library(description)),
        "sdk": description,
    }
    return request.result(
        backend="qnn",
        program=program,
        dry_run_result=f"{PROGRAM_FOLDER}/{QnnConstants.CONTEXT_BIN_QPC_NAME}",
        qconfig={"qnn_config": {"qnn_config_path": options.qnn_config and str(options.qnn_config), **description}},
    )


def _needs_library(description: Mapping[str, str]) -> bool:
    return needs_model_library(description.get("version", ""))


def _run_tools(bundle: Bundle, sdk: Sdk, description: Mapping[str, str], request: CompileRequest) -> None:
    minutes = request.options.qairt_timeout_minutes
    toolchain = Toolchain(
        request, name="qnn, target aic", time_limit_minutes=minutes, limit_option="qairt_timeout_minutes"
    )

    environment, hint = sdk.environment(), "The QAIRT tools are for x86-64 Linux only"
    if bundle.converter_arguments is not None:
        request.progress(f"running {_CONVERTER}")
        command = [*sdk.converter_command(), *bundle.converter_arguments]
        ended = toolchain.run(command, tool=_CONVERTER, environment=environment, hint=hint)
        toolchain.check(ended, _CONVERTER, bundle.dlc, diagnosis())
    write_compiler_config(bundle.directory, str(sdk.root))
    bundle.program.parent.mkdir()
    request.progress(f"running {_GENERATOR}; large models take tens of minutes")
    arguments = bundle.generator_arguments(str(sdk.root), model_library=_needs_library(description))
    command = [str(sdk.part(QnnConstants.QNN_CONTEXT_BIN)), *arguments]
    ended = toolchain.run(command, environment=environment, hint=hint)
    _take_program(bundle.program)
    toolchain.check(ended, _GENERATOR, bundle.program, diagnosis())


def _take_program(program: Path) -> None:
    """Finds the program. The public documents disagree on whether ``_backend`` is added to its name."""
    others = [*program.parent.glob(f"{program.stem}*{program.suffix}")]
    if not program.exists() and len(others) == 1:
        others[0].rename(program)
