"""The graph of an encoder-decoder language model: one step of the decoder, and of the encoder where there is something to read.

One graph, not one for each half. The keys and values of cross-attention are retained states like those of self-attention, and
the specializations of one program share their states on the device; those of two programs would go through the host. They are
written by the op that writes every cache, at the positions of the encoder's tokens. So the step that reads the source, *encode*,
has T tokens for the encoder, and *decode* has a single one of padding, which writes nothing. Nothing else tells the two apart:
sources of several lengths are several encode programs over the same states.

A backend that can branch need not run the encoder over that one token: all it computes goes into these updates.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from qeff_framework.contracts import StateSpec
from qeff_framework.errors import QEFFError, UnsupportedModelError
from qeff_framework.export.interface import (
    BATCH,
    CTX,
    ENCODER_CTX,
    ENCODER_SEQ,
    SEQ,
    rename_dims,
    rename_interface,
)
from qeff_framework.export.last_logits import cache_argument, last_logits
from qeff_framework.export.portable_graph import GraphRequest, PortableGraph
from qeff_framework.export.positions import (
    require_given_positions,
    require_no_running_count,
    require_no_text_length,
    running_count,
    token_counting,
)
from qeff_framework.export.stages import stage
from qeff_framework.export.trace import finish, probe, trace, translate
from qeff_framework.export.weights import graph_weights
from qeff_framework.seam.adapt import adapt, bypasses_attention_interface, fall_back_to_eager
from qeff_framework.seam.arange_positions import CountWatch, PositionalArangeMode, PositionalCountMode, PositionMode
from qeff_framework.seam.cache import CrossCache, SeamCache
from qeff_framework.seam.layers import LayerKinds, LayerRecorder, stamping, without_stamped_weights
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.norms import find_rms_norms
from qeff_framework.seam.rotary import find_length_dependent_rotary
from qeff_framework.seam.scope import Memory, Scope, Step, forward_scope
from qeff_framework.seam.special.refusals import refuse_special, refuse_special_encoder
from qeff_framework.seam.states import CROSS, SLOTTED, StateId, StateShape
from qeff_framework.seam.weightless import weightless_copy

if TYPE_CHECKING:
    import onnx_ir
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_NO_KINDS = LayerKinds()

INPUTS = ("input_ids", "position_ids", "encoder_input_ids", "encoder_position_ids", "encoder_lengths")
#: Instead of the tokens, ``[B, T, D]``: what an encoder in another program has made of the source.
HIDDEN_STATES = "encoder_hidden_states"

#: Sizes of the example step. All differ and none is 1, so the tracer does not take one for another or for a broadcast.
_BATCH, _SEQ, _CTX, _ENCODER_SEQ, _ENCODER_CTX = 2, 3, 8, 5, 7


def seq2seq_lm_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:  # noqa: ARG001 - every builder has this signature
    """The graph over the weights of `module`. ``source_vocab_size`` in its metadata: token ids that the encoder knows."""
    if not module.config.is_encoder_decoder:
        raise UnsupportedModelError("it is no encoder-decoder; QEFFAutoModel(module) picks the class for it")
    refuse_special_encoder(module)
    graph = _graph(module, hidden_size=None)
    return replace(graph, metadata={"source_vocab_size": module.get_encoder().get_input_embeddings().num_embeddings})


def speech_decoder_graph(module: PreTrainedModel, hidden_size: int) -> PortableGraph:
    """The decoder alone, over the output of an encoder in another program: ``encoder_hidden_states [B, T, hidden_size]``.

    Where the source is read, T is its frames; in each further step a single one of padding.
    """
    return _graph(module, hidden_size=hidden_size)


def _graph(module: PreTrainedModel, *, hidden_size: int | None) -> PortableGraph:
    refuse_special(module)
    norms, rotary = find_rms_norms(module), find_length_dependent_rotary(module)
    weightless = weightless_copy(module)
    adapt(weightless, norms, rotary)
    with stage("probe run"):
        plan = _probe(weightless, hidden_size=hidden_size)
    weights = graph_weights(module, norms)
    try:
        model = _traced_model(weightless, plan, weights)
    except QEFFError as reason:
        if not plan.kinds.kinds:
            raise
        # A model may do with its layers what a record does not show.
        logger.info("every layer is traced: %s", reason)
        model = _traced_model(weightless, replace(plan, kinds=_NO_KINDS), weights)
    finish(model)
    return PortableGraph(model=model, states=_name_interface(model, plan))


def _traced_model(weightless: PreTrainedModel, plan: _Plan, weights: Mapping[str, torch.Tensor]) -> onnx_ir.Model:
    with stage("trace"):
        program = _trace(weightless, plan)
    with stage("translation to ONNX"):
        return translate(program, weights, plan.kinds, [shape.id for shape in plan.states])


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the probe run found out about a model."""

    encoder_masks: MaskPlan
    decoder_masks: MaskPlan
    states: tuple[StateShape, ...] = ()
    #: The layers that are alike in the probe run.
    kinds: LayerKinds = _NO_KINDS
    #: Of the output of an encoder in another program; `None`: the encoder is part of the graph.
    hidden_size: int | None = None
    #: The decoder gets a mask for the encoder's output, without which it asks for no mask of its cross-attention.
    gives_memory_mask: bool = False
    #: The decoder reads ``pooler_output``, where an image encoder puts the vectors that it was made for.
    reads_pooled: bool = False
    #: The decoder takes positions, and its model passes none on.
    gives_positions: bool = False
    #: Those that have something to answer in the probe run.
    modes: frozenset[PositionMode] = frozenset()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs in front of the states."""
        if self.hidden_size is None:
            return INPUTS
        return tuple(HIDDEN_STATES if name == "encoder_input_ids" else name for name in INPUTS)


class _Caches:
    """Both caches of a step as one, and both plans for masks."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self.own, self.cross = SeamCache(_CTX), CrossCache(_ENCODER_CTX)

    @property
    def states(self) -> _States:
        """Those of both."""
        return _States(self.own.states, self.cross.states)

    @property
    def calls(self) -> int:
        """How often masks were asked for."""
        return self._plan.encoder_masks.calls + self._plan.decoder_masks.calls


