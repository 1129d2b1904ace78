"""The compile stage: ONNX Runtime optimises the lowered graph once, so that loading it later does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ort_sim_backend.in_place import states_of_rows, states_of_windows, states_updated_in_place, states_with_room
from ort_sim_backend.lowering import final_passes
from ort_sim_backend.options import COMPRESSED_BITS
from ort_sim_backend.packed_weights import as_inputs, lookup_tables, packed_weights, put_back, write_packed
from ort_sim_backend.runtime import available_cpus, open_session, reason, save_program, session_options
from ort_sim_backend.spread_weights import has_transformed_weights, spread_weights
from ort_sim_backend.stored_packing import store_packed_weights
from qeff_framework.lowering import has_subgraph, lowered_specs, write_weights
from qeff_framework.plugin_api import CompiledModel, CompileError, CompileRequest, Specialization, announce_memory
from qeff_framework.sessions import check_distinct_shapes, check_specializations

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
BLOCKS_FILE = "model.onnx.blocks"
TAIL_FILE = "tail.onnx"
#: Smaller initializers stay inside the model file; shapes and axes are read there by ONNX Runtime's shape inference.
_INLINE_BYTES = 1024
#: Of a convolution's weight over a picture: channels out, channels in, height, width.
_PICTURE_AXES = 4
#: Rows of the further steps of continuous batching. The time of a step grows nearly as its rows: Gemma 3 270M with ``w8``
#: takes 19 ms for one row, 46 for 8 and 77 for 16.
_OTHER_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
#: Tokens of a prefill step of several prompts at most, so that the rows that decode wait no longer. Gemma 3 270M in float32 takes
#: 216 ms of processor time for one prompt's 32 tokens and 887 for those of 8 prompts.
_TOKENS_OF_PROMPTS = 256
#: Dimensions of a step that reads no images.
_SIZES_OF_TEXT = {"batch_size", "seq_len", "ctx_len", "full_batch_size", "comp_ctx_lengths"}
#: Peak of a compilation, without mapped files: libraries and graph; a weight that ONNX Runtime reads, rearranges and writes is
#: held more than once, one weight at a time. Measured in float32: 0.88 GB where the largest weight has 0.26 GB, 1.82 for 0.67,
#: 3.58 for 1.61. With ``w4`` 0.64 GB where it has 0.07, 1.26 for 0.53; with a calibration, which runs the model, 2.03 for 0.83.
_BASE_BYTES, _LARGEST_TIMES, _CALIBRATION_TIMES = 650_000_000, 1.75, 1.3


def compile_model(request: CompileRequest) -> CompiledModel:
    """Writes ``model.onnx`` and its weights. Raises `CompileError` when ONNX Runtime refuses the graph."""
    directory = request.output_dir
    check_specializations(request.exported, request.specializations, backend="ort_sim")
    if request.options.simulate is not None:
        check_distinct_shapes(request.exported, request.specializations)
    narrowed: dict[str, Any] = {}
    if request.options.precision in COMPRESSED_BITS:
        from ort_sim_backend.narrowing import narrow

        narrowed = narrow(request, announce=lambda held, rounding: _announce_memory(request, held, rounding))
    else:
        _announce_memory(request)
    if request.options.simulate is None:
        for lowering in final_passes():
            lowering(request.model)
    lowered = directory / "lowered.onnx"
    lowered_weights = directory / "lowered.onnx.data"
    request.progress("writing the lowered model")
    packed = packed_weights(request.model)
    write_packed(packed, directory, BLOCKS_FILE)
    # ONNX Runtime writes a second copy before the first is removed.
    write_weights(request.model, directory, lowered_weights.name, inline_bytes=_INLINE_BYTES, copies=2)
    with as_inputs(request.model, packed):
        ir.save(request.model, lowered)
    request.progress("optimising with ONNX Runtime")
    optimize(lowered, directory / MODEL_FILE, level=request.options.optimization_level)
    lowered.unlink()
    lowered_weights.unlink(missing_ok=True)
    states = request.exported.states
    names = {name for state in states for name in (state.input, state.output)}
    tables = put_back(directory / MODEL_FILE, packed, lookup_tables(packed), names, TAIL_FILE) if packed else None
    if any(has_subgraph(node) for node in request.model.graph):
        name_inner_values(directory / MODEL_FILE)
    if request.options.store_packed_weights:
        request.progress("packing the weights")
        store_packed_weights(directory / MODEL_FILE, directory / WEIGHTS_FILE, inline_bytes=_INLINE_BYTES)
    elif has_transformed_weights(request.model):
        spread_weights(directory / MODEL_FILE, WEIGHTS_FILE)
    of_rows, in_place = states_of_rows(request.model, states), states_updated_in_place(request.model, states)
    if not set(of_rows) <= set(in_place):
        raise CompileError(
            "a cache of which a step is given some rows is not updated in place; this is an error of ort_sim"
        )
    program = {
        "model": MODEL_FILE,
        "in_place": in_place,
        "roomy": states_with_room(request.model, states),
        "rows_of_step": of_rows,
        "layout_of_cpu": _takes_layout(request),
        **({"tables_file": BLOCKS_FILE, "tables": tables.mapped, "rows": tables.read} if tables else {}),
        **({"tail": tables.tail} if tables and tables.tail else {}),
        **narrowed,
    }
    return request.result(
        backend="ort_sim",
        program=program,
        inputs=lowered_specs(request.model.graph.inputs, request.exported.inputs),
        outputs=lowered_specs(request.model.graph.outputs, request.exported.outputs),
        states=states_of_windows(request.model, states),
        specializations=(*request.specializations, *steps_of_other_rows(request)),
    )


def steps_of_other_rows(request: CompileRequest) -> Iterator[Specialization]:
    """For continuous batching, decode steps of fewer rows and prefill steps of several: here they take no program of their own.

    Not where a device is simulated, nor where drafts are checked or a sampler is in the program, which know rows by their places.
    Several programs of some layers each know the steps that were asked for.
    """
    options, has_logits = request.options, any(spec.name == "logits" for spec in request.exported.outputs)
    if options.simulate is not None or options.num_layers_per_program is not None:
        return
    if request.sizes("num_logits_to_keep") or not has_logits:
        return
    lanes = max(request.sizes("batch_size"), default=1)
    for item in request.specializations:
        if "full_batch_size" not in item.dims:
            continue
        asked, tokens = item.dims["batch_size"], item.dims["seq_len"]
        for rows in _OTHER_ROWS:
            fits = rows < asked
            if tokens > 1:
                reads_text_alone = item.dims.keys() <= _SIZES_OF_TEXT
                fits = reads_text_alone and asked < rows <= min(lanes, _TOKENS_OF_PROMPTS // tokens)
            dims = {**item.dims, "batch_size": rows}
            if fits and all(dims != dict(other.dims) for other in request.specializations):
                yield Specialization(name=f"{item.name}_{rows}_rows", dims=dims)


def _announce_memory(request: CompileRequest, calibration: int = 0, rounding: int = 0) -> None:
    """Tells the peak, see `_BASE_BYTES`. `calibration`: bytes that one holds for certain; `rounding`: what it adds at most."""
    tensors = [value.const_value for value in request.model.graph.initializers.values()]
    sizes = [int(tensor.nbytes) for tensor in tensors if tensor is not None]
    largest = max(sizes, default=0)
    # At most: what is packed may be held until all of it is written.
    packed = sum(sizes) if request.options.store_packed_weights else 0
    announce_memory(
        f"compiling for {request.backend}",
        _BASE_BYTES + packed + max(_LARGEST_TIMES * largest, rounding) + _CALIBRATION_TIMES * calibration,
        least=calibration,
        remedy="compile with calibrate=False" if calibration else "",
    )


def _takes_layout(request: CompileRequest) -> bool:
    """There is more than the one convolution that cuts a picture into patches; a simulated device is the same on every CPU.

    Measured with AVX-512, where channels go in groups of 16: a UNet takes 0.94 of the time, the decoder of an autoencoder 0.79.
    """
    if request.options.optimization_level != "extended" or request.options.simulate is not None:
        return False
    weights = [node.inputs[1] for node in request.model.graph if node.op_type == "Conv" and not node.domain]
    shapes = [weight.shape for weight in weights if weight is not None]
    return sum(shape is not None and len(shape) == _PICTURE_AXES for shape in shapes) > 1


def optimize(source: Path, target: Path, *, level: str) -> None:
    """Runs ONNX Runtime's graph optimisations on `source` and saves the result with its weights beside it."""
    options = session_options(optimization_level=level, threads=available_cpus(), pack_weights=False)
    save_program(options, target, weights_file=WEIGHTS_FILE, inline_bytes=_INLINE_BYTES)
    try:
        open_session(source, options)
    except Exception as error:
        raise CompileError(f"ONNX Runtime refuses the lowered model: {reason(error)}") from error


def name_inner_values(file: Path) -> None:
    """Gives values of branches other names where values around them have theirs.

    ONNX Runtime's optimiser makes names that are new in a branch alone, and does not load the model that it has saved.
    """
    model = ir.load(file)
    outer = {value.name for node in model.graph for value in node.outputs}
    outer |= {value.name for value in model.graph.inputs} | set(model.graph.initializers)
    changed = False
    for number, graph in enumerate(model.graph.subgraphs()):
        for value in (value for node in graph for value in node.outputs):
            if value.name in outer:
                value.name = f"inner_{number}/{value.name}"
                changed = True
            outer.add(value.name)
    if changed:
        ir.save(model, file)
