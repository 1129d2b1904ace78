"""One graph of an image encoder and the language model behind it.

The features of a row's images are a retained state of the kind that holds an encoder's output: a step that reads an image writes
them, and they stay on the device while the prompt is read. What the image encoder computes goes into that update and nowhere
else. So a backend that can branch skips it in all other steps, and one that compiles for static shapes finds out that a step of
another length writes zeros, and drops it.
"""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.contracts import StateSpec
from qeff_framework.dialect.functions import attach_functions
from qeff_framework.dialect.names import DOMAIN, Op
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.interface import BATCH, ENCODER_CTX, ENCODER_SEQ, FULL_BATCH, rename_dims
from qeff_framework.export.portable_graph import PortableGraph
from qeff_framework.export.weights import ModuleTensor
from qeff_framework.images.rows import IMAGE_POSITIONS, VISION_EMBEDS
from qeff_framework.lowering import GraphEditor, static_dim

_PREFIX = "vision"


def images_in_one(vision: PortableGraph, language: PortableGraph) -> PortableGraph:
    """The graph of `language` with that of `vision` in front; both are used up.

    It has the inputs of `vision`, and ``encoder_position_ids [B, T]``: the place of each image token among those of its row, -1
    for none. T is the number of tokens of an image in a step that reads one, else 1. ``vision_embeds [B, 1, C, F]`` is a state.

    Raises:
        UnsupportedModelError: an image is one token, so that such a step would look like any other.
    """
    model, (features,) = language.model, vision.model.graph.outputs
    tokens = static_dim(features, 0) or 0
    if tokens < 2:
        raise UnsupportedModelError(
            "an image, or a tile of one, is a single token, so that a step with an image cannot be told from one without; "
            "compile two programs (kv_offload=True)"
        )
    if any(value.name == IMAGE_POSITIONS for value in model.graph.inputs):
        return _attended_in_one(vision, language, tokens)
    number = next(place for place, value in enumerate(model.graph.inputs) if value.name == VISION_EMBEDS)
    rename_dims(model, {ENCODER_CTX: (number, 1)})
    embeds = model.graph.inputs[number]
    width = static_dim(embeds, 2) or 0
    rows = next((value for value in model.graph.inputs if value.name == "batch_index"), None)
    first = model.graph[0]
    pixels = _moved(vision.model, model, first)

    state = _input(VISION_EMBEDS, ir.DataType.FLOAT, [BATCH if rows is None else FULL_BATCH, 1, ENCODER_CTX, width])
    positions = _input(IMAGE_POSITIONS, ir.DataType.INT64, [BATCH, ENCODER_SEQ])
    edit = GraphEditor(model, first)
    length = edit.dim(positions, 1)
    written = _of_step(edit, features, length, tokens)
    shape = edit.op("Concat", edit.dim(positions, 0), edit.int64s(1), length, edit.int64s(width), axis=0)
    updates = edit.op("Expand", edit.op("Unsqueeze", written, edit.int64s(0, 1)), shape)
    updates.shape = ir.Shape([BATCH, 1, ENCODER_SEQ, width])
    op = Op.KV_UPDATE if rows is None else Op.KV_UPDATE_CB
    updated = edit.op(op, state, updates, positions, *([] if rows is None else [rows]), domain=DOMAIN)
    updated.type, updated.shape = state.type, state.shape
    if rows is None:
        read = edit.op("Squeeze", updated, edit.int64s(1))
    else:
        slots = edit.op("Range", edit.int64(0), edit.op("Squeeze", edit.dim(state, 2)), edit.int64(1))
        slots.type, slots.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([ENCODER_CTX])
        held = edit.op(Op.KV_GATHER_CB, updated, rows, slots, domain=DOMAIN)
        held.type, held.shape = state.type, ir.Shape([BATCH, 1, ENCODER_CTX, width])
        read = edit.op("Squeeze", held, edit.int64s(1))
    embeds.name = f"{VISION_EMBEDS}_of_rows"
    embeds.replace_all_uses_with(read)
    read.shape = embeds.shape

    spec = StateSpec(input=VISION_EMBEDS, output=f"{VISION_EMBEDS}_RetainedState", kind="cross")
    updated.name = spec.output
    inputs, outputs = model.graph.inputs, model.graph.outputs
    inputs.remove(embeds)
    first_state = next(place for place, value in enumerate(inputs) if value.name == language.states[0].input)
    for offset, value in enumerate((*pixels, positions, state)):
        inputs.insert(first_state + offset, value)
    outputs.insert(next(at for at, value in enumerate(outputs) if value.name == language.states[0].output), updated)
    attach_functions(model)
    return PortableGraph(
        model=model, states=(spec, *language.states), metadata={**vision.metadata, **language.metadata}
    )


