"""The compile stage from request to artifact."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qaic_backend.compiler.bundle import PROGRAM_FOLDER, Bundle, write_bundle
from qaic_backend.compiler.checks import check_operators, check_program
from qaic_backend.compiler.failures import NAMED_FORM_REFUSED, explain
from qaic_backend.compiler.memory import check_memory
from qaic_backend.compiler.process import LOG_FILE, Ended, run_compiler
from qaic_backend.compiler.script import SCRIPT_FILE, write_script
from qaic_backend.sdk import PROGRAM_FILE, Sdk, find_sdk, generation_of, install_hint
from qeff_framework.plugin_api import (
    BackendUnavailableError,
    CompiledModel,
    CompileError,
    CompileRequest,
    OptionError,
)


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
    check_operators(request.model)
    name = sdk.compiler.name if sdk.compiler is not None else None
    generation = generation_of(options.target_sdk or sdk.apps_version, name)
    if generation.legacy and (options.hw_version != "ai100" or options.sub_functions):
        raise OptionError(
            "backend 'qaic': SDK 1.18 and older know ai100 only and no sub_functions; leave hw_version and sub_functions out, or "
            "compile with a newer SDK"
        )
    check_memory(request.model, exported, request.specializations, options, sdk)
    request.progress("writing the compiler's input")
    bundle = write_bundle(
        request.output_dir,
        request.model,
        specializations=request.specializations,
        states=exported.states,
        options=options,
        generation=generation,
    )
    arguments = bundle.arguments
    if compiler is None:
        write_script(bundle)
        request.progress(
            f"to compile on a machine with the SDK: run {SCRIPT_FILE}, or qaic-compile {' '.join(arguments)}"
        )
    else:
        request.progress(f"running {compiler}; large models take tens of minutes")
        arguments = _run(
            compiler,
            bundle,
            timeout_seconds=60.0 * options.compile_timeout_minutes,
            logs=Logs(directory=request.log_dir, name=str(exported.metadata.get("model_name", "model"))),
        )
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
        bundle_result=f"{PROGRAM_FOLDER}/{PROGRAM_FILE}",
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


@dataclass(frozen=True, kw_only=True)
class Logs:
    """Where the log of a failed compiler is kept; without a directory, among the temporary files of the machine."""

    directory: Path | None
    #: Name of the model.
    name: str

    def keep(self, log: Path) -> Path:
        """Copies `log` under a name of its own."""
        directory = self.directory if self.directory is not None else Path(tempfile.gettempdir())
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name)[:60]
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            directory = Path(tempfile.gettempdir())  # A store that cannot be written must not cost the log.
        with tempfile.NamedTemporaryFile(
            prefix=f"qaic-{label}-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".log", dir=directory, delete=False
        ) as kept:
            kept.write(log.read_bytes())
        return Path(kept.name)


def _run(compiler: Path, bundle: Bundle, *, timeout_seconds: float, logs: Logs) -> tuple[str, ...]:
    """Runs the compiler and returns the arguments that made the program."""
    arguments = bundle.arguments
    ended = _start(compiler, arguments, bundle, timeout_seconds)
    if bundle.has_flat_form and ended.exit_code != 0 and NAMED_FORM_REFUSED in ended.output:
        # The SDK's version is not known, or it is older than it says: one more try in the form that all of them read.
        arguments = bundle.flat_arguments
        shutil.rmtree(bundle.directory / PROGRAM_FOLDER, ignore_errors=True)
        ended = _start(compiler, arguments, bundle, timeout_seconds)
    if ended.timed_out:
        reason = f"the compiler did not end within {timeout_seconds / 60:g} minutes (compile_timeout_minutes)"
        raise _failed(bundle, reason, logs)
    if ended.exit_code != 0 or not _has_program(bundle):
        raise _failed(bundle, explain(ended.exit_code, ended.output), logs)
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


def _failed(bundle: Bundle, reason: str, logs: Logs) -> CompileError:
    """The framework removes the directory of a failed compile; the log is kept where the message says."""
    return CompileError(f"qaic: {reason}. Full output: {logs.keep(bundle.directory / LOG_FILE)}")
