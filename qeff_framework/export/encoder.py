"""Graphs without a cache: encoders, with or without pooling, and models that classify texts or tokens or find answers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from qeff_framework.errors import ExportError, UnsupportedModelError
from qeff_framework.export.interface import BATCH, SEQ, rename_dims, rename_interface
from qeff_framework.export.portable_graph import GraphRequest, PortableGraph
from qeff_framework.export.single_pass import SinglePassGraph, probe_layers, traced_model
from qeff_framework.export.stages import stage
from qeff_framework.export.trace import finish
from qeff_framework.export.weights import graph_weights
from qeff_framework.seam.adapt import adapt
from qeff_framework.seam.norms import find_rms_norms
from qeff_framework.seam.rotary import find_length_dependent_rotary
from qeff_framework.seam.scope import Scope, forward_scope
from qeff_framework.seam.special.refusals import refuse_special_encoder
from qeff_framework.seam.weightless import weightless_copy

if TYPE_CHECKING:
    import onnx_ir
    from transformers import PreTrainedModel

    from qeff_framework.export.pooling import Pooling

_BATCH, _SEQ = 2, 5


def encoder_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:
    """``last_hidden_state [B, S, H]`` of each token, or ``embedding [B, H]`` when it is pooled."""
    if request.pooling is None:
        return _graph(module, fields=("last_hidden_state",), axes=("batch", "tokens", "features"))
    return _graph(
        module,
        fields=("last_hidden_state",),
        axes=("batch", "features"),
        pooling=request.pooling,
        outputs=("embedding",),
    )


def sequence_classification_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:  # noqa: ARG001 - every builder has this signature
    """``logits [B, labels]``.

    Raises:
        UnsupportedModelError: a decoder whose config names no padding token: it reads its scores at the last token that is none,
            and could not tell the padding of a program of fixed length from text.
    """
    try:
        return _graph(module, fields=("logits",), axes=("batch", "labels"))
    except ExportError as error:
        if module.config.get_text_config().pad_token_id is None and "padding token" in str(error):
            raise UnsupportedModelError(
                "it reads its scores at the last token that is no padding, and its config names no pad_token_id; set "
                "config.pad_token_id to the tokenizer's, in the checkpoint's config.json or before the model is wrapped"
            ) from error
        raise


def token_classification_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:  # noqa: ARG001 - every builder has this signature
    """``logits [B, S, labels]``."""
    return _graph(module, fields=("logits",), axes=("batch", "tokens", "labels"))


def question_answering_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:  # noqa: ARG001 - every builder has this signature
    """``start_logits`` and ``end_logits``, both ``[B, S]``."""
    return _graph(module, fields=("start_logits", "end_logits"), axes=("batch", "tokens"))


def _graph(
    module: PreTrainedModel,
    *,
    fields: tuple[str, ...],
    axes: tuple[str, ...],
    pooling: Pooling | None = None,
    outputs: tuple[str, ...] | None = None,
) -> PortableGraph:
    """The graph of these `fields` of the forward's result, with `axes` each; as `outputs` if they get other names."""
    refuse_special_encoder(module)
    outputs = outputs or fields
    norms, rotary = find_rms_norms(module), find_length_dependent_rotary(module)
    weightless = weightless_copy(module)
    adapt(weightless, norms, rotary)
    inputs = input_names(weightless)
    graph = _TokensGraph(weightless, inputs=inputs, fields=fields, pooling=pooling, counts_tokens=bool(rotary))
    example = _example(inputs)
    with stage("probe run"):
        results, kinds = probe_layers(graph, example)
    for name, result in zip(outputs, results, strict=True):
        _check_shape(name, tuple(result.shape), axes)
    batch, seq = (torch.export.Dim(name, min=1) for name in (BATCH, SEQ))
    _, model = traced_model(
        graph, example, ([{0: batch, 1: seq} for _ in inputs],), graph_weights(module, norms), kinds
    )
    finish(model)
    rename_interface(model, inputs=inputs, outputs=outputs)
    rename_dims(model, {BATCH: (0, 0), SEQ: (0, 1)})
    _drop_unused_token_types(model)
    return PortableGraph(model=model, metadata=_lost_types(weightless, inputs))


