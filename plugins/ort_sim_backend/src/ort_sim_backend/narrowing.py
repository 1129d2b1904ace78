"""What a calibration says about products: which of them bear 4 bits, and what their weights become.

The model comes with 8 bits in all products, which changes its results hardly. It is run on calibration tokens; each weight is
rounded to 4 bits for the inputs that its product then has (`compensation`).

For `w4`, those products of layers where 4 bits change the results most, relative to their size, keep their 8 bits, as many as the
option `eight_bit_share` says.

The product that gives the logits of a large vocabulary becomes a ranked one, for `w8` as well: a product with 4 bits tells the
best `BEST` tokens of a row, and the logits of these are computed anew from their rows with 8 bits. A step reads half of what is
often the largest weight of a small model. The best token is the one that 8 bits give unless 4 bits rank it behind so many others;
the other logits keep the error of 4 bits. Without a calibration that error is three times as large (KL divergence, Gemma 3 270M),
and the product keeps 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ort_sim_backend.calibration import SUMS_BYTES, Calibration, calibration_rows, unknown_inputs
from ort_sim_backend.compensation import Compensated, compensated
from ort_sim_backend.lowering.block_tables import rows_of_table
from ort_sim_backend.lowering.compressed_products import LAST_PRODUCT, PRODUCT, tokens_of
from ort_sim_backend.options import BLOCK_SIZE, CALIBRATED_WEIGHTS, RANKING_BLOCK_SIZE
from qeff_framework.lowering import (
    CompressedProducts,
    ConstantProduct,
    GraphEditor,
    WeightBlocks,
    add_initializer,
    content_key,
    weight_of,
)
from qeff_framework.plugin_api import CompileError, CompileRequest

#: Logits of a row that a ranked product computes with 8 bits.
BEST: Final = 128
#: Numbers in a group of logits, the one that takes the least time first.
_GROUPS: Final = (128, 256, 64, 512, 32)


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """A weight and the products that have it."""

    nodes: Sequence[ir.Node]
    product: ConstantProduct
    #: It gives logits.
    is_last: bool

    @property
    def blocks(self) -> WeightBlocks:
        """How 4 bits cut it."""
        length = self.product.sizes[0]
        size = RANKING_BLOCK_SIZE if self.is_last else BLOCK_SIZE
        while length % size and size > BLOCK_SIZE:
            size //= 2
        return WeightBlocks(bits=4, size=size, fitted=True)

    @property
    def size(self) -> int:
        """Numbers of the weight."""
        return math.prod(self.product.sizes)

    @property
    def rows(self) -> NDArray[np.float32]:
        """``[N, K]``"""
        array: NDArray[np.float32] = weight_of(self.product.weight).numpy()
        return array if self.product.transposed else array.T


def narrow(request: CompileRequest, *, announce: Callable[[int], None] = lambda held: None) -> dict[str, Any]:
    """Gives 4 bits to those products of the request's model that bear it, and ranks the last one. Returns the counts.

    A model that is not calibrated, by the option `calibrate` or since no calibration fills its inputs, gets 4 bits without a
    measurement. So do products inside branches. `announce` is called before work starts, with the bytes that a calibration holds.

    Raises:
        CompileError: the calibration prompts cannot be used, or ONNX Runtime refuses the model.
    """
    layers, last = _weights(request.model, PRODUCT), _weights(request.model, LAST_PRODUCT)
    inside, obstacle = set(request.model.graph), _obstacle(request, [*layers.values(), *last.values()])
    seen = {} if obstacle else {key: weight for key, weight in layers.items() if inside.issuperset(weight.nodes)}
    ranked = {} if obstacle else last
    measured_weights = [*seen.values(), *ranked.values()]
    announce(_held_bytes(request.model, measured_weights) if measured_weights else 0)
    if obstacle and layers:
        request.progress(f"rounding weights to 4 bits without calibration: {obstacle}")
    measured = [
        (weight, compensated(weight.rows, covariance, weight.blocks))
        for weight, covariance in _measured(request, measured_weights)
    ]
    left = request.options.eight_bit_share * sum(weight.size for weight in seen.values())
    kept = 0
    for weight, rounded in sorted(measured, key=lambda each: each[1].error, reverse=True):
        if weight.is_last:
            _rank(request.model, weight, rounded)
        elif weight.size <= left:
            left -= weight.size
            kept += len(weight.nodes)
        else:
            _give(weight, _initializers(request.model, weight, rounded))
    nearest = CompressedProducts(lambda length: None)  # the blocks come with each weight
    for key, weight in layers.items():
        if key not in seen:
            _narrow_to_nearest(request.model, weight, nearest)
    _drop_unread(request.model)
    count = sum(len(weight.nodes) for weight in layers.values())
    counts = {"products_4_bits": count - kept, "products_8_bits": kept} if layers else {}
    best = {"ranked_tokens": BEST} if ranked else {}
    return {**counts, **best, "products_ranked": len(ranked), "calibrated": bool(seen or ranked)}


def _held_bytes(model: ir.Model, weights: Sequence[_Weight]) -> int:
    """What a calibration holds in memory: the blocks of all products, which ONNX Runtime rearranges, and the sums."""
    blocks = (
        int(tensor.nbytes)
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None and any(node.op_type == "MatMulNBits" for node, _ in value.uses())
    )
    return sum(blocks) + min(SUMS_BYTES, sum(4 * weight.product.sizes[0] ** 2 for weight in weights))


def _obstacle(request: CompileRequest, weights: Sequence[_Weight]) -> str:
    """Why the model is not calibrated; empty if it is."""
    options = request.options
    if options.calibrate is False:
        return "calibrate=False"
    unknown = unknown_inputs(request)
    if unknown:
        if options.calibrate or options.calibration_prompts is not None:
            raise CompileError(
                f"the model cannot be calibrated: nothing is known for its input {unknown[0]}; leave out calibrate and "
                "calibration_prompts"
            )
        return f"it has nothing for the input {unknown[0]}"
    size = sum(weight.size for weight in weights)
    if options.calibrate is None and options.calibration_prompts is None and size > CALIBRATED_WEIGHTS:
        return f"the products have {size / 1e9:.1f} billion weights; calibrate=True does it all the same"
    return ""


def _weights(model: ir.Model, kind: str) -> dict[Hashable, _Weight]:
    """The weights of the products that have `kind` in their `meta`."""
    found: dict[Hashable, list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        product: ConstantProduct | None = node.meta.get(kind)
        if product is not None:
            found.setdefault((content_key(weight_of(product.weight)), product.transposed), []).append(node)
    return {
        key: _Weight(nodes=nodes, product=nodes[0].meta[kind], is_last=kind == LAST_PRODUCT)
        for key, nodes in found.items()
    }


def _measured(request: CompileRequest, weights: Sequence[_Weight]) -> Iterator[tuple[_Weight, NDArray[np.float32]]]:
    """Each weight with the mean products of what its products read."""
    if not weights:
        return
    rows = calibration_rows(request.exported, request.options.calibration_prompts)
    readers: dict[str, list[_Weight]] = {}
    for weight in weights:
        for node in weight.nodes:
            readers.setdefault(_input_name(node, weight), []).append(weight)
    lengths = {name: found[0].product.sizes[0] for name, found in readers.items()}
    request.progress(f"rounding weights to 4 bits, calibrated on {sum(map(len, rows))} tokens")
    calibration = Calibration(request, rows, lengths)
    #: Of weights that several products have: the sum so far, and how many are still to come.
    shared: dict[int, tuple[NDArray[np.float32], int]] = {}
    try:
        for name, covariance in calibration.covariances():
            for weight in readers[name]:
                total, left = shared.pop(id(weight), (np.zeros_like(covariance), len(weight.nodes)))
                if left > 1:
                    shared[id(weight)] = (total + covariance, left - 1)
                else:
                    yield weight, (total + covariance) / np.float32(len(weight.nodes))
    finally:
        calibration.close()


def _input_name(node: ir.Node, weight: _Weight) -> str:
    value = node.inputs[0]
    if weight.is_last and value is not None:
        # The product reads some tokens of each row, and a calibration wants all.
        value = tokens_of(value)
    if value is None or value.name is None:
        raise ValueError(f"{node.name} reads nothing")
    return value.name


def _rank(model: ir.Model, weight: _Weight, rounded: Compensated) -> None:
    """Makes the products of a weight with 8 bits ranked ones."""
    blocks = _initializers(model, weight, rounded)
    for node in weight.nodes:
        hidden, levels, scales = node.inputs[:3]
        if hidden is None or levels is None or scales is None:
            raise ValueError(f"{node.name} is no product")
        edit = GraphEditor(model, node)
        attributes = {name: each.value for name, each in node.attributes.items()}
        attributes |= {"bits": weight.blocks.bits, "block_size": weight.blocks.size}
        coarse = edit.op(node.op_type, hidden, *blocks, domain=node.domain, **attributes)
        coarse.type, coarse.shape = node.outputs[0].type, node.outputs[0].shape
        best = _best_of(edit, coarse, weight.product.sizes[1])
        rows = rows_of_table(edit, levels, scales, best, bits=8, length=weight.product.sizes[0])
        axis = edit.int64s(-1)
        exact = edit.op("Squeeze", edit.op("MatMul", rows, edit.op("Unsqueeze", hidden, axis)), axis)
        edit.replace(node, edit.op("ScatterElements", coarse, best, exact, axis=-1))


def _best_of(edit: GraphEditor, coarse: ir.Value, count: int) -> ir.Value:
    """Places of the `BEST` largest of each row ``[B, N, count]``.

    They are in the groups that have the largest maxima. ``TopK`` of 262,144 numbers takes 190 microseconds, and the maxima 20.
    """
    size = next((each for each in _GROUPS if count % each == 0 and count // each >= BEST), None)
    most = edit.int64s(BEST)
    if size is None:
        return edit.ops("TopK", (coarse, most), 2, axis=-1, sorted=0)[1]
    grouped = edit.op("Reshape", coarse, edit.int64s(0, 0, -1, size))
    maxima = edit.op("ReduceMax", grouped, edit.int64s(-1), keepdims=0)
    _, groups = edit.ops("TopK", (maxima, most), 2, axis=-1, sorted=0)
    first = edit.op("Unsqueeze", edit.op("Mul", groups, edit.int64(size)), edit.int64s(-1))
    places = edit.op(
        "Reshape", edit.op("Add", first, edit.array(np.arange(size, dtype=np.int64))), edit.int64s(0, 0, -1)
    )
    _, among = edit.ops("TopK", (edit.op("GatherElements", coarse, places, axis=-1), most), 2, axis=-1, sorted=0)
    return edit.op("GatherElements", places, among, axis=-1)


def _initializers(model: ir.Model, weight: _Weight, rounded: Compensated) -> list[ir.Value]:
    levels = weight.nodes[0].inputs[1]
    name = f"{levels.name if levels is not None else weight.product.weight.name}_4_bits"
    return [
        add_initializer(model, f"{name}{suffix}", ir.Tensor(content, name=f"{name}{suffix}"))
        for suffix, content in (("", rounded.levels), ("_scales", rounded.scales), ("_zeros", rounded.zeros))
    ]


def _narrow_to_nearest(model: ir.Model, weight: _Weight, nearest: CompressedProducts) -> None:
    """Each number becomes the level next to it, when the weight is written."""
    product = weight.product
    _give(weight, nearest.compressed(model, product.weight, weight.blocks, transposed=product.transposed))


def _give(weight: _Weight, blocks: Sequence[ir.Value]) -> None:
    """Gives levels, scales and zeros of 4 bits to the products of a weight."""
    for node in weight.nodes:
        node.resize_inputs(max(4, len(node.inputs)))
        for index, value in enumerate(blocks, start=1):
            node.replace_input_with(index, value)
        node.attributes["bits"] = ir.AttrInt64("bits", weight.blocks.bits)


def _drop_unread(model: ir.Model) -> None:
    """Removes the 8-bit levels that nothing reads any more."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
