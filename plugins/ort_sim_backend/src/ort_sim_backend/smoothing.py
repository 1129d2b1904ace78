"""What a product reads, and its weight, in units in which the inputs are of like size: fewer scales then lose little accuracy.

In language models a few inputs are a hundred times as large as the others. With one scale for all inputs of a token,
`token_scales`, they leave few levels for the others. The units go into what makes the inputs, so nothing is computed for them:
into the weight of a norm, or, of a gated MLP, into the product whose result is multiplied with the gate (SmoothQuant, Xiao et
al., 2022).

What attention makes of values keeps its units: these would stand in the cache, which other programs may read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.lowering import ConstantProduct, add_initializer, computed_tensor, is_weight, readers, weight_of

Numbers = NDArray[np.float32]

#: How much of the difference between inputs goes into the weight. Of Gemma 3 270M with 8 bits in blocks of 128, KL divergence
#: from float32.
_SHARE: Final = 0.65
_NORMS = ("SimplifiedLayerNormalization", "LayerNormalization")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Inputs of products whose units may be chosen."""

    #: Floats ``[..., K]``; products alone read them.
    value: ir.Value
    #: The norm that makes them, or the product that makes one factor of theirs.
    maker: ir.Node
    #: The products that read them.
    readers: Sequence[ir.Node]
    #: K
    length: int


def sources(products: Mapping[ir.Node, ConstantProduct]) -> list[Source]:
    """The inputs of `products`, nodes of the main graph, that have a maker."""
    found = []
    for value in dict.fromkeys(node.inputs[0] for node in products):
        if value is None or value.is_graph_output() or not readers(value) <= products.keys():
            continue
        maker = _maker(value, products)
        if maker is not None:
            those = [*readers(value)]
            found.append(Source(value=value, maker=maker, readers=those, length=products[those[0]].sizes[0]))
    return found


def _maker(value: ir.Value, products: Mapping[ir.Node, ConstantProduct]) -> ir.Node | None:
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type in _NORMS and node.outputs[0] is value:
        is_scaled = all(is_weight(each) and len(weight_of(each).shape) == 1 for each in node.inputs[1:] if each)
        return node if is_scaled and len(node.inputs) > 1 and node.attributes.get_int("axis", -1) in (-1, 2) else None
    if node.op_type == "Mul":
        for factor in node.inputs:
            product = None if factor is None else factor.producer()
            # A bias would be added to the result in other units.
            if product is None or product not in products or products[product].bias is not None:
                continue
            if readers(product.outputs[0]) == {node} and not product.outputs[0].is_graph_output():
                return product
    return None


@dataclass(frozen=True, kw_only=True)
class Units:
    """What has changed with the units of inputs."""

    #: The products that have other weights, by their nodes.
    products: Mapping[ir.Node, ConstantProduct]
    #: What results are multiplied with, ``[N]``, by the products that make them. The weights in `products` are so already.
    of_results: Mapping[ir.Node, Numbers]


def smooth(
    model: ir.Model,
    found: Sequence[Source],
    products: Mapping[ir.Node, ConstantProduct],
    peaks: Mapping[str, Numbers],
) -> Units:
    """Chooses units for the inputs `found`, whose largest numbers are `peaks` by name, and changes the norms that make them."""
    changed: dict[ir.Node, ConstantProduct] = {}
    of_results: dict[ir.Node, Numbers] = {}
    # Products first: the weights that a norm's units go by are then what they will be.
    for each in sorted(found, key=lambda each: each.maker not in products):
        name = str(each.value.name)
        divisor = _units(peaks[name], [_largest_by_row(changed.get(node, products[node])) for node in each.readers])
        for node in each.readers:
            changed[node] = _changed(changed.get(node, products[node]), divisor, by_rows=True)
        if each.maker in products:
            of_results[each.maker] = np.reciprocal(divisor)
            changed[each.maker] = _changed(
                changed.get(each.maker, products[each.maker]), of_results[each.maker], by_rows=False
            )
        else:
            _divide_norm(model, each.maker, divisor)
    return Units(products=changed, of_results=of_results)


def _units(peaks: Numbers, rows: Sequence[Numbers]) -> Numbers:
    """``[K]``: what to divide inputs by, whose largest are `peaks`, and to multiply weights with, whose largest are `rows`."""
    largest = np.maximum.reduce(rows)
    usable = (peaks > 0) & (largest > 0)
    logs = np.zeros(len(peaks), np.float64)
    logs[usable] = _SHARE * np.log(peaks[usable]) - (1 - _SHARE) * np.log(largest[usable])
    # What is never used stays as it is, and so does all the rest on average.
    logs[usable] -= logs[usable].mean() if usable.any() else 0.0
    return np.exp(logs).astype(np.float32)


def _largest_by_row(product: ConstantProduct) -> Numbers:
    """``[K]``"""
    weight: Numbers = weight_of(product.weight).numpy()
    largest: Numbers = np.abs(weight).max(axis=0 if product.transposed else 1)
    return largest


def _divide_norm(model: ir.Model, norm: ir.Node, divisor: Numbers) -> None:
    """Divides what a norm makes."""
    for place, value in enumerate(norm.inputs):
        if place and value is not None:
            name = f"{value.name}_smoothed_{norm.outputs[0].name}"
            content = (weight_of(value).numpy() / divisor).astype(np.float32)
            norm.replace_input_with(place, add_initializer(model, name, ir.Tensor(content, name=name)))


def _changed(product: ConstantProduct, factors: Numbers, *, by_rows: bool) -> ConstantProduct:
    """A product whose weight has its K rows, or its N columns, multiplied with `factors`; it is computed when it is read."""
    weight = product.weight
    name = f"{weight.name}_{'in' if by_rows else 'out'}_units"
    along_first = by_rows is not product.transposed

    def content() -> Numbers:
        whole: Numbers = weight_of(weight).numpy() * (factors[:, None] if along_first else factors)
        return whole

    shape = [int(size) for size in weight_of(weight).shape.numpy()]
    tensor = computed_tensor(name, shape, np.float32, content)
    return replace(product, weight=ir.Value(name=name, const_value=tensor))