def _lost_types(weightless: PreTrainedModel, inputs: tuple[str, ...]) -> dict[str, int]:
    """That the program knows type 0 alone, where the model looks types up among its tokens (GPT-2) and the graph does not."""
    parameters = inspect.signature(weightless.forward).parameters
    is_lost = "token_type_ids" in parameters and "token_type_ids" not in inputs
    return {"type_vocab_size": 1} if is_lost else {}


def _check_shape(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
    sizes = {"batch": _BATCH, "tokens": _SEQ}
    expected = [sizes.get(axis, size) for axis, size in zip(axes, shape, strict=False)]
    if len(shape) != len(axes) or list(shape) != expected:
        raise UnsupportedModelError(
            f"for {_BATCH} texts of {_SEQ} tokens its {name} has the shape {list(shape)} instead of [{', '.join(axes)}]"
        )


class _TokensGraph(SinglePassGraph):
    """Wraps a weightless copy: its forward has the signature of the portable graph."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        inputs: tuple[str, ...],
        fields: tuple[str, ...],
        pooling: Pooling | None,
        counts_tokens: bool,
    ) -> None:
        super().__init__(model)
        self.inputs = inputs
        self.fields = fields
        # The name must not be that of a part of the model: weights of both are told apart by their names alone.
        self.qeff_pooling = _without_training(pooling)
        #: Whether the model asks for the length of the text, which padding does not belong to.
        self.counts_tokens = counts_tokens

    def forward(self, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the output fields, pooled if asked for."""
        arguments: dict[str, Any] = dict(zip(self.inputs, tensors, strict=True))
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            arguments["use_cache"] = False
        with forward_scope(Scope(masks=self.masks, token_lengths=self._token_lengths(arguments))), self.around_layers():
            outputs = self.model(**arguments)
        results = tuple(_tensor(outputs, name) for name in self.fields)
        if self.qeff_pooling is None:
            return results
        mask = arguments.get("attention_mask", torch.ones_like(arguments["input_ids"]))
        return tuple(self.qeff_pooling(result, mask) for result in results)

    def _token_lengths(self, arguments: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        if not self.counts_tokens:
            return None
        is_token = arguments.get("attention_mask", torch.ones_like(arguments["input_ids"]))
        return is_token.sum(dim=1, keepdim=True).expand(-1, is_token.shape[1])


def _without_training(pooling: Pooling | None) -> Pooling | None:
    """A pooling that is a module runs as a copy in eval mode: the caller's may be in training, with a dropout."""
    return copy.deepcopy(pooling).eval() if isinstance(pooling, torch.nn.Module) else pooling


def _tensor(outputs: Any, name: str) -> torch.Tensor:
    result = getattr(outputs, name, None)
    if not isinstance(result, torch.Tensor):
        raise UnsupportedModelError(f"its forward returns no {name}")
    return result


def input_names(weightless: PreTrainedModel) -> tuple[str, ...]:
    """``token_type_ids`` is an input only where more than one type exists; a model without it takes type 0 everywhere.

    A model without ``attention_mask`` takes every token for text. So does its graph, and nothing that runs it may pad.
    """
    parameters = inspect.signature(weightless.forward).parameters
    if "input_ids" not in parameters:
        raise UnsupportedModelError("its forward takes no input_ids")
    names = ["input_ids"]
    if "attention_mask" in parameters:
        names.append("attention_mask")
    if "token_type_ids" in parameters and _has_token_types(weightless):
        names.append("token_type_ids")
    return tuple(names)


def _has_token_types(weightless: PreTrainedModel) -> bool:
    """Whether types other than 0 mean something: there are several, or attention compares those of two tokens (XLNet)."""
    count: int = getattr(weightless.config, "type_vocab_size", None) or 0
    return count > 1 or any(hasattr(part, "seg_embed") for part in weightless.modules())


def _example(inputs: tuple[str, ...]) -> tuple[list[torch.Tensor]]:
    tensors = (torch.full((_BATCH, _SEQ), int(name == "attention_mask")) for name in inputs)
    return (list(tensors),)


def _drop_unused_token_types(model: onnx_ir.Model) -> None:
    """Some models accept token types and ignore them."""
    for value in list(model.graph.inputs):
        if value.name == "token_type_ids" and not value.uses():
            model.graph.inputs.remove(value)
