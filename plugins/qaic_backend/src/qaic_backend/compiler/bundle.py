"""The compiler's input in one directory, and the command that turns it into a program.

All paths in the command are relative to the directory, and the compiler is run from inside it: the bundle can be moved, and what
is compiled from it does not depend on where it lay.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qaic_backend import flags
from qaic_backend.compiler import side_files
from qaic_backend.compiler.partitions import check_listed_nodes, name_nodes, pipeline, read_user_file, stage_nodes
from qaic_backend.options import QaicCompileOptions
from qaic_backend.sdk import PROGRAM_FILE, CompilerGeneration
from qeff_framework.lowering import LayerFunctions, link_stored_weights, narrow_stored_weights, write_weights
from qeff_framework.plugin_api import Specialization, StateSpec

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
SPECIALIZATIONS_FILE = "specializations.json"
FLAT_SPECIALIZATIONS_FILE = "specializations_flat.json"
CUSTOM_IO_FILE = "custom_io.yaml"
NODE_PRECISION_FILE = "node_precision.yaml"
PROGRAM_FOLDER = "qpc"

#: The compiler's users split weights into files of this size; a second one is called ``model-00002-of-....onnx.data``.
MAX_WEIGHTS_FILE_BYTES = 10 * 1024**3
#: Smaller initializers stay inside the model file; the compiler reads shapes and axes there.
_INLINE_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A directory with everything that the compiler reads."""

    directory: Path
    #: Arguments without the compiler's own path.
    arguments: tuple[str, ...]
    #: The flat form is there as well, for a compiler that refuses the named one.
    has_flat_form: bool

    @property
    def flat_arguments(self) -> tuple[str, ...]:
        """The same command with the flat form."""
        return tuple(_with_flat_form(argument) for argument in self.arguments)

    @property
    def program(self) -> Path:
        """What a successful compiler leaves."""
        return self.directory / PROGRAM_FOLDER / PROGRAM_FILE


def _with_flat_form(argument: str) -> str:
    flag = "-network-specialization-config"
    return f"{flag}={FLAT_SPECIALIZATIONS_FILE}" if argument.startswith(f"{flag}=") else argument


def write_bundle(
    directory: Path,
    model: ir.Model,
    *,
    specializations: Sequence[Specialization],
    states: Sequence[StateSpec],
    options: QaicCompileOptions,
    generation: CompilerGeneration,
    link_weights: bool = False,
) -> Bundle:
    """Writes the model, its weights and every side file into `directory`.

    With `link_weights` the files of the checkpoint are linked where the device has their type. Readers of ONNX may refuse files
    with several names, so that this is for bundles that are read after the links are gone; ``compile.sh`` sees to that.
    """
    user_file = options.mdp_load_partition_config
    # Read first: what is wrong with it is cheaper to say before gigabytes are written.
    user_partitions = read_user_file(user_file, options.num_devices) if user_file is not None else ""
    _store_weights(model, directory, options, link=link_weights)
    if options.sub_functions:
        # Behind all that looks at single nodes.
        LayerFunctions().run(model)
    name_nodes(model)
    if user_file is not None:
        check_listed_nodes(user_partitions, model, user_file.name)
    ir.save(model, directory / MODEL_FILE)
    named = _uses_named_form(options, generation)
    flat_text = side_files.flat_specializations(specializations)
    files = {SPECIALIZATIONS_FILE: side_files.named_specializations(specializations) if named else flat_text}
    if named:
        files[FLAT_SPECIALIZATIONS_FILE] = flat_text
    if states:
        files[CUSTOM_IO_FILE] = side_files.custom_io(states, "mxint8" if options.mxint8_kv_cache else "float16")
    if user_file is not None:
        files[partition_file(options)] = user_partitions
    elif options.mdp_num_partitions > 1:
        nodes = stage_nodes(model, states, options.mdp_num_partitions)
        files[partition_file(options)] = pipeline(nodes, options.num_devices, options.num_cores)
    elif options.num_devices > 1:
        files[partition_file(options)] = side_files.tensor_slicing(options.num_devices, options.num_cores)
    if options.fp32_nodes:
        files[NODE_PRECISION_FILE] = side_files.node_precision(options.fp32_nodes)
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    return Bundle(
        directory=directory,
        arguments=tuple(compiler_arguments(options, generation, retained_state=bool(states))),
        has_flat_form=named,
    )


def _store_weights(model: ir.Model, directory: Path, options: QaicCompileOptions, *, link: bool) -> None:
    """Brings the weights to disk, in 16 bits where the checkpoint has them so.

    ai100 has no bfloat16, and its compiler refuses weights of that type: they are rounded to FP16, as the compiler would round
    the same numbers in a file of twice the size.
    """
    types = {ir.DataType.FLOAT, ir.DataType.FLOAT16} if options.convert_to_fp16 else {ir.DataType.FLOAT}
    if options.hw_version != "ai100":
        types.add(ir.DataType.BFLOAT16)
    if link:
        link_stored_weights(model, directory, types=types)
    narrow_stored_weights(model, types=types, stays=functools.partial(_stays_wide, options=options))
    write_weights(model, directory, WEIGHTS_FILE, inline_bytes=_INLINE_BYTES, max_file_bytes=MAX_WEIGHTS_FILE_BYTES)


def _stays_wide(value: ir.Value, *, options: QaicCompileOptions) -> bool:
    """Whether a node that computes in FP32 reads the weight."""
    types = set(getattr(options, "keep_original_precision_for_nodes"))  # noqa: B009 -- a field of the table
    wide = set(options.fp32_nodes)
    return any(node.op_type in types or str(node.outputs[0].name) in wide for node, _ in value.uses())


def partition_file(options: QaicCompileOptions) -> str:
    """Name of the file that spreads a program over several devices; "" for a single one."""
    if options.mdp_load_partition_config is not None:
        return "mdp_user.json"
    if options.num_devices == 1:
        return ""
    if options.mdp_num_partitions > 1:
        return f"mdp_disagg_{options.num_devices}d_{options.mdp_num_partitions}p.json"
    return f"mdp_ts_{options.num_devices}.json"


def _uses_named_form(options: QaicCompileOptions, generation: CompilerGeneration) -> bool:
    if options.specialization_format == "auto":
        return generation.named_specializations
    return options.specialization_format == "named"


def compiler_arguments(
    options: QaicCompileOptions, generation: CompilerGeneration, *, retained_state: bool
) -> list[str]:
    """The command line without the compiler's path."""
    result = [
        "-aic-hw",
        f"-aic-hw-version={'2.0' if generation.legacy else options.hw_version}",
        f"-m={MODEL_FILE}",
        f"-aic-num-cores={options.num_cores}",
    ]
    switches = {
        # Without it a compiler of 1.18 or older also runs the program.
        "-compile-only": generation.legacy,
        "-convert-to-fp16": options.convert_to_fp16,
        "-retained-state": retained_state,
        "-mxfp6-matmul": options.mxfp6_matmul,
        "-sub-functions": options.sub_functions,
    }
    result += [switch for switch, is_on in switches.items() if is_on]
    result += flags.arguments(options)
    result += options.extra_flags
    if partitions := partition_file(options):
        result.append(f"-mdp-load-partition-config={partitions}")
    if options.fp32_nodes:
        result.append(f"-node-precision-info={NODE_PRECISION_FILE}")
    result.append(f"-network-specialization-config={SPECIALIZATIONS_FILE}")
    if retained_state:
        result.append(f"-custom-IO-list-file={CUSTOM_IO_FILE}")
    return [*result, f"-aic-binary-dir={PROGRAM_FOLDER}"]