class _States(MutableMapping[StateId, torch.Tensor]):
    """States of cross-attention lie in a mapping of their own."""

    def __init__(self, own: dict[StateId, torch.Tensor], cross: dict[StateId, torch.Tensor]) -> None:
        self._own, self._cross = own, cross

    def _place(self, state: StateId) -> dict[StateId, torch.Tensor]:
        return self._cross if state.role in CROSS else self._own

    def __getitem__(self, state: StateId) -> torch.Tensor:
        return self._place(state)[state]

    def __setitem__(self, state: StateId, tensor: torch.Tensor) -> None:
        self._place(state)[state] = tensor

    def __delitem__(self, state: StateId) -> None:
        del self._place(state)[state]

    def __iter__(self) -> Iterator[StateId]:
        return iter((*self._own, *self._cross))

    def __len__(self) -> int:
        return len(self._own) + len(self._cross)


class _Seq2SeqGraph(torch.nn.Module):
    """Wraps a weightless copy: its forward has the signature of the portable graph.

    A plan without states makes caches that record them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plan: _Plan,
        position_modes: Sequence[Callable[[torch.Tensor], AbstractContextManager[object]]] = (),
        around_layers: Callable[[_Caches], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self.position_modes = position_modes
        #: Those of the last pass.
        self.caches = _Caches(plan)
        #: In which the model runs, given the caches.
        self.around_layers = around_layers
        #: States of the last pass.
        self.shapes: tuple[StateShape, ...] = ()

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        source: torch.Tensor,
        encoder_position_ids: torch.Tensor,
        encoder_lengths: torch.Tensor,
        states: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Returns logits ``[B, 1, V]`` and the new `states`.

        `source`: tokens ``[B, T]``, or the output of an encoder ``[B, T, D]``.
        """
        # Each input has symbols of its own for its sizes; from here on they are known to be the same.
        require: Any = torch._check  # noqa: SLF001  (documented for exports, and untyped)
        for tensor in (position_ids, source, encoder_position_ids, encoder_lengths):
            require(input_ids.shape[0] == tensor.shape[0])
        require(input_ids.shape[1] == position_ids.shape[1])
        require(source.shape[1] == encoder_position_ids.shape[1])

        own, cross = self._caches(states)
        self.caches.own, self.caches.cross = own, cross
        step = Step(position_ids=position_ids, kv_positions=torch.arange(own.ctx_len))
        memory = Memory(
            position_ids=encoder_position_ids,
            lengths=encoder_lengths,
            kv_positions=torch.arange(cross.ctx_len),
        )
        try:
            with self.around_layers(self.caches):
                logits = self._step(input_ids, source, step, memory, EncoderDecoderCache(own, cross))
        finally:
            self.shapes = (*own.shapes(), *cross.shapes())
        written = {**own.states, **cross.states}
        return logits, *(written[shape.id] for shape in self.plan.states)

    def _caches(self, states: list[torch.Tensor]) -> tuple[SeamCache, CrossCache]:
        if not states:
            return SeamCache(_CTX), CrossCache(_ENCODER_CTX)
        held = {shape.id: state for shape, state in zip(self.plan.states, states, strict=True)}
        own = {state: tensor for state, tensor in held.items() if state.role not in CROSS}
        cross = {state: tensor for state, tensor in held.items() if state.role in CROSS}
        return SeamCache(next(iter(own.values())).shape[2], own), CrossCache(next(iter(cross.values())).shape[2], cross)

    def _step(
        self,
        input_ids: torch.Tensor,
        source: torch.Tensor,
        step: Step,
        memory: Memory,
        cache: EncoderDecoderCache,
    ) -> torch.Tensor:
        model, plan = self.model, self.plan
        is_token: torch.Tensor | None = None
        if plan.hidden_size is not None:
            # Which of them are padding is told by the memory alone: models of sound count a mask in samples.
            encoded: Any = BaseModelOutput(last_hidden_state=source)
            if plan.reads_pooled:
                encoded = BaseModelOutputWithPooling(last_hidden_state=source, pooler_output=source)
            # Some decoders look for the encoder's mask in its output.
            encoded.attention_mask = None
        else:
            is_token = (memory.position_ids >= 0).to(torch.int64)
            source_lengths = is_token.sum(dim=1, keepdim=True).expand(-1, is_token.shape[1])
            with forward_scope(Scope(masks=plan.encoder_masks, token_lengths=source_lengths)):
                encoded = model.get_encoder()(input_ids=source, attention_mask=is_token)
        arguments: dict[str, Any] = {cache_argument(model): cache}
        if "decoder_position_ids" in inspect.signature(model.forward).parameters:
            arguments["decoder_position_ids"] = step.position_ids.clamp(min=0)

        def run() -> torch.Tensor:
            # The decoder's prompt is one token, so every token ends the text that it is read with.
            token_lengths = step.position_ids + 1
            scope = Scope(masks=plan.decoder_masks, step=step, memory=memory, token_lengths=token_lengths)
            with ExitStack() as stack:
                stack.enter_context(forward_scope(scope))
                given: dict[str, Any] = {}
                if plan.gives_memory_mask:
                    # Which slots it hides, the seam tells.
                    given["encoder_attention_mask"] = torch.ones(source.shape[:2], dtype=torch.int64)
                if plan.gives_positions:
                    given["position_ids"] = step.position_ids.clamp(min=0)
                stack.enter_context(_given_to_decoder(model, given))
                for mode in self.position_modes:
                    stack.enter_context(mode(step.position_ids))
                logits: torch.Tensor = model(
                    encoder_outputs=encoded,
                    attention_mask=is_token,
                    decoder_input_ids=input_ids,
                    use_cache=True,
                    **arguments,
                ).logits
            return logits

        return last_logits(model, step.position_ids, run)


