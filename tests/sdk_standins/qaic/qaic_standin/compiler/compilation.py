"""One compilation, from checked arguments to a QPC on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..faults import ProcessFault
from ..io_descriptor import io_descriptor_bytes
from ..profiles import Profile
from ..program_description import ProgramDescription
from ..qpc_file import (
    CONSTANTS,
    CONSTANTS_DESCRIPTION,
    IO_DESCRIPTION,
    NETWORK,
    NETWORK_DESCRIPTION,
    PROGRAM_FILE,
    write_qpc,
)
from .arguments import Arguments
from .bindings import check_types, make_bindings, make_entries
from .bound_graph import bind_graph
from .custom_io import read_custom_io, write_template
from .errors import CompileError
from .mdp import dump_partition, read_partitions
from .memory import DEFAULT_DEVICE_BYTES, check_memory
from .model_file import ModelFile, read_model
from .node_precision import read_node_precision
from .operators import check_operators
from .reference_graph import write_reference_graph
from .retained_state import retained_pairs
from .specializations import read_specializations
from .subfunctions import check_subfunction_shapes
from .target import target_of

_CONSTANTS_WORK_FILE = "constants.work"
_PROGRAM_WORK_FILE = "programqpc.work"


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """The inputs of one compilation. `note_read` and `note_written` report files to the invocation log."""

    arguments: Arguments
    profile: Profile
    fault: ProcessFault
    note_read: Callable[[Path], None]
    note_written: Callable[[Path], None]


def prepare_folder(folder: Path) -> None:
    """Create the output folder and remove an earlier result, so that a failure cannot leave one behind.

    Raises:
        CompileError: the folder cannot be created or written.
    """
    try:
        folder.mkdir(exist_ok=True)
        (folder / PROGRAM_FILE).unlink(missing_ok=True)
        # Work files stay after a failure, as with the real tool: cleaning up is the caller's task.
        (folder / _CONSTANTS_WORK_FILE).write_bytes(b"")
    except OSError as error:
        raise CompileError(f"Cannot write to -aic-binary-dir '{folder}': {error}") from error


def compile_program(compilation: Compilation) -> None:
    """Check everything, then write `programqpc.bin` last and atomically.

    Raises:
        CompileError: the first thing that is wrong.
    """
    arguments = compilation.arguments
    folder = arguments.required_path("aic-binary-dir")
    source, program = _describe(compilation)
    reference = write_reference_graph(
        source,
        folder / _CONSTANTS_WORK_FILE,
        to_float16=program.convert_to_fp16,
        mxfp6_matmul=arguments.flag("mxfp6-matmul"),
    )
    write_qpc(
        folder / _PROGRAM_WORK_FILE,
        [
            (NETWORK_DESCRIPTION, program.to_json()),
            (IO_DESCRIPTION, io_descriptor_bytes(program)),
            (CONSTANTS_DESCRIPTION, reference.constants_table),
            (NETWORK, reference.graph),
            (CONSTANTS, folder / _CONSTANTS_WORK_FILE),
        ],
        with_crc=arguments.flag("qpc-crc"),
    )
    if compilation.fault.truncate_output is not None:
        with (folder / _PROGRAM_WORK_FILE).open("rb") as handle:
            (folder / PROGRAM_FILE).write_bytes(handle.read(compilation.fault.truncate_output))
    else:
        (folder / _PROGRAM_WORK_FILE).replace(folder / PROGRAM_FILE)
        (folder / _CONSTANTS_WORK_FILE).unlink()
    compilation.note_written(folder / PROGRAM_FILE)


def _describe(compilation: Compilation) -> tuple[ModelFile, ProgramDescription]:
    arguments, profile = compilation.arguments, compilation.profile
    target = target_of(arguments, profile)
    source = _read_source(compilation)
    model = source.model
    sub_functions = arguments.flag("sub-functions")
    check_operators(model, sub_functions=sub_functions)
    if sub_functions:
        check_subfunction_shapes(model)
    check_types(model, target)

    def side_file(option: str) -> Path | None:
        path = arguments.path(option)
        if path is not None:
            compilation.note_read(path)
        return path

    specializations = read_specializations(side_file("network-specialization-config"), arguments.symbols, profile)
    bound = bind_graph(model, specializations)
    pairs = retained_pairs(model, bound) if arguments.flag("retained-state") else {}
    custom = read_custom_io(side_file("custom-IO-list-file"), model, target, pairs)
    bindings = make_bindings(model, custom, pairs)
    program = ProgramDescription(
        profile=profile.name,
        target=target,
        cores_per_device=read_partitions(side_file("mdp-load-partition-config"), model, arguments.cores),
        convert_to_fp16=arguments.flag("convert-to-fp16"),
        is_encrypted="io-encrypt" in arguments.values,
        bindings=bindings,
        entries=make_entries(bindings, bound),
        node_precision=read_node_precision(side_file("node-precision-info")),
    )
    limit = compilation.fault.device_memory_bytes
    check_memory(
        model,
        program,
        mxfp6_matmul=arguments.flag("mxfp6-matmul"),
        limit=DEFAULT_DEVICE_BYTES if limit is None else limit,
    )
    _write_dumps(compilation, source)
    return source, program


def _read_source(compilation: Compilation) -> ModelFile:
    path = compilation.arguments.required_path("m")
    compilation.note_read(path)
    source = read_model(path)
    for file in source.external_files():
        compilation.note_read(file)
    return source


def _write_dumps(compilation: Compilation, source: ModelFile) -> None:
    arguments = compilation.arguments
    partition = arguments.path("mdp-dump-partition-config")
    if partition is not None:
        dump_partition(partition, source.model, arguments.cores)
        compilation.note_written(partition)
    template = arguments.path("dump-custom-IO-config-template")
    if template is not None:
        write_template(template, source.model)
        compilation.note_written(template)
