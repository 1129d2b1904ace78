"""What a calibration says about products: which of them bear 4 bits, and what their weights become.

The model comes with 8 bits in all products, which changes its results hardly. It is run on calibration tokens; each weight is
rounded to 4 bits for the inputs that its product then has (`compensation`).

For `w4`, those products of layers where 4 bits change the results most, relative to their size, keep their 8 bits, as many as the
option `eight_bit_share` says.

The product that gives the logits of a large vocabulary becomes a ranked one, for `w8` as well: a product with 4 bits tells the
`BEST` best tokens of a row, and the logits of these are computed anew from their rows with 8 bits. A step reads half of what is
often the largest weight of a small model. The best token is the one that 8 bits give unless 4 bits rank it behind so many others;
the other logits keep the error of 4 bits. Without a calibration that error is three times as large (KL divergence, Gemma 3 270M),
and the product keeps 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ort_sim_backend.calibration import SUMS_BYTES, Calibration, calibration_rows, unknown_inputs
from ort_sim_backend.compensation import Compensated, compensated
from ort_sim_backend.lowering.block_tables import rows_of_table
from ort_sim_backend.lowering.compressed_products import LAST_PRODUCT, PRODUCT, tokens_of
from ort_sim_backend.options import (
    BLOCK_SIZE,
    CALIBRATED_WEIGHTS,
    COMPRESSED_BITS,
    RANKING_BLOCK_SIZE,
)
from ort_sim_backend.smoothing import Source, smooth, sources
from ort_sim_backend.token_scales import rotated_at_a_time, scale_by_token, write_probe
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

#: Logits of a row that a ranked product computes with 8 bits, by `precision`. Perplexity of `w8` is 1.0052 times that of float32
#: with 256, 1.0042 with 512 and 1.0034 with 1024 (Gemma 3 270M, 5,000 tokens), and each row takes 1.5 microseconds of a step to
#: read; with `w4` the layers add more than that.
BEST: Final = {"w8": 384, "w4": 128}
#: What `runtime.is_exact` runs.
PROBE_FILE: Final = "probe.onnx"
#: Bits that all products come with.
_EIGHT: Final = 8
#: Where a step has one token, products that read one input and have fewer numbers together stay in blocks, which are one node
#: in place of two, and of seven for the input. In Gemma 3 270M these are all of the attention, in a Llama of 135 million weights
#: all but the gates. A step takes 0.84 to 0.92 and 0.85 to 0.93 of the time, a chunk of a prompt 1.2 to 1.4 and 1.3 to 1.4; in
#: blocks altogether, the latter take 0.87 to 0.91 and 1.6 to 1.7 (AVX2, two threads).
_FEW_NUMBERS: Final = 1 << 20
#: Numbers in a group of logits, the one that takes the least time first.
_GROUPS: Final = (128, 256, 64, 512, 32)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Weight:
    """A weight and the products that have it."""

    nodes: Sequence[ir.Node]
    product: ConstantProduct
    #: It gives logits.
    is_last: bool

    @property
    def blocks(self) -> WeightBlocks:
        """How 4 bits cut it."""
        size = RANKING_BLOCK_SIZE if self.is_last else BLOCK_SIZE
        return WeightBlocks(bits=4, size=_filled(size, self.product.sizes[0]), fitted=True)

    @property
    def size(self) -> int:
        """Numbers of the weight."""
        return math.prod(self.product.sizes)

    @property
    def rows(self) -> NDArray[np.float32]:
        """``[N, K]``"""
        array: NDArray[np.float32] = weight_of(self.product.weight).numpy()
        return array if self.product.transposed else array.T


def narrow(
    request: CompileRequest, *, announce: Callable[[int, int], None] = lambda held, rounding: None
) -> dict[str, Any]:
    """Gives 4 bits to those products of the request's model that bear it, and ranks the last one. Returns the counts.

    A model that is not calibrated, by the option `calibrate` or since no calibration fills its inputs, gets 4 bits without a
    measurement. So do products inside branches. `announce` is called before work starts, with the bytes that a calibration holds,
    and those that rounding one weight takes beside them.

    Raises:
        CompileError: the calibration prompts cannot be used, or ONNX Runtime refuses the model.
    """
    narrowed_bits = COMPRESSED_BITS[request.options.precision]
    layers, last = _weights(request.model, PRODUCT), _weights(request.model, LAST_PRODUCT)
    narrowable = layers if narrowed_bits < _EIGHT else {}
    obstacle = _obstacle(request, [*(narrowable or ({} if last else layers)).values(), *last.values()])
    inside = set(request.model.graph)
    seen = {} if obstacle else {key: weight for key, weight in layers.items() if inside.issuperset(weight.nodes)}
    ranked = {} if obstacle else last
    rounded_weights = [*(weight for key, weight in seen.items() if key in narrowable), *ranked.values()]
    is_calibrated = bool(seen or ranked)
    announce(
        _held_bytes(request.model, rounded_weights) if is_calibrated else 0,
        max(map(_rounding_bytes, rounded_weights), default=0) if is_calibrated else 0,
    )
    if obstacle and narrowable:
        request.progress(f"rounding weights to 4 bits without calibration: {obstacle}")
    most = BEST[request.options.precision]
    products = _worth_scales(
        {weight.nodes[0]: weight.product for weight in seen.values() if _can_be_rotated(weight)},
        _FEW_NUMBERS if _has_step_of_one_token(request) else 0,
    )
    found = sources(products)
    narrowed: list[tuple[_Weight, Compensated]] = []
    smoothed: list[Source] = []
    peaks: Mapping[str, NDArray[np.float32]] = {}
    if rounded_weights or found:
        with closing(_calibration(request, rounded_weights, found)) as calibration:
            narrowed = _narrowed(_rounded(calibration, rounded_weights), request.options.eight_bit_share)
            of_four_bits = {node for weight, _ in narrowed for node in weight.nodes}
            # In other units inputs are of like size and weights are not, which 4 bits do not bear: Gemma 3 270M with all layers
            # in 4 bits had 0.029 instead of 0.022 of KL divergence from float32.
            smoothed = [each for each in found if of_four_bits.isdisjoint(each.readers)]
            peaks = calibration.peaks([str(each.value.name) for each in smoothed])
    units = smooth(request.model, smoothed, products, peaks)
    for weight, rounded in narrowed:
        if weight.is_last:
            _rank(request.model, weight, rounded, most)
        else:
            # Its columns may be in other units: each has scales of its own.
            factors = units.of_results.get(weight.nodes[0], np.ones(1, np.float32))
            fitted = replace(rounded, scales=rounded.scales * factors[:, None])
            _give_blocks(weight.nodes, _initializers(request.model, weight, fitted), weight.blocks)
    nearest = CompressedProducts(lambda length: None)  # the blocks come with each weight
    for key, weight in narrowable.items():
        if key not in seen:
            _narrow_to_nearest(request.model, weight, nearest)
    by_token: dict[str, Any] = {}
    for value, readers in _readers(products).items():
        if all(node.attributes.get_int("bits", 0) == _EIGHT for node in readers):
            changed = {node: units.products.get(node, products[node]) for node in readers}
            scale_by_token(request.model, value, changed)
            by_token = {"probe": PROBE_FILE}
    if by_token:
        write_probe(request.output_dir / PROBE_FILE)
    _drop_unread(request.model)
    count = sum(len(weight.nodes) for weight in narrowable.values())
    left = sum(len(weight.nodes) for weight, _ in narrowed if not weight.is_last)
    kept = sum(len(weight.nodes) for key, weight in narrowable.items() if key in seen) - left
    counts = {"products_4_bits": count - kept, "products_8_bits": kept} if narrowable else {}
    best = {"ranked_tokens": most} if ranked else {}
    return {**counts, **best, "products_ranked": len(ranked), "calibrated": bool(seen or ranked), **by_token}


def _held_bytes(model: ir.Model, weights: Sequence[_Weight]) -> int:
    """What a calibration holds in memory: the blocks of all products, which ONNX Runtime rearranges, and the sums."""
    blocks = (
        int(tensor.nbytes)
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None and any(node.op_type == "MatMulNBits" for node, _ in value.uses())
    )
    return sum(blocks) + min(SUMS_BYTES, sum(4 * weight.product.sizes[0] ** 2 for weight in weights))


def _rounding_bytes(weight: _Weight) -> int:
    """What `compensated` takes: the weight in float32 with what it is made from, and three float64 matrices of its inputs."""
    return _BYTES_WHILE_READ * weight.size + 3 * 8 * weight.product.sizes[0] ** 2


#: Of a number that is read: float32, and 16 bits of the checkpoint.
_BYTES_WHILE_READ: Final = 6


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


def _calibration(request: CompileRequest, rounded: Sequence[_Weight], found: Sequence[Source]) -> Calibration:
    """Ready to look at the inputs of the `rounded` weights and at the values `found`."""
    lengths = {_input_name(node, weight): weight.product.sizes[0] for weight in rounded for node in weight.nodes}
    lengths |= {str(each.value.name): each.length for each in found}
    rows = calibration_rows(request.exported, request.options.calibration_prompts)
    request.progress(f"fitting weights to what they are multiplied with, on {sum(map(len, rows))} tokens")
    return Calibration(request, rows, lengths)


def _rounded(calibration: Calibration, weights: Sequence[_Weight]) -> list[tuple[_Weight, Compensated]]:
    """What becomes of the weights with 4 bits."""
    readers: dict[str, list[_Weight]] = {}
    for weight in weights:
        for node in weight.nodes:
            readers.setdefault(_input_name(node, weight), []).append(weight)
    #: Of weights that several products have: the sum so far, and how many are still to come.
    shared: dict[int, tuple[NDArray[np.float32], int]] = {}
    results = []
    for name, covariance in calibration.covariances(readers):
        for weight in readers[name]:
            total, left = shared.pop(id(weight), (np.zeros_like(covariance), len(weight.nodes)))
            total = total + covariance
            if left > 1:
                shared[id(weight)] = (total, left - 1)
            else:
                mean = total / np.float32(len(weight.nodes))
                results.append((weight, compensated(weight.rows, mean, weight.blocks)))
    return results


def _narrowed(
    rounded: Sequence[tuple[_Weight, Compensated]], eight_bit_share: float
) -> list[tuple[_Weight, Compensated]]:
    """Those that get 4 bits: all but `eight_bit_share` of the layers' numbers, those whose results 4 bits change most.

    Products that read the same inputs get the same bits: what they read can then be made for them.
    """
    groups: dict[Hashable, list[tuple[_Weight, Compensated]]] = {}
    for weight, fit in rounded:
        # A weight that several products have stands alone.
        key = weight if weight.is_last or len(weight.nodes) > 1 else weight.nodes[0].inputs[0]
        groups.setdefault(key, []).append((weight, fit))

    def size(group: Sequence[tuple[_Weight, Compensated]]) -> int:
        return sum(weight.size for weight, _ in group)

    def error(group: Sequence[tuple[_Weight, Compensated]]) -> float:
        return sum(weight.size * fit.error for weight, fit in group) / size(group)

    left = eight_bit_share * sum(weight.size for weight, _ in rounded if not weight.is_last)
    narrowed = []
    for group in sorted(groups.values(), key=error, reverse=True):
        if not group[0][0].is_last and size(group) <= left:
            left -= size(group)
        else:
            narrowed += group
    return narrowed


def _can_be_rotated(weight: _Weight) -> bool:
    """What its product reads can be made for it."""
    value = weight.nodes[0].inputs[0]
    is_known = value is not None and value.shape is not None
    # Another use has other inputs.
    return is_known and len(weight.nodes) == 1 and rotated_at_a_time(weight.product.sizes[0]) > 0


def _has_step_of_one_token(request: CompileRequest) -> bool:
    """Whether a step that was asked for reads one token in all; what reads no text, such as pictures, has none."""
    return any(item.dims.get("batch_size", 1) * item.dims.get("seq_len", 0) == 1 for item in request.specializations)


def _worth_scales(products: Mapping[ir.Node, ConstantProduct], fewest: int) -> dict[ir.Node, ConstantProduct]:
    """Those of `products` that have at least `fewest` numbers with the others that read the same."""
    return {
        node: products[node]
        for readers in _readers(products).values()
        if sum(math.prod(products[node].sizes) for node in readers) >= fewest
        for node in readers
    }


def _readers(products: Mapping[ir.Node, ConstantProduct]) -> dict[ir.Value, list[ir.Node]]:
    """The products by what they read."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in products:
        value = node.inputs[0]
        if value is None:
            raise ValueError(f"{node.name} reads nothing")
        found.setdefault(value, []).append(node)
    return found