@contextmanager
def _given_to_decoder(model: Any, given: dict[str, Any]) -> Iterator[None]:
    """Gives the decoder arguments that its model has left out."""

    def add(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, **given}

    hook = model.get_decoder().register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _probe(
    weightless: PreTrainedModel,
    *,
    hidden_size: int | None = None,
    adds_encoder_masks: bool = False,
    gives_memory_mask: bool = False,
    reads_pooled: bool = False,
) -> _Plan:
    """Runs one step; returns what it needs to be traced."""
    plan = _Plan(
        encoder_masks=MaskPlan(additive=adds_encoder_masks),
        decoder_masks=MaskPlan(),
        hidden_size=hidden_size,
        gives_memory_mask=gives_memory_mask,
        reads_pooled=reads_pooled,
    )
    found: set[PositionMode] = set()
    graph = _Seq2SeqGraph(weightless, plan, [functools.partial(CountWatch, found=found)])
    layers = LayerRecorder()
    try:
        with layers.watching(weightless, graph.caches, graph.caches):
            logits, *_ = probe(graph, (*_example_inputs(hidden_size), []))
    except Exception as error:
        if graph.shapes and not plan.decoder_masks.forms:  # What it made for itself does not fit the cache.
            raise _own_masks() from error
        raise
    plan.encoder_masks.finish_recording()
    plan.decoder_masks.finish_recording()
    own = [shape for shape in graph.shapes if shape.id.role not in CROSS]
    cross = [shape for shape in graph.shapes if shape.id.role in CROSS]
    if own and not cross and hidden_size is not None and not reads_pooled:
        return _probe(weightless, hidden_size=hidden_size, reads_pooled=True)
    if not own or not cross:
        missing = "self-attention" if not own else "cross-attention"
        raise UnsupportedModelError(f"its {missing} writes nothing to the cache, so no state could be retained")
    if any(shape.id.role not in (*SLOTTED, *CROSS) for shape in graph.shapes):
        raise UnsupportedModelError("its decoder keeps convolution or recurrent states beside the encoder's output")
    if not plan.decoder_masks.forms:
        raise _own_masks()
    asking = plan.decoder_masks.attention_calls
    if asking == 0 and fall_back_to_eager(weightless):
        return _probe(weightless, hidden_size=hidden_size, reads_pooled=reads_pooled)
    writing = sum(shape.id.role in ("key", "key_cross") for shape in graph.shapes)
    # Attention on the interface hides what the encoder has not written; other code is told by a mask alone.
    if asking == 0 and plan.decoder_masks.memory_calls == 0:
        if hidden_size is None or gives_memory_mask:
            raise UnsupportedModelError("its cross-attention asks for no mask, and would see padding of the source")
        return _probe(weightless, hidden_size=hidden_size, gives_memory_mask=True, reads_pooled=reads_pooled)
    if 0 < asking < writing:
        raise UnsupportedModelError(
            f"the attention of {writing - asking} of its decoder's layers bypasses the attention interface"
        )
    # The decoder may share the encoder's config, so what the encoder's attention needs is told by its masks alone.
    if hidden_size is None and bypasses_attention_interface(weightless.get_encoder(), plan.encoder_masks):
        return _probe(weightless, adds_encoder_masks=True)
    if logits.dim() != 3 or logits.shape[1] != 1:
        raise UnsupportedModelError(f"its logits have the shape {tuple(logits.shape)}")
    return replace(plan, states=graph.shapes, kinds=layers.kinds(), modes=frozenset(found))


