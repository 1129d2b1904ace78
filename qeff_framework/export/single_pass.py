"""Probe run and trace of graphs without states, whose layers that are alike are traced once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from qeff_framework.errors import QEFFError
from qeff_framework.export.stages import stage
from qeff_framework.export.trace import probe, trace, translate
from qeff_framework.seam.adapt import fall_back_to_eager
from qeff_framework.seam.cache import SeamCache
from qeff_framework.seam.layers import LayerKinds, LayerRecorder, stamping, without_stamped_weights
from qeff_framework.seam.mask_plan import MaskPlan

if TYPE_CHECKING:
    import onnx_ir
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class SinglePassGraph(torch.nn.Module):
    """Base of the wrappers around a weightless copy: a forward runs it with `masks` in the scope, inside of `around_layers`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.masks = MaskPlan()
        #: In which the model runs: what it makes of its layers.
        self.around_layers: Callable[[], AbstractContextManager[object]] = nullcontext


def probe_layers(graph: SinglePassGraph, example: tuple[Any, ...]) -> tuple[Any, LayerKinds]:
    """What `graph` returns in a run without weights, and the layers that are alike.

    A model whose attention goes around the library's interface is made to compute it as plain operators, and run again.
    """
    results, kinds = _probe(graph, example)
    if graph.masks.forms and graph.masks.attention_calls == 0 and fall_back_to_eager(graph.model):
        graph.masks = MaskPlan()
        results, kinds = _probe(graph, example)
    graph.masks.finish_recording()
    return results, kinds


def _probe(graph: SinglePassGraph, example: tuple[Any, ...]) -> tuple[Any, LayerKinds]:
    recorder = LayerRecorder()
    try:
        with recorder.watching(graph.model, SeamCache(1), graph.masks):
            results = probe(graph, example)
    except Exception as reason:  # noqa: BLE001 - what is wrong with the model shows in the run without a recorder
        logger.info("every layer is traced: %s", reason)
        graph.masks = MaskPlan()
        return probe(graph, example), LayerKinds()
    return results, recorder.kinds()


def traced_model(
    graph: SinglePassGraph,
    example: tuple[Any, ...],
    axes: tuple[Any, ...],
    weights: Mapping[str, torch.Tensor],
    kinds: LayerKinds,
) -> tuple[torch.export.ExportedProgram, onnx_ir.Model]:
    """The traced program and its translation. Where a layer is not like another one after all, every layer is traced."""
    try:
        return _traced_model(graph, example, axes, weights, kinds)
    except QEFFError as reason:
        if not kinds.kinds:
            raise
        # A model may do with its layers what a record does not show.
        logger.info("every layer is traced: %s", reason)
        return _traced_model(graph, example, axes, weights, LayerKinds())


def _traced_model(
    graph: SinglePassGraph,
    example: tuple[Any, ...],
    axes: tuple[Any, ...],
    weights: Mapping[str, torch.Tensor],
    kinds: LayerKinds,
) -> tuple[torch.export.ExportedProgram, onnx_ir.Model]:
    graph.around_layers = lambda: stamping(graph.model, kinds, SeamCache(1))
    try:
        with stage("trace"), without_stamped_weights(graph.model, kinds):
            program = trace(graph, example, axes)
    finally:
        graph.around_layers = nullcontext
    with stage("translation to ONNX"):
        return program, translate(program, weights, kinds)
