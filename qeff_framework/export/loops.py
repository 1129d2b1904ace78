"""Puts the loops over tokens into a translated graph: one ONNX ``Scan`` for each module that runs token by token."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir
import torch

from qeff_framework.dialect.names import DOMAIN
from qeff_framework.errors import ExportError
from qeff_framework.export.interface import BATCH
from qeff_framework.export.page_release import MappedFiles
from qeff_framework.export.trace import probe, trace, translate
from qeff_framework.export.weights import ModuleTensor
from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.seam.cache import SeamCache
from qeff_framework.seam.layers import Layer, LayerRecorder
from qeff_framework.seam.loops import LOOP_OP, LoopSite, TokenStep
from qeff_framework.seam.mask_plan import MaskPlan

logger = logging.getLogger(__name__)

#: Of fewer sites none is like another one.
_SEVERAL = 2


def insert_loops(
    model: onnx_ir.Model,
    weightless: torch.nn.Module,
    sites: Sequence[LoopSite],
    weights: Mapping[str, torch.Tensor],
    batch: int,
) -> None:
    """Replaces each ``TokenLoop`` of `model` by a ``Scan`` over the step of its site. Of steps that are alike one is traced."""
    nodes = [node for node in model.graph if node.domain == DOMAIN and node.op_type == LOOP_OP]
    bodies = _bodies(weightless, [sites[node.attributes["site"].as_int()] for node in nodes], weights, batch)
    for node, (site, body) in zip(nodes, bodies, strict=True):
        _replace(model, node, site, body)


def _bodies(
    weightless: torch.nn.Module, sites: Sequence[LoopSite], weights: Mapping[str, torch.Tensor], batch: int
) -> Iterator[tuple[LoopSite, onnx_ir.Model]]:
    """Each site with the body of its loop."""
    patterns: dict[int, _Pattern] = {}
    firsts = _firsts(weightless, sites, batch)
    for number, site in enumerate(sites):
        first = firsts.get(number)
        if first is None:
            yield site, _body(weightless, site, weights, batch)
            continue
        if first == number:
            own = _own_weights(site, weights)
            patterns[number] = _Pattern(_body(weightless, site, weights, batch, replaceable=own), own)
        yield site, patterns[first].copy(site, weights)


def _body(
    weightless: torch.nn.Module,
    site: LoopSite,
    weights: Mapping[str, torch.Tensor],
    batch: int,
    replaceable: Container[str] = (),
) -> onnx_ir.Model:
    step = TokenStep(weightless, site)
    example = step.example(batch)
    dim = torch.export.Dim(BATCH, min=1)
    axes = tuple(_batch_axes(argument, dim, batch) for argument in example)
    return translate(trace(step, example, axes), _own_weights(site, weights), replaceable=replaceable)


def _own_weights(site: LoopSite, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = f"{site.name}."
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


class _Pattern:
    """The body of a loop whose weights may be replaced by those of other sites."""

    def __init__(self, body: onnx_ir.Model, replaceable: Container[str]) -> None:
        self._body = body
        self._replaceable = replaceable
        self._files = MappedFiles()

    def copy(self, site: LoopSite, weights: Mapping[str, torch.Tensor]) -> onnx_ir.Model:
        """The body with the weights of `site`."""
        body, own = self._body.clone(), _own_weights(site, weights)
        for name, value in body.graph.initializers.items():
            if name in self._replaceable and value.dtype is not None:
                content = ModuleTensor(own[name], dtype=value.dtype, name=name, mapped_files=self._files)
                if content.shape != value.shape:
                    raise ExportError(f"{name} of {site.name} has not the shape that it has in steps like its own")
                value.const_value = content
        return body


def _firsts(weightless: torch.nn.Module, sites: Sequence[LoopSite], batch: int) -> dict[int, int]:
    """The sites of which there are several alike, with the first one whose step does the same.

    Steps are compared as layers are. Constants are computed of buffers, so that these must have the same numbers.
    """
    if len(sites) < _SEVERAL:
        return {}
    recorder = LayerRecorder()
    steps = [TokenStep(weightless, site) for site in sites]
    try:
        probe(_Steps(steps, recorder), ([step.example(batch) for step in steps],))
    except Exception as reason:  # noqa: BLE001 - what is wrong shows in the trace
        logger.info("every step is traced: %s", reason)
        return {}
    numbers = {f"steps.{number}": number for number in range(len(sites))}
    return {
        numbers[layer.name]: numbers[kind[0].name]
        for kind in recorder.kinds().kinds
        if numbers.keys() >= {layer.name for layer in kind} and _have_equal_buffers(kind)
        for layer in kind
    }


def _have_equal_buffers(layers: Sequence[Layer]) -> bool:
    first = layers[0].buffers
    return all(
        layer.buffers.keys() == first.keys()
        and all(
            first[name].dtype == buffer.dtype and torch.equal(first[name], buffer)
            for name, buffer in layer.buffers.items()
        )
        for layer in layers[1:]
    )


class _Steps(torch.nn.Module):
    """The steps of several sites, each of them once."""

    def __init__(self, steps: Sequence[TokenStep], recorder: LayerRecorder) -> None:
        super().__init__()
        self.steps = torch.nn.ModuleList(steps)
        self._recorder = recorder

    def forward(self, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Returns the results of each."""
        with self._recorder.watching(self, SeamCache(1), MaskPlan()):
            return [step(*given) for step, given in zip(self.steps, arguments, strict=True)]