def _own_masks() -> UnsupportedModelError:
    return UnsupportedModelError("it makes its attention masks by itself, from token counts instead of positions")


def _trace(weightless: PreTrainedModel, plan: _Plan) -> torch.export.ExportedProgram:
    """Traces the step. A decoder that counts or numbers its tokens is given positions instead."""

    def stamped(caches: _Caches) -> AbstractContextManager[object]:
        return stamping(weightless, plan.kinds, caches)

    # The layers that are not traced bring their states with them when they are stamped.
    held = replace(plan, states=tuple(shape for shape in plan.states if shape.id not in plan.kinds.stamped_states))
    with without_stamped_weights(weightless, plan.kinds):
        return _trace_layers(weightless, held, stamped)


def _trace_layers(
    weightless: PreTrainedModel, plan: _Plan, stamped: Callable[[_Caches], AbstractContextManager[object]]
) -> torch.export.ExportedProgram:
    example, axes = _example(plan)

    def traced(modes: Collection[PositionMode]) -> torch.export.ExportedProgram:
        ordered = [mode for mode in (PositionalCountMode, PositionalArangeMode) if mode in modes]
        return trace(_Seq2SeqGraph(weightless, plan, ordered, stamped), example, axes)

    program, modes = None, plan.modes
    if modes:
        # What they answer for may have no part in the result, and they may not get along with what is made of it.
        with suppress(Exception):
            program = traced(modes)
    if program is None:
        program, modes = traced(()), frozenset()
    missing: set[PositionMode] = set()
    if running_count(program) is not None:
        missing.add(PositionalCountMode)
    if token_counting(program) is not None:
        missing.add(PositionalArangeMode)
    if missing - modes:
        program = traced(modes | missing)
    require_no_running_count(program)
    require_no_text_length(program)
    try:
        require_given_positions(program)
    except UnsupportedModelError:
        decoder: Any = weightless
        if plan.gives_positions or "position_ids" not in inspect.signature(decoder.get_decoder().forward).parameters:
            raise
        return _trace(weightless, replace(plan, gives_positions=True))
    return program


