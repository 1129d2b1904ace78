"""From the DLC to the back end's program (rows N10 and N11)."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....qaic.qaic_standin.compiler.bindings import check_types, make_bindings, make_entries
from ....qaic.qaic_standin.compiler.bound_graph import bind_graph
from ....qaic.qaic_standin.compiler.custom_io import CustomIo
from ....qaic.qaic_standin.compiler.mdp import read_partitions
from ....qaic.qaic_standin.compiler.memory import DEFAULT_DEVICE_BYTES, check_memory
from ....qaic.qaic_standin.compiler.model_file import ModelFile, read_model
from ....qaic.qaic_standin.compiler.reference_graph import write_reference_graph
from ....qaic.qaic_standin.compiler.retained_state import retained_pairs
from ....qaic.qaic_standin.compiler.specializations import Specialization
from ....qaic.qaic_standin.invocation_log import InvocationRecord
from ....qaic.qaic_standin.io_descriptor import io_descriptor_bytes
from ....qaic.qaic_standin.program_description import BFLOAT16, FLOAT, FLOAT16, INT8, MXINT8, ProgramDescription
from ....qaic.qaic_standin.qpc_file import (
    CONSTANTS,
    CONSTANTS_DESCRIPTION,
    IO_DESCRIPTION,
    NETWORK,
    NETWORK_DESCRIPTION,
    PROGRAM_FILE,
    write_qpc,
)
from ..dlc_file import Dlc, DlcError, Tensor, open_dlc
from ..faults import SUFFIX_VARIABLE, ProcessFault, is_on
from ..layout import Layout
from .arguments import existing_file
from .backend_options import extension_paths, read_options, refused
from .data_format import mx_tensors

_TARGET = "ai100"
_PRECISIONS = {"float32": FLOAT, "float16": FLOAT16, "bfloat16": BFLOAT16}
# The runtime stand-in loads programs of this generation of the QAIC SDK.
_RUNTIME_PROFILE = "1.21"


def generate(values: dict[str, str], layout: Layout, record: InvocationRecord, fault: ProcessFault) -> None:
    """Check everything, then write the context binary and, last, the back end's program.

    Raises:
        ToolError, CompileError: what is wrong.
    """
    _check_libraries(values, layout)
    if "config_file" not in values:
        raise refused("--config_file: the stand-in vouches for no defaults of the back end")
    if "dlc_path" not in values:
        raise refused("--model: the stand-in compiles a DLC only")
    folder = Path(values.get("output_dir", "output"))
    if not folder.is_dir():
        raise refused(f"--output_dir {folder}: no such folder")
    config = existing_file(values, "config_file")
    dlc_path = existing_file(values, "dlc_path")
    options_file, _ = extension_paths(config)
    for path in (config, options_file, dlc_path):
        record.read(path)
    try:
        with open_dlc(dlc_path) as (dlc, model_path):
            if dlc.target_backend != "AIC":
                raise refused(f"the DLC was made for {dlc.target_backend}, not for AIC")
            options = read_options(options_file, [graph.name for graph in dlc.graphs])
            source = read_model(model_path)
            program = _describe(source, dlc, options, values, record, fault)
            _write(source, program, options, values, folder, record, fault)
    except DlcError as error:
        raise refused(str(error)) from error


def _check_libraries(values: dict[str, str], layout: Layout) -> None:
    if existing_file(values, "backend").name != "libQnnAic.so":
        raise refused(f"--backend {values['backend']}: the stand-in compiles with libQnnAic.so only")
    if layout.profile().needs_model_library:
        if "model" not in values:
            raise refused("--model is required")
        if existing_file(values, "model").name != "libQnnModelDlc.so":
            raise refused(f"--model {values['model']}: a DLC is read by libQnnModelDlc.so")


def _describe(
    source: ModelFile,
    dlc: Dlc,
    options: Mapping[str, Any],
    values: dict[str, str],
    record: InvocationRecord,
    fault: ProcessFault,
) -> ProgramDescription:
    model = source.model
    check_types(model, _TARGET)
    bound = bind_graph(model, [Specialization(name=graph.name, symbols=graph.symbols) for graph in dlc.graphs])
    pairs = retained_pairs(model, bound) if options.get("compiler_retained_state") else {}
    in_mx: frozenset[str] = frozenset()
    if "data_format_config" in values:
        path = existing_file(values, "data_format_config")
        record.read(path)
        in_mx = mx_tensors(path, [graph.name for graph in dlc.graphs], [tensor.name for tensor in dlc.tensors])
    custom = {tensor.name: item for tensor in dlc.tensors if (item := _custom_io(tensor, in_mx)) is not None}
    bindings = make_bindings(model, custom, pairs)
    program = ProgramDescription(
        profile=_RUNTIME_PROFILE,
        target=_TARGET,
        cores_per_device=_cores(source, options, record),
        convert_to_fp16=dlc.float_bitwidth == 16 or bool(options.get("compiler_convert_to_FP16")),
        is_encrypted=False,
        bindings=bindings,
        entries=make_entries(bindings, bound),
        node_precision={},
    )
    limit = fault.device_memory_bytes
    check_memory(
        model,
        program,
        mxfp6_matmul=bool(options.get("compiler_mxfp6_matmul_weights")),
        limit=DEFAULT_DEVICE_BYTES if limit is None else limit,
    )
    return program


def _custom_io(tensor: Tensor, in_mx: frozenset[str]) -> CustomIo | None:
    if tensor.name in in_mx:
        if tensor.data_type != "uint8":
            raise refused(f"'{tensor.name}' is {tensor.data_type}; a tensor in MX format is uint8")
        return CustomIo(precision=MXINT8)
    if tensor.data_type == "bfloat16":
        raise refused(f"'{tensor.name}' is bfloat16, which {_TARGET} does not have")
    if tensor.data_type == "int8" and tensor.scale:
        return CustomIo(precision=INT8, scale=tensor.scale, offset=tensor.offset)
    if tensor.data_type in ("int8", "uint8"):
        raise refused(f"'{tensor.name}' is {tensor.data_type} without quantization parameters and not in MX format")
    precision = _PRECISIONS.get(tensor.data_type)
    return CustomIo(precision=precision) if precision else None


def _cores(source: ModelFile, options: Mapping[str, Any], record: InvocationRecord) -> tuple[int, ...]:
    cores = options.get("compiler_num_of_cores", 1)
    given = options.get("compiler_mdp_load_partition_config")
    if given is None:
        return (cores,)
    path = Path(given)
    if not path.is_file():
        raise refused(f"compiler_mdp_load_partition_config {path}: no such file")
    record.read(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        devices = [device for partition in document["partitions"] for device in partition["devices"]]
        if any("numCores" in device for device in devices):
            raise refused(f"{path.name}: numCores is not a key here; compiler_num_of_cores holds for every device")
        for device in devices:
            device["numCores"] = cores
    except (ValueError, KeyError, TypeError) as error:
        raise refused(f"{path.name} is not a partition file: {error!r}") from error
    with tempfile.TemporaryDirectory() as folder:
        complete = Path(folder) / path.name
        complete.write_text(json.dumps(document), encoding="utf-8")
        return read_partitions(complete, source.model, cores)


def _write(
    source: ModelFile,
    program: ProgramDescription,
    options: Mapping[str, Any],
    values: dict[str, str],
    folder: Path,
    record: InvocationRecord,
    fault: ProcessFault,
) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        constants, unfinished = Path(work) / "constants", Path(work) / "program"
        reference = write_reference_graph(
            source,
            constants,
            to_float16=program.convert_to_fp16,
            mxfp6_matmul=bool(options.get("compiler_mxfp6_matmul_weights")),
        )
        write_qpc(
            unfinished,
            [
                (NETWORK_DESCRIPTION, program.to_json()),
                (IO_DESCRIPTION, io_descriptor_bytes(program)),
                (CONSTANTS_DESCRIPTION, reference.constants_table),
                (NETWORK, reference.graph),
                (CONSTANTS, constants),
            ],
        )
        content = unfinished.read_bytes()
        # The tool appends the extension whatever the name ends in.
        context = folder / f"{values['binary_file']}.bin"
        context.write_text(f"stand-in context binary {hashlib.sha256(content).hexdigest()}\n", encoding="utf-8")
        record.wrote(context)
        if "backend_binary" not in values:
            return
        target = folder / values["backend_binary"]
        if is_on(SUFFIX_VARIABLE):
            target = target.with_name(f"{target.stem}_backend.bin")
        if target.name == PROGRAM_FILE or is_on(SUFFIX_VARIABLE):
            (folder / PROGRAM_FILE).unlink(missing_ok=True)
        target.write_bytes(content if fault.truncate_output is None else content[: fault.truncate_output])
        record.wrote(target)
