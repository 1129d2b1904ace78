"""The graph of a causal language model: tokens, positions and caches in; the last token's logits and the new caches out."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache

from qeff_framework.contracts import EXTRA_INPUTS, StateSpec
from qeff_framework.errors import ExportError, UnsupportedModelError
from qeff_framework.export.interface import (
    BATCH,
    COMPUTE_CTX,
    CTX,
    FULL_BATCH,
    KEPT_LOGITS,
    SEQ,
    rename_dims,
    rename_interface,
)
from qeff_framework.export.positions import require_given_positions
from qeff_framework.export.stages import stage
from qeff_framework.export.trace import convert, probe, trace
from qeff_framework.export.weights import graph_weights
from qeff_framework.seam.adapt import adapt
from qeff_framework.seam.cache import FixedLayer, LayerShape, RecordingCache
from qeff_framework.seam.masks import MaskPlan
from qeff_framework.seam.norms import find_rms_norms
from qeff_framework.seam.scope import Scope, Step, forward_scope
from qeff_framework.seam.shell import make_shell

if TYPE_CHECKING:
    import onnx_ir
    from transformers import PreTrainedModel

#: Sizes of the example step. All differ and none is 1, so the tracer does not take one for another or for a broadcast.
_BATCH, _SEQ, _CTX = 2, 3, 8
_FULL_BATCH, _COMPUTE_CTX, _KEPT_LOGITS = 5, 6, 4


def causal_lm_model(
    module: PreTrainedModel, extra_inputs: tuple[str, ...] = ()
) -> tuple[onnx_ir.Model, tuple[StateSpec, ...]]:
    """The portable graph in memory, over the weights of `module`, and its retained states.

    `extra_inputs` names the inputs between tokens and states, see `contracts.EXTRA_INPUTS`.
    """
    if list(extra_inputs) != [name for name in EXTRA_INPUTS if name in extra_inputs]:
        raise ExportError(
            f"the inputs {', '.join(extra_inputs)} are not of {', '.join(EXTRA_INPUTS)}, or not in this order"
        )
    norms = find_rms_norms(module)
    shell = make_shell(module)
    adapt(shell, norms)
    masks = MaskPlan()
    with stage("probe run"):
        layers = _probe_layers(shell, masks)
    with stage("trace"):
        program = trace(_CausalLMGraph(shell, masks, layers, extra_inputs), *_example(layers, extra_inputs))
        require_given_positions(program)
    with stage("translation to ONNX"):
        model = convert(program, graph_weights(module, norms))
    return model, _name_interface(model, layers, extra_inputs)


class _CausalLMGraph(torch.nn.Module):
    """Gives a shell the signature of the portable graph."""

    def __init__(
        self,
        model: PreTrainedModel,
        masks: MaskPlan,
        layers: tuple[LayerShape, ...],
        extra_inputs: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.model = model
        self.masks = masks
        self.layers = layers
        self.extra_inputs = extra_inputs

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        extras: list[torch.Tensor],
        states: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Returns logits ``[B, 1, V]`` (``[B, K, V]`` of a speculative target) and the new `states`: key, value of each layer."""
        extra = dict(zip(self.extra_inputs, extras, strict=True))
        compute_ctx, kept = extra.get("comp_ctx_lengths"), extra.get("num_logits_to_keep")
        length = states[0].shape[2] if compute_ctx is None else compute_ctx.shape[0]
        step = Step(
            position_ids=position_ids,
            kv_positions=torch.arange(length),
            batch_index=extra.get("batch_index"),
            reads_part=compute_ctx is not None,
        )
        cache_layers = [FixedLayer(length) for _ in range(self.layers[-1].index + 1)]
        for number, layer in enumerate(self.layers):
            cache_layers[layer.index] = FixedLayer(length, states[2 * number], states[2 * number + 1])
        logits = _last_logits(self.model, self.masks, input_ids, step, Cache(layers=list(cache_layers)), kept)
        written = [cache_layers[layer.index] for layer in self.layers]
        return logits, *(state for layer in written for state in layer.states())


