"""The graph of a causal language model: tokens, positions and caches in; the last token's logits and the new caches out."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache

from qeff_framework.contracts import StateSpec
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.interface import BATCH, CTX, SEQ, rename_dims, rename_interface
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


def causal_lm_model(module: PreTrainedModel) -> tuple[onnx_ir.Model, tuple[StateSpec, ...]]:
    """The portable graph in memory, over the weights of `module`, and its retained states."""
    norms = find_rms_norms(module)
    shell = make_shell(module)
    adapt(shell, norms)
    masks = MaskPlan()
    with stage("probe run"):
        layers = _probe_layers(shell, masks)
    with stage("trace"):
        program = trace(_CausalLMGraph(shell, masks, layers), *_example(layers))
        require_given_positions(program)
    with stage("translation to ONNX"):
        model = convert(program, graph_weights(module, norms))
    return model, _name_interface(model, layers)


class _CausalLMGraph(torch.nn.Module):
    """Gives a shell the signature of the portable graph."""

    def __init__(self, model: PreTrainedModel, masks: MaskPlan, layers: tuple[LayerShape, ...]) -> None:
        super().__init__()
        self.model = model
        self.masks = masks
        self.layers = layers

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, states: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Returns logits ``[B, 1, V]`` and the new `states`: key, value of each layer."""
        ctx_len = states[0].shape[2]
        cache_layers = [FixedLayer(ctx_len) for _ in range(self.layers[-1].index + 1)]
        for number, layer in enumerate(self.layers):
            cache_layers[layer.index] = FixedLayer(ctx_len, states[2 * number], states[2 * number + 1])
        logits = _last_logits(
            self.model, self.masks, input_ids, position_ids, Cache(layers=list(cache_layers)), ctx_len
        )
        kept = [cache_layers[layer.index] for layer in self.layers]
        return logits, *(state for layer in kept for state in layer.states())


class _ProbeGraph(torch.nn.Module):
    """The same step over a cache that records shapes."""

    def __init__(self, model: PreTrainedModel, masks: MaskPlan) -> None:
        super().__init__()
        self.model = model
        self.masks = masks
        self.cache = RecordingCache(_CTX)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Returns logits ``[B, 1, V]``."""
        return _last_logits(self.model, self.masks, input_ids, position_ids, self.cache, _CTX)


def _last_logits(
    model: PreTrainedModel,
    masks: MaskPlan,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    cache: Cache,
    ctx_len: int,
) -> torch.Tensor:
    """One step over `cache`; logits ``[B, 1, V]`` of each row's last token that is not padding."""
    last = position_ids.argmax(dim=1)
    step = Step(position_ids=position_ids, kv_positions=torch.arange(ctx_len))
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
    return logits if gather.applied else _row(logits, last)


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
        return (_row(hidden, self.last), *arguments[1:])


def _row(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Row ``index[b]`` of ``tokens [B, S, N]`` for each b: ``[B, 1, N]``."""
    return tokens.gather(1, index.unsqueeze(1).unsqueeze(2).expand(-1, 1, tokens.shape[2]))


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


def _example(layers: tuple[LayerShape, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments of the trace, and which of their dimensions are symbolic."""
    batch, seq, ctx = (torch.export.Dim(name, min=1) for name in (BATCH, SEQ, CTX))
    states = [torch.zeros((_BATCH, heads, _CTX, dim)) for layer in layers for heads, dim in layer.sizes()]
    token_axes = {0: batch, 1: seq}
    return (*_example_tokens(), states), (token_axes, token_axes, [{0: batch, 2: ctx} for _ in states])


def _name_interface(model: onnx_ir.Model, layers: tuple[LayerShape, ...]) -> tuple[StateSpec, ...]:
    names = [f"past_{kind}.{layer.index}" for layer in layers for kind in ("key", "value")]
    states = tuple(StateSpec(input=name, output=f"{name}_RetainedState") for name in names)
    rename_interface(
        model,
        inputs=["input_ids", "position_ids", *names],
        outputs=["logits", *(state.output for state in states)],
    )
    rename_dims(model, {BATCH: (0, 0), SEQ: (0, 1), CTX: (2, 2)})
    return states