def _of_step(edit: GraphEditor, features: ir.Value, length: ir.Value, tokens: int) -> ir.Value:
    """``[T, F]``: the features in a step that reads an image, else zeros.

    Sizes alone decide: a step of another length writes nothing, and needs no image.
    """
    taken = edit.op("Slice", features, edit.int64s(0), length, edit.int64s(0))
    return edit.op("Where", edit.op("Equal", length, edit.int64s(tokens)), taken, edit.scalar_like(0.0, features))


def _attended_in_one(vision: PortableGraph, language: PortableGraph, tokens: int) -> PortableGraph:
    """The same where layers attend to images: their keys and values are states already."""
    model, (features,) = language.model, vision.model.graph.outputs
    inputs = model.graph.inputs
    embeds = next(value for value in inputs if value.name == VISION_EMBEDS)
    positions = next(value for value in inputs if value.name == IMAGE_POSITIONS)
    first = model.graph[0]
    pixels = _moved(vision.model, model, first)
    edit = GraphEditor(model, first)
    written = _of_step(edit, features, edit.dim(positions, 1), tokens)
    shape = edit.op("Concat", edit.dim(positions, 0), edit.dim(positions, 1), edit.dim(features, 1), axis=0)
    read = edit.op("Expand", written, shape)
    read.type, read.shape = embeds.type, embeds.shape
    embeds.name = f"{VISION_EMBEDS}_of_rows"
    embeds.replace_all_uses_with(read)
    place = inputs.index(embeds)
    inputs.remove(embeds)
    for offset, value in enumerate(pixels):
        inputs.insert(place + offset, value)
    return PortableGraph(model=model, states=language.states, metadata={**vision.metadata, **language.metadata})


def _moved(source: ir.Model, target: ir.Model, place: ir.Node) -> list[ir.Value]:
    """Moves nodes and weights in front of `place`; returns the inputs of `source`, which belong to no graph then."""
    inputs = list(source.graph.inputs)
    source.graph.inputs.clear()
    source.graph.outputs.clear()
    for name, value in list(source.graph.initializers.items()):
        known = target.graph.initializers.get(name)
        source.graph.initializers.pop(name)
        if known is not None and _same_weight(known, value):
            value.replace_all_uses_with(known)
            continue
        # Weights keep their names; those of constants may be names of results too.
        if known is not None or not isinstance(value.const_value, ModuleTensor):
            value.name = f"{_PREFIX}/{name}"
        target.graph.register_initializer(value)
    for node in source.graph.all_nodes():
        node.name = f"{_PREFIX}/{node.name}"
        for value in node.outputs:
            value.name = f"{_PREFIX}/{value.name}"
    nodes = list(source.graph)
    source.graph.remove(nodes)
    target.graph.insert_before(place, nodes)
    for key, function in source.functions.items():
        target.functions.setdefault(key, function)
    for domain, version in source.opset_imports.items():
        target.opset_imports.setdefault(domain, version)
    return inputs


def _same_weight(first: ir.Value, second: ir.Value) -> bool:
    """Whether two initializers of one name are one weight of the module, lying in one way."""
    tensors = [value.const_value for value in (first, second)]
    lying = {(str(one.name), *one.raw.shape, *one.raw.stride()) for one in tensors if isinstance(one, ModuleTensor)}
    return len(lying) == 1 and all(isinstance(one, ModuleTensor) for one in tensors)


def _input(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
