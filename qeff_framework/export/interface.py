"""Names of a portable graph's inputs, outputs and symbolic dimensions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir

from qeff_framework.errors import ExportError

BATCH, SEQ, CTX = "batch_size", "seq_len", "ctx_len"
#: Rows of the cache of continuous batching; logits per row of a speculative target; slots that a step reads.
FULL_BATCH, KEPT_LOGITS, COMPUTE_CTX = "full_batch_size", "num_logits_to_keep", "comp_ctx_lengths"
#: Tokens that an encoder reads in a step; slots for its output that the decoder keeps.
ENCODER_SEQ, ENCODER_CTX = "encoder_seq_len", "encoder_ctx_len"

#: Frames that a model of sound makes of a clip.
FRAMES = "num_frames"

#: Image tokens of a row; parts of its images, each of which a token may see or not.
VISION, TILES = "vision_size", "image_tiles"


def strip_module_prefix(model: onnx_ir.Model) -> None:
    """Gives weights the names that they have in the checkpoint: the tracer sees the model as attribute ``model`` of a wrapper."""
    for value in list(model.graph.initializers.values()):
        value.name = str(value.name).removeprefix("model.")


def rename_interface(model: onnx_ir.Model, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Gives inputs and outputs their names, by position."""
    wanted = {*inputs, *outputs}
    for value in _values(model):
        if value.name in wanted:  # The tracer names values after the functions that make them, e.g. "embedding".
            value.name = f"{value.name}_inner"
    for values, names, kind in (
        (model.graph.inputs, inputs, "inputs"),
        (model.graph.outputs, outputs, "outputs"),
    ):
        if len(values) != len(names):
            raise ExportError(f"the traced graph has {len(values)} {kind} instead of {len(names)}")
        for value, name in zip(values, names, strict=True):
            value.name = name


def rename_dims(model: onnx_ir.Model, dims: Mapping[str, tuple[int, int]]) -> None:
    """Names the symbolic dimensions. `dims` says where each one is found: number of the input, axis."""
    names: dict[str, str] = {}
    for name, (number, axis) in dims.items():
        dim = _shape(model.graph.inputs[number])[axis]
        if isinstance(dim, int):
            raise ExportError(
                f"the model fixes {name} at {dim}: something in its forward depends on the size of that dimension"
            )
        names[str(dim.value)] = name
    symbol = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in names))
    for value in _values(model):
        if value.shape is not None:
            value.shape = onnx_ir.Shape(
                dim if isinstance(dim, int) or dim.value is None else symbol.sub(lambda hit: names[hit[0]], dim.value)
                for dim in value.shape
            )


def _shape(value: onnx_ir.Value) -> onnx_ir.Shape:
    if value.shape is None:
        raise ExportError(f"the translation left '{value.name}' without a shape")
    return value.shape


def _values(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs
