"""The compile stage from request to artifact."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from qaic_backend.compiler.bundle import PROGRAM_FOLDER, Bundle, write_bundle
from qaic_backend.compiler.checks import check_names, check_operators, check_program
from qaic_backend.compiler.failures import DIAGNOSIS, NAMED_FORM_REFUSED
from qaic_backend.compiler.memory import check_memory
from qaic_backend.compiler.script import SCRIPT_FILE, write_script
from qaic_backend.devices import MAX_CORES
from qaic_backend.sdk import PROGRAM_FILE, Sdk, find_sdk, generation_of, install_hint
from qaic_backend.windows import room_of_windows, window_of
from qeff_framework.lowering import lowered_specs, take_out_angles, writing_memory
from qeff_framework.plugin_api import (
    BackendUnavailableError,
    CompiledModel,
    CompileRequest,
    OptionError,
    announce_memory,
)
from qeff_framework.toolchains import Ended, Toolchain


def compile_model(request: CompileRequest) -> CompiledModel:
    """Writes the compiler's input into the artifact and, unless it is a dry run, lets the compiler make the program.

    Raises:
        BackendUnavailableError: there is no compiler here.
        CompileError: the model cannot be compiled as asked, or the compiler failed.
    """
    options = request.options
    graph = request.model.graph
    # Heads of the caches may have been replicated.
    exported = dataclasses.replace(
        request.exported,
        inputs=lowered_specs(graph.inputs, request.exported.inputs),
        outputs=lowered_specs(graph.outputs, request.exported.outputs),
    )
    request = dataclasses.replace(request, exported=exported)
    sdk = find_sdk()
    compiler = None if request.dry_run else required_compiler(sdk)
    check_program(exported, request.specializations)
    check_operators(request.model)
    check_names(request.model, options)
    host_graphs = _angles(request) if options.convert_to_fp16 else []
    name = sdk.compiler.name if sdk.compiler is not None else None
    generation = generation_of(options.target_sdk or sdk.apps_version, name)
    if generation.legacy and (options.hw_version != "ai100" or options.sub_functions):
        raise OptionError(
            "backend 'qaic': SDK 1.18 and older know ai100 only and no sub_functions; leave hw_version and sub_functions out, or "
            "compile with a newer SDK"
        )
    check_memory(request.model, exported, request.specializations, options, sdk)
    longest = max(item.dims.get("seq_len", 1) for item in request.specializations)
    if longest > 1 and any(name.startswith("UnrollScan@") for name in request.transforms):
        request.progress(
            f"the modules with a recurrent state are unrolled for {longest} tokens: unless the compiler drops what a decode step "
            f"does not use, that step takes as long as {longest} tokens; prefill_seq_len=1 makes a program without it"
        )
    number, windows = window_of(request.exported.metadata)
    if number == 0 and windows * options.num_cores > MAX_CORES:
        request.progress(room_of_windows(windows, {"num_cores": options.num_cores}))
    announce_memory(f"writing the compiler's input for {request.backend}", writing_memory(request.model))
    request.progress("writing the compiler's input")
    bundle = write_bundle(
        request.output_dir,
        request.model,
        specializations=request.specializations,
        states=exported.states,
        options=options,
        generation=generation,
        link_weights=compiler is None,
    )
    arguments = bundle.arguments
    if compiler is None:
        write_script(bundle)
        request.progress(
            f"to compile on a machine with the SDK: run {SCRIPT_FILE}, or qaic-compile {' '.join(arguments)}"
        )
    else:
        request.progress(f"running {compiler}; large models take tens of minutes")
        minutes = options.compile_timeout_minutes
        toolchain = Toolchain(request, name="qaic", time_limit_minutes=minutes, limit_option="compile_timeout_minutes")
        arguments = _run(compiler, bundle, toolchain)
    return request.result(
        backend="qaic",
        program={"folder": PROGRAM_FOLDER, "arguments": list(arguments), "host_graphs": host_graphs},
        dry_run_result=f"{PROGRAM_FOLDER}/{PROGRAM_FILE}",
    )


def _angles(request: CompileRequest) -> list[dict[str, str]]:
    """Takes what FP16 cannot hold out of the model. For each new input its name, and the file whose graph the host runs."""
    found = []
    for number, one in enumerate(take_out_angles([request.model])):
        file = f"angles_{number}.onnx"
        ir.save(one.model, request.output_dir / file)
        found.append({"input": one.input, "file": file})
    return found


def required_compiler(sdk: Sdk) -> Path:
    """Raises `BackendUnavailableError` with the remedy where it is not there."""
    if sdk.compiler is None:
        raise BackendUnavailableError(
            f"backend 'qaic' cannot compile: {sdk.root / 'exec' / 'qaic-compile'} is not there or not executable. To compile "
            f"here, {install_hint(sdk.root, 'Apps')}. To compile elsewhere, use dry_run=True and run the bundle's {SCRIPT_FILE}"
        )
    return sdk.compiler


def _run(compiler: Path, bundle: Bundle, toolchain: Toolchain) -> tuple[str, ...]:
    """Runs the compiler and returns the arguments that made the program."""

    def start(arguments: Sequence[str]) -> Ended:
        return toolchain.run([str(compiler), *arguments], hint="The Apps SDK is for x86-64 Linux only")

    arguments = bundle.arguments
    ended = start(arguments)
    if bundle.has_flat_form and ended.exit_code != 0 and NAMED_FORM_REFUSED in ended.output:
        # The SDK's version is not known, or it is older than it says: one more try in the form that all of them read.
        arguments = bundle.flat_arguments
        shutil.rmtree(bundle.directory / PROGRAM_FOLDER, ignore_errors=True)
        ended = start(arguments)
    toolchain.check(ended, compiler.name, bundle.program, DIAGNOSIS)
    return arguments