def _filled(size: int, length: int) -> int:
    """The largest size of blocks, at most `size`, that rows of this length fill; `BLOCK_SIZE` if none does."""
    while length % size and size > BLOCK_SIZE:
        size //= 2
    return size


def _input_name(node: ir.Node, weight: _Weight) -> str:
    value = node.inputs[0]
    if weight.is_last and value is not None:
        # The product reads some tokens of each row, and a calibration wants all.
        value = tokens_of(value)
    if value is None or value.name is None:
        raise ValueError(f"{node.name} reads nothing")
    return value.name


def _rank(model: ir.Model, weight: _Weight, rounded: Compensated, most: int) -> None:
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
        best = _best_of(edit, coarse, weight.product.sizes[1], most)
        rows = rows_of_table(edit, levels, scales, best, bits=8, length=weight.product.sizes[0])
        axis = edit.int64s(-1)
        exact = edit.op("Squeeze", edit.op("MatMul", rows, edit.op("Unsqueeze", hidden, axis)), axis)
        edit.replace(node, edit.op("ScatterElements", coarse, best, exact, axis=-1))


def _best_of(edit: GraphEditor, coarse: ir.Value, count: int, most: int) -> ir.Value:
    """Places of the `most` largest of each row ``[B, N, count]``.

    They are in the groups that have the largest maxima. ``TopK`` of 262,144 numbers takes 190 microseconds, and the maxima 20.
    """
    size = next((each for each in _GROUPS if count % each == 0 and count // each >= most), None)
    wanted = edit.int64s(most)
    if size is None:
        return edit.ops("TopK", (coarse, wanted), 2, axis=-1, sorted=0)[1]
    grouped = edit.op("Reshape", coarse, edit.int64s(0, 0, -1, size))
    maxima = edit.op("ReduceMax", grouped, edit.int64s(-1), keepdims=0)
    _, groups = edit.ops("TopK", (maxima, wanted), 2, axis=-1, sorted=0)
    first = edit.op("Unsqueeze", edit.op("Mul", groups, edit.int64(size)), edit.int64s(-1))
    places = edit.op(
        "Reshape", edit.op("Add", first, edit.array(np.arange(size, dtype=np.int64))), edit.int64s(0, 0, -1)
    )
    _, among = edit.ops("TopK", (edit.op("GatherElements", coarse, places, axis=-1), wanted), 2, axis=-1, sorted=0)
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
    values = nearest.compressed(model, product.weight, weight.blocks, transposed=product.transposed)
    _give_blocks(weight.nodes, values, weight.blocks)


def _give_blocks(nodes: Sequence[ir.Node], values: Sequence[ir.Value], blocks: WeightBlocks) -> None:
    """Gives levels, scales and, where the blocks have them, zeros to products."""
    for node in nodes:
        node.resize_inputs(max(1 + len(values), len(node.inputs)))
        for index, value in enumerate(values, start=1):
            node.replace_input_with(index, value)
        for name, number in (("bits", blocks.bits), ("block_size", blocks.size)):
            node.attributes[name] = ir.AttrInt64(name, number)


def _drop_unread(model: ir.Model) -> None:
    """Removes the 8-bit levels that nothing reads any more."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
