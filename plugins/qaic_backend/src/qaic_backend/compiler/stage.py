"""The compile stage from request to artifact."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from qaic_backend.compiler.bundle import PROGRAM_FOLDER, Bundle, write_bundle
from qaic_backend.compiler.checks import check_program
from qaic_backend.compiler.failures import NAMED_FORM_REFUSED, explain
from qaic_backend.compiler.process import LOG_FILE, Ended, run_compiler
from qaic_backend.compiler.script import SCRIPT_FILE, write_script
from qaic_backend.sdk import Sdk, find_sdk, generation_of, install_hint
from qeff_framework.plugin_api import BackendUnavailableError, CompiledModel, CompileError, CompileRequest


def compile_model(request: CompileRequest) -> CompiledModel:
    """Writes the compiler's input into the artifact and, unless it is a dry run, lets the compiler make the program.

    Raises:
        BackendUnavailableError: there is no compiler here.
        CompileError: the model cannot be compiled as asked, or the compiler failed.
    """
    exported, options = request.exported, request.options
    sdk = find_sdk()
    compiler = None if request.dry_run else _compiler(sdk)
    check_program(exported, request.specializations)
    name = sdk.compiler.name if sdk.compiler is not None else None
    request.progress("writing the compiler's input")
    bundle = write_bundle(
        request.output_dir,
        request.model,
        specializations=request.specializations,
        states=exported.states,
        options=options,
        generation=generation_of(options.target_sdk or sdk.apps_version, name),
    )
    arguments = bundle.arguments
    if compiler is None:
        write_script(bundle)
        request.progress(
            f"to compile on a machine with the SDK: run {SCRIPT_FILE}, or qaic-compile {' '.join(arguments)}"
        )
    else:
        request.progress(f"running {compiler}; large models take tens of minutes")
        arguments = _run(compiler, bundle, timeout_seconds=60.0 * options.compile_timeout_minutes)
    return CompiledModel(
        directory=request.output_dir,
        backend="qaic",
        task=exported.task,
        specializations=request.specializations,
        inputs=exported.inputs,
        outputs=exported.outputs,
        states=exported.states,
        options=asdict(options),
        program={"folder": PROGRAM_FOLDER, "arguments": list(arguments)},
        transforms=request.transforms,
        metadata=exported.metadata,
    )


def _compiler(sdk: Sdk) -> Path:
    if sdk.compiler is None:
        raise BackendUnavailableError(
            f"backend 'qaic' cannot compile: {sdk.root / 'exec' / 'qaic-compile'} is not there or not executable. To compile "
            f"here, {install_hint(sdk.root, 'Apps')}. To compile elsewhere, use dry_run=True and run the bundle's {SCRIPT_FILE}"
        )
    return sdk.compiler


def _run(compiler: Path, bundle: Bundle, *, timeout_seconds: float) -> tuple[str, ...]:
    """Runs the compiler and returns the arguments that made the program."""
    arguments = bundle.arguments
    ended = _start(compiler, arguments, bundle, timeout_seconds)
    if bundle.has_flat_form and ended.exit_code != 0 and NAMED_FORM_REFUSED in ended.output:
        # The SDK's version is not known, or it is older than it says: one more try in the form that all of them read.
        arguments = bundle.flat_arguments
        shutil.rmtree(bundle.directory / PROGRAM_FOLDER, ignore_errors=True)
        ended = _start(compiler, arguments, bundle, timeout_seconds)
    if ended.timed_out:
        raise _failed(
            bundle, f"the compiler did not end within {timeout_seconds / 60:g} minutes (compile_timeout_minutes)"
        )
    if ended.exit_code != 0 or not _has_program(bundle):
        raise _failed(bundle, explain(ended.exit_code, ended.output))
    return arguments


def _start(compiler: Path, arguments: Sequence[str], bundle: Bundle, timeout_seconds: float) -> Ended:
    try:
        return run_compiler([str(compiler), *arguments], bundle.directory, timeout_seconds=timeout_seconds)
    except OSError as error:
        raise BackendUnavailableError(
            f"backend 'qaic' cannot run {compiler}: {error}. The Apps SDK is for x86-64 Linux only"
        ) from error


def _has_program(bundle: Bundle) -> bool:
    return bundle.program.is_file() and bundle.program.stat().st_size > 0


def _failed(bundle: Bundle, reason: str) -> CompileError:
    """The framework removes the directory of a failed compile; the log is kept where the message says."""
    with tempfile.NamedTemporaryFile(prefix="qeff-qaic-compile-", suffix=".log", delete=False) as kept:
        kept.write((bundle.directory / LOG_FILE).read_bytes())
    return CompileError(f"qaic: {reason}. Full output: {kept.name}")
