"""``Scan`` becomes its body once for each step, for compilers without loops. A specialization fixes the number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import LiftSubgraphInitializersToMainGraphPass

from qeff_framework.errors import CompileError
from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.passes import GraphPass
from qeff_framework.lowering.values import has_subgraph, operand, static_dim, subgraphs

#: Most nodes that unrolled loops may have: compilers take minutes for some thousands.
MAX_NODES = 100_000


class UnrollScan(GraphPass):
    """Unrolls every forward ``Scan``. Raises `CompileError` when the graph would have more than `MAX_NODES` nodes.

    Where the length is not static, the body stands `steps` times in the graph, which is then right for lengths up to that; one
    graph serves several specializations that way. A step behind the last token computes from that token and its result is not
    used: a compiler that knows the length of a specialization can drop it. Without `steps` such a scan is left as it is.
    """

    name = "UnrollScan"
    version = "1"

    def __init__(self, steps: int | None = None) -> None:
        self._steps = steps
        if steps is not None:
            self.version = f"{self.version} ({steps})"

    def run(self, model: ir.Model) -> bool:
        """Says whether a scan was unrolled."""
        # Inner ones first: the copies of an outer body then hold none.
        scans = [node for node in model.graph.all_nodes() if _is_forward_scan(node)]
        found = [scan for node in reversed(scans) if (scan := _Scan.of(node)).length or self._steps]
        _check_size(found, self._steps)
        if found:
            LiftSubgraphInitializersToMainGraphPass()(model)
        for scan in found:
            _unroll(GraphEditor(model, scan.node), scan, self._steps)
        return bool(found)


def _is_forward_scan(node: ir.Node) -> bool:
    directions = [
        *node.attributes.get_ints("scan_input_directions", ()),
        *node.attributes.get_ints("scan_output_directions", ()),
    ]
    return (node.domain, node.op_type) == ("", "Scan") and not any(directions)


@dataclass(frozen=True, kw_only=True)
class _Scan:
    node: ir.Node
    body: ir.Graph
    states: Sequence[ir.Value]
    #: What is cut into one slice for each step, and the axis of each.
    inputs: Sequence[tuple[ir.Value, int]]
    output_axes: Sequence[int]
    #: Number of steps; `None` when it is not static.
    length: int | None

    @property
    def name(self) -> str:
        """What the names of its nodes begin with."""
        return str(self.node.name or self.node.outputs[0].name)

    @classmethod
    def of(cls, node: ir.Node) -> _Scan:
        body, count = node.attributes["body"].as_graph(), node.attributes["num_scan_inputs"].as_int()
        values = [operand(node, number) for number in range(len(node.inputs))]
        states, scanned = values[:-count], values[-count:]
        axes = node.attributes.get_ints("scan_input_axes", [0] * count)
        inputs = [
            (value, axis if axis >= 0 else axis + len(inner.shape or ()) + 1)
            for value, axis, inner in zip(scanned, axes, body.inputs[-count:], strict=True)
        ]
        outputs = len(node.outputs) - len(states)
        lengths = [size for value, axis in inputs if (size := static_dim(value, axis)) is not None]
        return cls(
            node=node,
            body=body,
            states=states,
            inputs=inputs,
            output_axes=node.attributes.get_ints("scan_output_axes", [0] * outputs),
            length=lengths[0] if lengths else None,
        )


def _check_size(scans: Sequence[_Scan], most_steps: int | None) -> None:
    steps = max((scan.length or most_steps or 0 for scan in scans), default=0)
    nodes = sum((scan.length or most_steps or 0) * len(list(scan.body.all_nodes())) for scan in scans)
    if nodes > MAX_NODES:
        raise CompileError(
            f"the model runs {len(scans)} of its modules token by token ({scans[-1].name} first). The compiler has no loops, and "
            f"unrolled for steps of {steps} tokens the graph would have {nodes} nodes, more than {MAX_NODES}: choose a smaller "
            "prefill_seq_len, 1 makes the smallest graph"
        )


def _unroll(edit: GraphEditor, scan: _Scan, most_steps: int | None) -> None:
    _hoist_invariants(edit, scan)
    steps = scan.length or most_steps or 0
    length = None if scan.length else edit.op("Squeeze", edit.dim(*scan.inputs[0]))
    last = None if length is None else edit.op("Sub", length, edit.int64(1))
    states = list(scan.states)
    slices: list[list[ir.Value]] = [[] for _ in scan.output_axes]
    for step in range(steps):
        token = edit.int64(step) if last is None else edit.op("Min", edit.int64(step), last)
        cut = [edit.op("Gather", value, token, axis=axis) for value, axis in scan.inputs]
        results = _copy_body(edit, scan, step, [*states, *cut])
        new_states = results[: len(states)]
        if length is not None and step:
            is_step = edit.op("Less", edit.int64(step), length)
            new_states = [edit.op("Where", is_step, *pair) for pair in zip(new_states, states, strict=True)]
        states = list(new_states)
        for collected, result in zip(slices, results[len(states) :], strict=True):
            collected.append(result)
    outputs = [_joined(edit, *column, length) for column in zip(slices, scan.output_axes, strict=True)]
    edit.replace(scan.node, *states, *outputs)


def _joined(edit: GraphEditor, slices: Sequence[ir.Value], axis: int, length: ir.Value | None) -> ir.Value:
    """The slices of all steps along `axis`, cut to `length`."""
    axes = edit.int64s(axis)
    columns = [edit.op("Unsqueeze", value, axes) for value in slices]
    joined = columns[0] if len(columns) == 1 else edit.op("Concat", *columns, axis=axis)
    if length is None:
        return joined
    return edit.op("Slice", joined, edit.int64s(0), edit.op("Reshape", length, edit.int64s(1)), axes)


def _copy_body(edit: GraphEditor, scan: _Scan, step: int, arguments: Sequence[ir.Value]) -> list[ir.Value]:
    """Puts a copy of the body into the outer graph and returns what its outputs are there."""
    copy = scan.body.clone(allow_outer_scope_values=True)
    inner = dict(zip(copy.inputs, arguments, strict=True))
    results = [inner.get(value, value) for value in copy.outputs]
    copy.outputs.clear()
    for value, argument in inner.items():
        value.replace_all_uses_with(argument)
    _move_out(edit, copy, list(copy), f"{scan.name}/{step}")
    return results


def _move_out(edit: GraphEditor, body: ir.Graph, nodes: Sequence[ir.Node], prefix: str) -> None:
    """Moves nodes of a body to where `edit` writes. Names are unique in a body only, so they get a prefix."""
    body.remove(nodes)
    for node in nodes:
        for inner in (node, *(inner for graph in subgraphs(node) for inner in graph.all_nodes())):
            # Nodes without a name get one from the graph.
            inner.name = f"{prefix}/{inner.name}" if inner.name else None
            for value in inner.outputs:
                value.name = f"{prefix}/{value.name}"
    edit.adopt(nodes)


def _hoist_invariants(edit: GraphEditor, scan: _Scan) -> None:
    """Moves what is the same in every step, such as transposed weights, out of the body."""
    varying: set[ir.Value | None] = {*scan.body.inputs, *scan.body.outputs}
    hoisted: list[ir.Node] = []
    for node in scan.body:
        if has_subgraph(node) or varying.intersection((*node.inputs, *node.outputs)):
            varying.update(node.outputs)
        else:
            hoisted.append(node)
    _move_out(edit, scan.body, hoisted, scan.name)