class _ProbeGraph(torch.nn.Module):
    """The same step over a cache that records shapes."""

    def __init__(self, model: PreTrainedModel, masks: MaskPlan) -> None:
        super().__init__()
        self.model = model
        self.masks = masks
        self.cache = RecordingCache(_CTX)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Returns logits ``[B, 1, V]``."""
        step = Step(position_ids=position_ids, kv_positions=torch.arange(_CTX))
        return _last_logits(self.model, self.masks, input_ids, step, self.cache, None)


def _last_logits(
    model: PreTrainedModel,
    masks: MaskPlan,
    input_ids: torch.Tensor,
    step: Step,
    cache: Cache,
    kept_logits: torch.Tensor | None,
) -> torch.Tensor:
    """One step over `cache`; logits ``[B, K, V]`` of each row's last tokens that are not padding, K the length of `kept_logits`.

    Without `kept_logits` K is 1. A row with fewer tokens than K repeats its first one in front.
    """
    position_ids = step.position_ids
    last = position_ids.argmax(dim=1).unsqueeze(1)
    if kept_logits is not None:
        count = kept_logits.shape[0]
        last = (last + (torch.arange(count) - (count - 1))).clamp(min=0)
    gather = _GatherBeforeHead(last)
    head: torch.nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    hook = head.register_forward_pre_hook(gather) if head is not None else None
    try:
        with forward_scope(Scope(masks=masks, step=step)):
            logits: torch.Tensor = model(
                input_ids=input_ids,
                position_ids=position_ids.clamp(min=0),
                use_cache=True,
                **{_cache_argument(model): cache},
            ).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits if gather.applied else _rows(logits, last)


class _GatherBeforeHead:
    """Pre-hook of the LM head, the largest product of a small model: lets one row per sequence through."""

    def __init__(self, last: torch.Tensor) -> None:
        self.last = last
        self.applied = False

    def __call__(self, head: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        del head
        hidden = arguments[0] if arguments else None
        if not isinstance(hidden, torch.Tensor) or hidden.dim() != 3:
            return None
        self.applied = True
        return (_rows(hidden, self.last), *arguments[1:])


def _rows(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows ``index [B, K]`` of ``tokens [B, S, N]`` for each b: ``[B, K, N]``."""
    return tokens.gather(1, index.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def _cache_argument(model: PreTrainedModel) -> str:
    """Transformers renames `past_key_values` to `cache` from 5.24 on."""
    parameters = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in parameters:
            return name
    raise UnsupportedModelError("its forward takes no key/value cache")


def _probe_layers(shell: PreTrainedModel, masks: MaskPlan) -> tuple[LayerShape, ...]:
    """Runs one step; returns the layers that wrote to the cache."""
    graph = _ProbeGraph(shell, masks)
    logits = probe(graph, _example_tokens())
    masks.finish_recording()
    layers = graph.cache.shapes()
    if not layers:
        raise UnsupportedModelError("it writes nothing to the key/value cache, so no state could be retained")
    if not masks.forms:
        raise UnsupportedModelError("it makes its attention masks by itself, from token counts instead of positions")
    if logits.dim() != 3 or logits.shape[1] != 1:
        raise UnsupportedModelError(f"its logits have the shape {tuple(logits.shape)}")
    return layers


def _example_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.zeros((_BATCH, _SEQ), dtype=torch.int64)
    return tokens, torch.arange(_SEQ).expand(_BATCH, -1).contiguous()


def _example(layers: tuple[LayerShape, ...], extra_inputs: tuple[str, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments of the trace, and which of their dimensions are symbolic."""
    names = (BATCH, SEQ, CTX, FULL_BATCH, COMPUTE_CTX, KEPT_LOGITS)
    batch, seq, ctx, full_batch, compute_ctx, kept = (torch.export.Dim(name, min=1) for name in names)
    rows, row_axis = (_FULL_BATCH, full_batch) if "batch_index" in extra_inputs else (_BATCH, batch)
    states = [torch.zeros((rows, heads, _CTX, dim)) for layer in layers for heads, dim in layer.sizes()]
    examples = {
        "batch_index": (torch.arange(_BATCH).unsqueeze(1), {0: batch}),
        "comp_ctx_lengths": (torch.zeros(_COMPUTE_CTX, dtype=torch.int64), {0: compute_ctx}),
        "num_logits_to_keep": (torch.zeros((_KEPT_LOGITS, 1), dtype=torch.int64), {0: kept}),
    }
    extras = [examples[name][0] for name in extra_inputs]
    extra_axes = [examples[name][1] for name in extra_inputs]
    token_axes = {0: batch, 1: seq}
    axes = (token_axes, token_axes, extra_axes, [{0: row_axis, 2: ctx} for _ in states])
    return (*_example_tokens(), extras, states), axes


def _name_interface(
    model: onnx_ir.Model, layers: tuple[LayerShape, ...], extra_inputs: tuple[str, ...]
) -> tuple[StateSpec, ...]:
    names = [f"past_{kind}.{layer.index}" for layer in layers for kind in ("key", "value")]
    states = tuple(StateSpec(input=name, output=f"{name}_RetainedState") for name in names)
    rename_interface(
        model,
        inputs=["input_ids", "position_ids", *extra_inputs, *names],
        outputs=["logits", *(state.output for state in states)],
    )
    first_state = 2 + len(extra_inputs)
    number = {name: 2 + place for place, name in enumerate(extra_inputs)}
    found_in = {
        "batch_index": (FULL_BATCH, first_state),
        "comp_ctx_lengths": (COMPUTE_CTX, number.get("comp_ctx_lengths", 0)),
        "num_logits_to_keep": (KEPT_LOGITS, number.get("num_logits_to_keep", 0)),
    }
    extra_dims = {dim: (place, 0) for dim, place in (found_in[name] for name in extra_inputs)}
    rename_dims(model, {BATCH: (0, 0), SEQ: (0, 1), CTX: (first_state, 2), **extra_dims})
    return states
