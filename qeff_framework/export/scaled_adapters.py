"""Low-rank adapters of a pipeline's component in its graph: how much each one adds is told by ``lora_scales [adapters]``.

The ranks of all adapters lie side by side, so that two products and one multiplication add those of any choice. It holds for
all rows of a call, unlike that of `adapter_products`: a component may arrange the rows in any way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from qeff_framework.contracts import LORA_SCALES, AdapterRoom, LowRankDelta, StateSpec
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.lowering.constant_products import ConstantProduct
from qeff_framework.lowering.editor import GraphEditor, add_initializer
from qeff_framework.lowering.values import is_weight, operand
from qeff_framework.lowering.weights import computed_tensor, weight_of

Deltas = Mapping[str, Mapping[str, LowRankDelta]]
_DOWN, _UP = "lora_down", "lora_up"
_IMAGE_AXES: Final = 4


def add_scaled_adapters(model: onnx_ir.Model, adapters: Deltas, *, is_part: bool = False) -> None:
    """Adds to each product and convolution with an adapted weight what the adapters add, times their scales.

    `adapters`: by the adapter's name and the weight's, in the order of the scales. One may have no weight in this graph.
    `is_part`: the graph is a part of the component's, and may lack weights; without any it gets no input either.

    Raises:
        UnsupportedModelError: a weight stands in no plain product or convolution of the graph.
    """

    def factors(target: _Target) -> _Factors:
        name = target.name
        ranks = [deltas[name].down.shape[0] if name in deltas else 0 for deltas in adapters.values()]
        shapes = target.shapes(sum(ranks))
        down, up = (
            _initializer(model, f"{name}.{part}", shapes[part], partial(_joined, name, adapters, part, target.is_image))
            for part in (_DOWN, _UP)
        )
        return _Factors(down=down, up=up, owners=[number for number, rank in enumerate(ranks) for _ in range(rank)])

    names = {name for deltas in adapters.values() for name in deltas}
    _add_all(model, _held(model, names) if is_part else names, len(adapters), factors)


def add_scaled_room(model: onnx_ir.Model, room: AdapterRoom, *, is_part: bool = False) -> tuple[StateSpec, ...]:
    """The same for adapters that come later: what they add stands in states, which a run leaves as they are. Returns these.

    Raises:
        UnsupportedModelError: see `add_scaled_adapters`.
    """
    made: dict[str, _Factors] = {}
    owners = [slot for slot in range(room.slots) for _ in range(room.rank)]

    def factors(target: _Target) -> _Factors:
        if target.name not in made:
            shapes = target.shapes(len(owners))
            down, up = (_value(f"{part}.{target.name}", shapes[part]) for part in (_DOWN, _UP))
            made[target.name] = _Factors(down=down, up=up, owners=owners)
        return made[target.name]

    names = _held(model, set(room.weights)) if is_part else set(room.weights)
    _add_all(model, names, room.slots, factors)
    states = []
    for name in sorted(names):
        for value in (made[name].down, made[name].up):
            state = StateSpec(input=str(value.name), output=f"{value.name}_RetainedState", kind="adapter")
            kept = _value(state.output, tuple(value.shape or ()))
            model.graph.append(onnx_ir.Node("", "Identity", [value], outputs=[kept]))
            model.graph.inputs.append(value)
            model.graph.outputs.append(kept)
            states.append(state)
    return tuple(states)


def room_states(
    adapters: Sequence[Mapping[str, LowRankDelta]], rank: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[Any]]:
    """The states of a program with room for adapters of `rank`, by name. `shapes`: those of its states."""
    states = {}
    for state, shape in shapes.items():
        part, _, name = state.partition(".")
        states[state] = array = np.zeros(shape, dtype=np.float32)
        for slot, deltas in enumerate(adapters):
            if name in deltas:
                _fill(array, part, deltas[name], slot * rank, is_image=len(shape) == _IMAGE_AXES)
    return states


@dataclass(frozen=True, kw_only=True)
class _Target:
    """A product ``[...,K] @ [K,N]``, or a convolution of images, with a weight that is adapted."""

    node: onnx_ir.Node
    name: str
    left: onnx_ir.Value
    #: K and N; of a convolution ``[N, C, height, width]``.
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, node: onnx_ir.Node, names: set[str]) -> Self | None:
        product = ConstantProduct.of(node)
        if product is not None:
            name = str(product.weight.name)
            return cls(node=node, name=name, left=product.left, sizes=product.sizes) if name in names else None
        if node.domain or node.op_type != "Conv" or not is_weight(operand(node, 1)):
            return None
        weight = operand(node, 1)
        shape = tuple(int(size) for size in weight_of(weight).shape.numpy())
        if weight.name not in names or len(shape) != _IMAGE_AXES or node.attributes.get_int("group", 1) != 1:
            return None
        return cls(node=node, name=str(weight.name), left=operand(node, 0), sizes=shape)

    @property
    def is_image(self) -> bool:
        return len(self.sizes) == _IMAGE_AXES

    def shapes(self, ranks: int) -> dict[str, tuple[int, ...]]:
        """Of the two factors."""
        if self.is_image:
            outputs, *window = self.sizes
            return {_DOWN: (ranks, *window), _UP: (outputs, ranks, 1, 1)}
        inputs, outputs = self.sizes
        return {_DOWN: (inputs, ranks), _UP: (ranks, outputs)}


@dataclass(frozen=True, kw_only=True)
class _Factors:
    down: onnx_ir.Value
    up: onnx_ir.Value
    #: For each rank the place of its adapter's scale.
    owners: Sequence[int]


def _value(name: str, shape: tuple[Any, ...]) -> onnx_ir.Value:
    return onnx_ir.Value(name=name, type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(shape))


def _initializer(
    model: onnx_ir.Model, name: str, shape: tuple[int, ...], content: Callable[[tuple[int, ...]], NDArray[Any]]
) -> onnx_ir.Value:
    """Products with one weight share it."""
    known = model.graph.initializers.get(name)
    return known or add_initializer(model, name, computed_tensor(name, shape, np.float32, partial(content, shape)))


def _joined(name: str, adapters: Deltas, part: str, is_image: bool, shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.zeros(shape, dtype=np.float32)
    start = 0
    for deltas in adapters.values():
        if name in deltas:
            _fill(array, part, deltas[name], start, is_image=is_image)
            start += deltas[name].down.shape[0]
    return array


def _fill(array: NDArray[Any], part: str, delta: LowRankDelta, start: int, *, is_image: bool) -> None:
    end = start + delta.down.shape[0]
    if is_image:
        if part == _DOWN:
            array[start:end] = delta.down
        else:
            array[:, start:end] = delta.up
    elif part == _DOWN:
        array[:, start:end] = delta.down.T
    else:
        array[start:end] = delta.up.T


def _held(model: onnx_ir.Model, names: set[str]) -> set[str]:
    return {name for name in names if name in model.graph.initializers}


def _add_all(model: onnx_ir.Model, names: set[str], adapters: int, factors: Callable[[_Target], _Factors]) -> None:
    if not names:
        return
    scales = _value(LORA_SCALES, (adapters,))
    targets = [target for node in model.graph.all_nodes() if (target := _Target.of(node, names)) is not None]
    missing = names - {target.name for target in targets}
    if missing:
        raise UnsupportedModelError(
            f"{min(missing)} is adapted, and stands in no plain product or convolution of the graph, so that no adapter can be "
            "switched there; merge the adapter: pipe.fuse_lora(), pipe.unload_lora_weights()"
        )
    model.graph.inputs.append(scales)
    for target in targets:
        _add(model, target, scales, factors(target))


def _add(model: onnx_ir.Model, target: _Target, scales: onnx_ir.Value, factors: _Factors) -> None:
    node = target.node
    edit = GraphEditor(model, node)
    attributes = {name: value.value for name, value in node.attributes.items()}
    scale = edit.op("Gather", scales, edit.int64s(*factors.owners), axis=0)
    if target.is_image:
        scale = edit.op("Reshape", scale, edit.int64s(1, -1, 1, 1))
        low = edit.op("Conv", target.left, factors.down, **attributes)
        added = edit.op("Conv", edit.op("Mul", low, scale), factors.up)
    else:
        low = edit.op("MatMul", target.left, factors.down)
        added = edit.op("MatMul", edit.op("Mul", low, scale), factors.up)
    output = node.outputs[0]
    plain = edit.op(node.op_type, *node.inputs, **attributes)
    result = edit.op("Add", plain, added)
    for value in (plain, result):
        value.type, value.shape = output.type, output.shape
    edit.replace(node, result)