def _batch_axes(argument: Any, dim: Any, batch: int) -> Any:
    if isinstance(argument, list):
        return [_batch_axes(item, dim, batch) for item in argument]
    return {0: dim} if argument.dim() and argument.shape[0] == batch else {}


def _replace(model: onnx_ir.Model, node: onnx_ir.Node, site: LoopSite, body: onnx_ir.Model) -> None:
    graph, states = body.graph, len(site.states)
    axes = [leaf.axis for leaf in site.inputs if leaf.kind == "tokens"]
    scanned = states + 1 + len(axes)  # the states, then the positions and the other slices
    if len(graph.inputs) != len(node.inputs):
        raise ExportError(f"the step of {site.name} was traced with {len(graph.inputs)} inputs, not {len(node.inputs)}")
    for inner, outer in zip(list(graph.inputs[scanned:]), node.inputs[scanned:], strict=True):
        if outer is None:
            raise ExportError(f"the loop of {site.name} lacks an input")
        inner.replace_all_uses_with(outer)
        graph.inputs.remove(inner)
    slices, axes = _read_slices(graph, node.inputs[:scanned], [1, *axes])
    _share_weights(model, graph, site)
    _make_names_unique(graph, site)
    edit = GraphEditor(model, node)
    results = edit.ops(
        "Scan",
        slices,
        len(node.outputs),
        body=graph,
        num_scan_inputs=len(axes),
        scan_input_axes=axes,
        scan_output_axes=onnx_ir.AttrInt64s("scan_output_axes", [x.axis for x in site.outputs if x.kind == "tokens"]),
    )
    for scan in edit.written:
        scan.name = f"{site.name}.loop"
    edit.replace(node, *results)


def _read_slices(
    graph: onnx_ir.Graph, inputs: Sequence[onnx_ir.Value | None], axes: Sequence[int]
) -> tuple[list[onnx_ir.Value | None], list[int]]:
    """What the loop gets, and the token axes of what it takes slices of: without slices that its step does not read.

    A mask that is handed to a module which has no use for it is as wide as the context, which the step is not traced for.
    """
    states, read, read_axes = len(inputs) - len(axes), list(inputs), list(axes)
    for place in reversed(range(len(axes))):
        inner = graph.inputs[states + place]
        # A loop takes its number of rounds from the slices: the positions stay.
        if place and not inner.uses() and inner not in graph.outputs:
            graph.inputs.remove(inner)
            del read[states + place], read_axes[place]
    return read, read_axes


def _share_weights(model: onnx_ir.Model, graph: onnx_ir.Graph, site: LoopSite) -> None:
    """Moves initializers to the outer graph, which a body may refer to: all weights of a model lie in one place."""
    for name, value in list(graph.initializers.items()):
        outer_name = f"{site.name}.{name}"
        outer = model.graph.initializers.get(outer_name)
        if outer is None:
            outer = onnx_ir.Value(name=outer_name, shape=value.shape, type=value.type, const_value=value.const_value)
            model.graph.register_initializer(outer)
        value.replace_all_uses_with(outer)
        del graph.initializers[name]


def _make_names_unique(graph: onnx_ir.Graph, site: LoopSite) -> None:
    """ONNX forbids that an inner value has the name of an outer one. Symbols of inner sizes are dropped: they are others."""
    graph.name = f"{site.name}.step"
    values = [*graph.inputs, *(value for node in graph.all_nodes() for value in node.outputs)]
    for value in values:
        value.name = f"{site.name}/{value.name}"
        if value.shape is not None:
            value.shape = onnx_ir.Shape(dim if isinstance(dim, int) else None for dim in value.shape)
