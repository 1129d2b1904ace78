"""Several low-rank adapters in one graph: each row of a step chooses its own by ``lora_ids [B, 1]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from qeff_framework.contracts import LORA_IDS, AdapterRoom, LowRankDelta, StateSpec
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.lowering.constant_products import ConstantProduct, constant_products
from qeff_framework.lowering.editor import GraphEditor, add_initializer
from qeff_framework.lowering.weights import computed_tensor

Deltas = Mapping[str, Mapping[str, LowRankDelta]]
_Stacks = tuple[onnx_ir.Value, onnx_ir.Value]


def add_adapters(model: onnx_ir.Model, adapters: Deltas, *, first_state: str) -> None:
    """Adds to each product with an adapted weight what the adapter of the row adds; the input stands in front of the states.

    `adapters`: by the adapter's name and the weight's. The first one has the id 1, the next one 2; 0 is the model alone. Adapters
    with a smaller rank are filled up with zeros, and so are those that leave a weight as it is.

    Raises:
        UnsupportedModelError: a weight is multiplied in no plain product of the graph, so that nothing can be added to it.
    """
    names = {name for deltas in adapters.values() for name in deltas}

    def stacks(name: str, product: ConstantProduct) -> _Stacks:
        return _stacks(model, name, adapters, product)

    _add_all(model, names, stacks, first_state)


def add_adapter_room(model: onnx_ir.Model, room: AdapterRoom, *, first_state: str) -> tuple[StateSpec, ...]:
    """The same for adapters that come later: their stacks are states, which a step leaves as they are. Returns these.

    Raises:
        UnsupportedModelError: see `add_adapters`.
    """
    inputs: dict[str, _Stacks] = {}

    def stacks(name: str, product: ConstantProduct) -> _Stacks:
        if name not in inputs:
            k, n = product.sizes
            shapes = {"lora_down": (room.slots + 1, k, room.rank), "lora_up": (room.slots + 1, room.rank, n)}
            down, up = (_float_value(f"{part}.{name}", shape) for part, shape in shapes.items())
            inputs[name] = (down, up)
        return inputs[name]

    _add_all(model, set(room.weights), stacks, first_state)
    states = []
    for name in room.weights:
        for value in inputs[name]:
            state = StateSpec(input=str(value.name), output=f"{value.name}_RetainedState", kind="adapter")
            kept = _float_value(state.output, tuple(value.shape or ()))
            model.graph.append(onnx_ir.Node("", "Identity", [value], outputs=[kept]))
            model.graph.inputs.append(value)
            model.graph.outputs.append(kept)
            states.append(state)
    return tuple(states)


def adapter_stacks(
    adapters: Deltas, room: AdapterRoom, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[Any]]:
    """The states of a program with room for adapters, by name. `shapes`: those of its states."""
    stacks = {}
    for name in room.weights:
        for part in ("lora_down", "lora_up"):
            state = f"{part}.{name}"
            stacks[state] = _stacked(name, adapters, shapes[state], part == "lora_down")
    return stacks


def _float_value(name: str, shape: tuple[Any, ...]) -> onnx_ir.Value:
    return onnx_ir.Value(name=name, type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(shape))


def _add_all(
    model: onnx_ir.Model, names: set[str], stacks: Callable[[str, ConstantProduct], _Stacks], first_state: str
) -> None:
    ids = _add_input(model, first_state)
    found = set()
    for product in constant_products(model):
        name = str(product.weight.name)
        if name in names:
            _add(model, product, ids, stacks(name, product))
            found.add(name)
    if found != names:
        raise UnsupportedModelError(
            f"{min(names - found)} is adapted, and the graph multiplies by it in no plain product, so that adapters cannot be "
            "chosen row by row; merge one: from_pretrained(BASE, adapter=...)"
        )


def _add_input(model: onnx_ir.Model, first_state: str) -> onnx_ir.Value:
    inputs = model.graph.inputs
    tokens = next(value for value in inputs if value.name == "input_ids")
    if tokens.shape is None:
        raise ValueError("input_ids has no shape")
    ids = onnx_ir.Value(
        name=LORA_IDS, type=onnx_ir.TensorType(onnx_ir.DataType.INT64), shape=onnx_ir.Shape([tokens.shape[0], 1])
    )
    place = next((number for number, value in enumerate(inputs) if value.name == first_state), len(inputs))
    inputs.insert(place, ids)
    return ids


def _stacks(
    model: onnx_ir.Model, name: str, adapters: Deltas, product: ConstantProduct
) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """``[ids, K, rank]`` and ``[ids, rank, N]``; products with one weight share them."""
    inputs, outputs = product.sizes
    rank = max(deltas[name].down.shape[0] for deltas in adapters.values() if name in deltas)
    count = len(adapters) + 1
    shapes = {"lora_down": (count, inputs, rank), "lora_up": (count, rank, outputs)}
    values = []
    for part, shape in shapes.items():
        own = f"{name}.{part}"
        known = model.graph.initializers.get(own)
        content = partial(_stacked, name, adapters, shape, part == "lora_down")
        values.append(known or add_initializer(model, own, computed_tensor(own, shape, np.float32, content)))
    return values[0], values[1]


def _stacked(name: str, adapters: Deltas, shape: tuple[int, ...], is_down: bool) -> NDArray[Any]:
    stack = np.zeros(shape, dtype=np.float32)
    for number, deltas in enumerate(adapters.values(), start=1):
        if name in deltas:
            delta = deltas[name]
            rank = delta.down.shape[0]
            if is_down:
                stack[number, :, :rank] = delta.down.T
            else:
                stack[number, :rank] = delta.up.T
    return stack


def _add(
    model: onnx_ir.Model, product: ConstantProduct, ids: onnx_ir.Value, stacks: tuple[onnx_ir.Value, onnx_ir.Value]
) -> None:
    node = product.node
    edit = GraphEditor(model, node)
    chosen = edit.op("Reshape", ids, edit.int64s(-1))
    down, up = (edit.op("Gather", stack, chosen, axis=0) for stack in stacks)
    # Some classes multiply all tokens of all rows as one matrix.
    tokens = edit.op("Concat", edit.dim(ids, 0), edit.int64s(-1, product.sizes[0]), axis=0)
    rows = edit.op("Reshape", product.left, tokens)
    added = edit.op("MatMul", edit.op("MatMul", rows, down), up)
    output = node.outputs[0]
    plain = edit.op(node.op_type, *node.inputs, **{name: value.value for name, value in node.attributes.items()})
    result = edit.op("Add", plain, edit.op("Reshape", added, edit.op("Shape", plain)))
    for value in (plain, result):
        value.type, value.shape = output.type, output.shape
    edit.replace(node, result)