def _example_inputs(hidden_size: int | None) -> tuple[torch.Tensor, ...]:
    def counting(tokens: int) -> torch.Tensor:
        return torch.arange(tokens).expand(_BATCH, -1).contiguous()

    tokens = torch.zeros((_BATCH, _ENCODER_SEQ), dtype=torch.int64)
    return (
        torch.zeros((_BATCH, _SEQ), dtype=torch.int64),
        counting(_SEQ),
        tokens if hidden_size is None else torch.zeros((_BATCH, _ENCODER_SEQ, hidden_size)),
        counting(_ENCODER_SEQ),
        torch.full((_BATCH, 1), _ENCODER_SEQ),
    )


def _example(plan: _Plan) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments of the trace, and which of their dimensions are symbolic."""
    names = (BATCH, SEQ, CTX, ENCODER_SEQ, ENCODER_CTX)
    batch, seq, ctx, encoder_seq, encoder_ctx = (torch.export.Dim(name, min=1) for name in names)
    shapes = plan.states
    crossing = [shape.id.role in CROSS for shape in shapes]
    states = [
        shape.zeros(_BATCH, _ENCODER_CTX if is_cross else _CTX)
        for shape, is_cross in zip(shapes, crossing, strict=True)
    ]
    state_axes = [{0: batch, 2: encoder_ctx if is_cross else ctx} for is_cross in crossing]
    tokens, encoder_tokens = {0: batch, 1: seq}, {0: batch, 1: encoder_seq}
    axes = (tokens, tokens, encoder_tokens, encoder_tokens, {0: batch}, state_axes)
    return (*_example_inputs(plan.hidden_size), states), axes


def _name_interface(model: onnx_ir.Model, plan: _Plan) -> tuple[StateSpec, ...]:
    shapes, inputs = plan.states, plan.inputs
    states = tuple(
        StateSpec(input=shape.id.name, output=f"{shape.id.name}_RetainedState", kind=shape.id.kind) for shape in shapes
    )
    rename_interface(
        model,
        inputs=[*inputs, *(state.input for state in states)],
        outputs=["logits", *(state.output for state in states)],
    )
    first_cross = next(number for number, shape in enumerate(shapes) if shape.id.role in CROSS)
    rename_dims(
        model,
        {
            BATCH: (0, 0),
            SEQ: (0, 1),
            ENCODER_SEQ: (INPUTS.index("encoder_input_ids"), 1),
            CTX: (len(inputs), 2),
            ENCODER_CTX: (len(inputs) + first_cross, 2),
        },
    )
    return states
