"""The graph of a causal language model: tokens, positions and caches in; the last token's logits and the new caches out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers.cache_utils import Cache, DynamicCache

from qeff_framework.contracts import (
    EXTRA_INPUTS,
    PROBABILITIES,
    PROMPT_LENGTHS,
    SAMPLER_INPUTS,
    TOKEN_BITMASKS,
    StateSpec,
)
from qeff_framework.errors import ExportError, QEFFError, UnsupportedModelError
from qeff_framework.export.interface import (
    BATCH,
    COMPUTE_CTX,
    CTX,
    ENCODER_CTX,
    ENCODER_SEQ,
    FULL_BATCH,
    KEPT_LOGITS,
    SEQ,
    TILES,
    VISION,
    rename_dims,
    rename_interface,
)
from qeff_framework.export.last_logits import cache_argument, last_logits
from qeff_framework.export.loops import insert_loops
from qeff_framework.export.portable_graph import GraphRequest, PortableGraph
from qeff_framework.export.positions import require_given_positions, require_no_text_length, token_counting
from qeff_framework.export.sampler import append_sampler
from qeff_framework.export.stages import stage
from qeff_framework.export.trace import finish, probe, trace, translate
from qeff_framework.export.weights import graph_weights
from qeff_framework.images.rows import (
    NO_BLOCK,
    OF_IMAGE,
    OF_IMAGES,
    OF_PROMPT,
    TILES_SEEN,
    TOKEN_TYPES,
    VISION_EMBEDS,
)
from qeff_framework.seam.adapt import adapt, fall_back_to_eager
from qeff_framework.seam.arange_positions import CountWatch, PositionalArangeMode, PositionMode
from qeff_framework.seam.cache import SeamCache
from qeff_framework.seam.image_inputs import (
    EXAMPLE_SLOTS,
    NO_IMAGES,
    NO_IMAGES_IN_STEP,
    ImageInputs,
    ImagesOfStep,
)
from qeff_framework.seam.layers import LayerKinds, LayerRecorder, stamping, without_stamped_weights
from qeff_framework.seam.loop_recorder import LoopRecorder
from qeff_framework.seam.loops import LoopSite, loop_site, looping, recorded_calls
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.masks import not_causal, refusing_lookahead
from qeff_framework.seam.norms import find_rms_norms
from qeff_framework.seam.rereading import reread_lengths
from qeff_framework.seam.rotary import find_length_dependent_rotary, length_limits
from qeff_framework.seam.scope import Scope, Step, forward_scope
from qeff_framework.seam.special.refusals import refuse_special
from qeff_framework.seam.states import CROSS, SLOTTED, Role, StateId, StateShape
from qeff_framework.seam.weightless import weightless_copy

if TYPE_CHECKING:
    import onnx_ir
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

#: Sizes of the example step. All differ and none is 1, so the tracer does not take one for another or for a broadcast.
_BATCH, _SEQ, _CTX = 2, 3, 8
_FULL_BATCH, _COMPUTE_CTX, _KEPT_LOGITS = 5, 6, 4


def causal_lm_graph(
    module: PreTrainedModel, request: GraphRequest, *, images: ImageInputs = NO_IMAGES
) -> PortableGraph:
    """The graph over the weights of `module`.

    `images`: the inputs of a vision-language model, behind those of ``request.extra_inputs``.

    ``reread_lengths`` in its metadata: a text that has grown to one of these lengths is read anew.
    """
    extra_inputs = request.extra_inputs
    takes_masks = extra_inputs[-1:] == (TOKEN_BITMASKS,)
    if takes_masks:
        extra_inputs = extra_inputs[:-1]
    has_sampler = extra_inputs[-len(SAMPLER_INPUTS) :] == SAMPLER_INPUTS
    if has_sampler:
        extra_inputs = extra_inputs[: -len(SAMPLER_INPUTS)]
    if list(extra_inputs) != [name for name in EXTRA_INPUTS if name in extra_inputs]:
        raise ExportError(
            f"the inputs {', '.join(extra_inputs)} are not of {', '.join(EXTRA_INPUTS)}, or not in this order"
        )
    if not has_sampler and (takes_masks or request.extra_outputs):
        raise ExportError(f"{TOKEN_BITMASKS} and {PROBABILITIES} belong to a sampler, and the graph is to have none")
    if set(request.extra_outputs) - {PROBABILITIES}:
        raise ExportError(f"the outputs {', '.join(request.extra_outputs)} are not of {PROBABILITIES}")
    if has_sampler and "num_logits_to_keep" in extra_inputs:
        raise ExportError("a sampler chooses one token per step, and num_logits_to_keep asks for several logits")
    refuse_special(module)
    norms, rotary = find_rms_norms(module), find_length_dependent_rotary(module)
    rereading: tuple[int, ...] = ()
    if rotary:
        extra_inputs = (*extra_inputs, PROMPT_LENGTHS)
        rereading = reread_lengths(module, length_limits(rotary), cache_argument(module))
    extra_inputs = (*extra_inputs, *images.names)
    weightless = weightless_copy(module)
    adapt(weightless, norms, rotary)
    block = NO_BLOCK
    with stage("probe run"):
        if images.token_types:
            block, plain_type = _blocks(weightless, images)
            images = replace(images, plain_type=plain_type)
        plan = _probe(weightless, images)
        _check_extra_inputs(plan, extra_inputs)
        kinds = _layer_kinds(weightless, plan, extra_inputs, images)
    weights = graph_weights(module, norms)
    try:
        model = _traced_model(weightless, plan, extra_inputs, weights, kinds, images)
    except QEFFError as reason:
        if not kinds.kinds:
            raise
        # A model may do with its layers what a record does not show.
        logger.info("every layer is traced: %s", reason)
        model = _traced_model(weightless, plan, extra_inputs, weights, LayerKinds(), images)
    with stage("trace of a single token"):
        insert_loops(model, weightless, plan.loops, weights, _BATCH)
    finish(model)
    states = _name_interface(model, plan.states, extra_inputs)
    if has_sampler:
        states = (
            *states,
            *append_sampler(
                model,
                first_state=2 + len(extra_inputs),
                takes_masks=takes_masks,
                returns_probabilities=bool(request.extra_outputs),
            ),
        )
    metadata: dict[str, Any] = {"reread_lengths": list(rereading)} if rereading else {}
    if images.token_types:
        metadata["token_types"] = {"block": block, "plain": images.plain_type}
    if note := _unread_window(weightless, plan.masks):
        metadata["notes"] = [note]
    return PortableGraph(model=model, states=states, metadata=metadata)


def _traced_model(
    weightless: PreTrainedModel,
    plan: _Plan,
    extra_inputs: tuple[str, ...],
    weights: Mapping[str, torch.Tensor],
    kinds: LayerKinds,
    images: ImageInputs,
) -> onnx_ir.Model:
    with stage("trace"):
        program = _trace(weightless, plan, extra_inputs, kinds, images)
    with stage("translation to ONNX"):
        return translate(program, weights, kinds, [shape.id for shape in plan.states])


def _layer_kinds(
    weightless: PreTrainedModel, plan: _Plan, extra_inputs: tuple[str, ...], images: ImageInputs
) -> LayerKinds:
    """The layers that are alike. Those with loops of their own are not among them.

    The probe run begins a text. Code that keeps other states than keys and values asks whether it does, and may do something else
    in the graph that is traced: there the layers are compared again, in a run of that graph.
    """
    looped = [site.name for site in plan.loops]
    kinds = plan.kinds.without(looped)
    if all(state.role in SLOTTED for kind in kinds.kinds for layer in kind for state in layer.states):
        return kinds
    recorder = LayerRecorder()

    def recording(cache: SeamCache) -> AbstractContextManager[object]:
        return recorder.watching(weightless, cache, plan.masks)

    example, _ = _example(plan.states, extra_inputs, images)
    try:
        probe(_CausalLMGraph(weightless, plan, extra_inputs, images, recording), example)
    except Exception as reason:  # noqa: BLE001 - what is wrong shows in the trace
        logger.info("every layer is traced: %s", reason)
        return LayerKinds()
    return recorder.kinds().without(looped)


def _trace(
    weightless: PreTrainedModel, plan: _Plan, extra_inputs: tuple[str, ...], kinds: LayerKinds, images: ImageInputs
) -> torch.export.ExportedProgram:
    """Traces the step. A model that numbers tokens by their index is traced with its count replaced by positions."""

    def stamped(cache: SeamCache) -> AbstractContextManager[object]:
        return stamping(weightless, kinds, cache)

    # The layers that are not traced bring their states with them when they are stamped.
    plan = replace(plan, states=tuple(shape for shape in plan.states if shape.id not in kinds.stamped_states))
    example, axes = _example(plan.states, extra_inputs, images)
    with without_stamped_weights(weightless, kinds):
        counting = _CausalLMGraph(weightless, plan, extra_inputs, images, stamped, PositionalArangeMode)
        if plan.counts_tokens:
            # The index may have no part in the result, and the mode may not get along with what is made of it.
            with suppress(Exception):
                program = trace(counting, example, axes)
                require_no_text_length(program)
                require_given_positions(program)
                return program
        program = trace(_CausalLMGraph(weightless, plan, extra_inputs, images, stamped), example, axes)
        require_no_text_length(program)
        if token_counting(program) is None:
            return program
        program = trace(counting, example, axes)
        require_given_positions(program)
        return program


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the probe runs found out about a model."""

    masks: MaskPlan
    states: tuple[StateShape, ...]
    loops: tuple[LoopSite, ...]
    #: The layers that are alike in the probe run.
    kinds: LayerKinds
    #: The model has asked for the indices of the step's tokens.
    counts_tokens: bool


class _CausalLMGraph(torch.nn.Module):
    """Wraps a weightless copy: its forward has the signature of the portable graph."""

    def __init__(
        self,
        model: PreTrainedModel,
        plan: _Plan,
        extra_inputs: tuple[str, ...],
        images: ImageInputs,
        around_layers: Callable[[SeamCache], AbstractContextManager[object]],
        arange_mode: Callable[[torch.Tensor], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self.extra_inputs = extra_inputs
        self.images = images
        self.around_layers = around_layers
        self.arange_mode = arange_mode

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        extras: list[torch.Tensor],
        states: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Returns logits ``[B, 1, V]`` (``[B, K, V]`` of a speculative target) and the new `states`."""
        # Each input has symbols of its own for its sizes; from here on they are known to be the same.
        require: Any = torch._check  # noqa: SLF001  (documented for exports, and untyped)
        require(input_ids.shape[0] == position_ids.shape[0])
        require(input_ids.shape[1] == position_ids.shape[1])
        extra = dict(zip(self.extra_inputs, extras, strict=True))
        compute_ctx, kept = extra.get("comp_ctx_lengths"), extra.get("num_logits_to_keep")
        token_lengths = None
        if (prompt_lengths := extra.get(PROMPT_LENGTHS)) is not None:
            require(input_ids.shape[0] == prompt_lengths.shape[0])
            # A token behind the prompt ends the text that it is read with.
            token_lengths = torch.maximum(prompt_lengths, position_ids + 1)
        held = {shape.id: state for shape, state in zip(self.plan.states, states, strict=True)}
        length = _slots(held) if compute_ctx is None else compute_ctx.shape[0]
        step = Step(
            position_ids=position_ids,
            kv_positions=torch.arange(length),
            batch_index=extra.get("batch_index"),
            reads_part=compute_ctx is not None,
        )
        cache = SeamCache(length, held, reads_blocks=bool(self.images.token_types), cross_layers=self.images.attending)
        images = self.images.of_step(extra, input_ids, self.model, _slots(held, CROSS))
        with (
            looping(self.model, self.plan.loops, held) as looped,
            self.around_layers(cache),
        ):
            scope = Scope(masks=self.plan.masks, step=step, memory=images.memory, token_lengths=token_lengths)
            logits = _last_logits(
                self.model,
                scope,
                input_ids,
                cache,
                kept,
                self.arange_mode(position_ids),
                images=images,
            )
        written = {**cache.states, **looped}
        return logits, *(written[shape.id] for shape in self.plan.states)


def _slots(states: Mapping[StateId, torch.Tensor], roles: Sequence[Role] = SLOTTED) -> int:
    """The context of the graph. A model without keys and values has none; one slot stands for it, which nothing reads."""
    return next((tensor.shape[2] for state, tensor in states.items() if state.role in roles), 1)


class _ProbeGraph(torch.nn.Module):
    """The same step over a cache that records states."""

    def __init__(
        self, model: PreTrainedModel, recorder: LoopRecorder, images: ImageInputs, kinds: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.model = model
        self.images = images
        #: Of the tokens; without any all are plain.
        self.kinds = kinds
        self.masks = MaskPlan()
        self.cache = SeamCache(_CTX, loops=recorder, cross_layers=images.attending)
        #: What the model counts tokens by.
        self.counts: set[PositionMode] = set()

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Returns logits ``[B, 1, V]``."""
        step = Step(position_ids=position_ids, kv_positions=torch.arange(_CTX))
        batch, tokens = input_ids.shape
        extra = {name: self.images.example(name, batch, tokens, _CTX) for name in self.images.names}
        if self.kinds:
            extra[TOKEN_TYPES] = torch.tensor([*self.kinds, *[1 - self.kinds[-1]] * (_CTX - tokens)]).expand(batch, -1)
        images = self.images.of_step(extra, input_ids, self.model)
        scope = Scope(masks=self.masks, step=step, memory=images.memory, token_lengths=position_ids + 1)
        watch = CountWatch(position_ids, found=self.counts)
        return _last_logits(self.model, scope, input_ids, self.cache, arange_mode=watch, images=images)


def _last_logits(
    model: PreTrainedModel,
    scope: Scope,
    input_ids: torch.Tensor,
    cache: Cache,
    kept_logits: torch.Tensor | None = None,
    arange_mode: AbstractContextManager[object] | None = None,
    *,
    images: ImagesOfStep = NO_IMAGES_IN_STEP,
) -> torch.Tensor:
    """One step of `scope` over `cache`; see `last_logits`."""
    position_ids = scope.given_step.position_ids

    def run() -> torch.Tensor:
        with forward_scope(scope), arange_mode or nullcontext(), images.mode:
            logits: torch.Tensor = model(
                input_ids=input_ids,
                use_cache=True,
                **{"position_ids": position_ids.clamp(min=0), **images.arguments, cache_argument(model): cache},
            ).logits
        return logits

    return last_logits(model, position_ids, run, kept_logits)


def _blocks(weightless: PreTrainedModel, images: ImageInputs) -> tuple[str, int]:
    """Which tokens see each other, one of `images.rows`, and the kind of those that do not.

    Found out by runs of steps of one kind, and of one with text between two images.
    """

    def ahead(kinds: Sequence[int]) -> torch.Tensor:
        recorder = LoopRecorder()
        graph = _ProbeGraph(weightless, recorder, images, kinds=kinds)
        graph.masks.watched = []
        with recorder.watching(weightless):
            probe(graph, _example_tokens(token_id=images.token_id))
        seen = [mask[0, 0, :, :_SEQ] for mask in graph.masks.watched if not isinstance(mask, FakeTensor)]
        if len(seen) != len(graph.masks.watched):
            raise UnsupportedModelError("its attention masks depend on more than the kinds of tokens")
        return torch.stack(seen).any(dim=0).triu(1) if seen else torch.zeros(_SEQ, _SEQ, dtype=torch.bool)

    of_kind = [bool(ahead([kind] * _SEQ).any()) for kind in (0, 1)]
    if all(of_kind):
        raise not_causal(weightless.config)
    if not any(of_kind):
        return NO_BLOCK, 0
    if of_kind[0]:
        return OF_PROMPT, 1
    return (OF_IMAGES if bool(ahead([1, 0, 1])[0, 2]) else OF_IMAGE), 0


def _unread_window(model: PreTrainedModel, masks: MaskPlan) -> str:
    """A note about a window in the config that the model's code does not read, but Transformers' cache does; else empty."""
    if any(form is None or form.window or form.chunk for form in masks.forms):
        return ""
    layers = DynamicCache(config=model.config).layers
    windows = sorted({size for layer in layers if (size := getattr(layer, "sliding_window", None))})
    if not windows:
        return ""
    text = model.config.get_text_config(decoder=True)
    field = "sliding_window" if getattr(text, "sliding_window", None) is not None else "attention_chunk_size"
    return (
        f"the config of {model.config.model_type} names a window of {windows[0]} tokens ({field}), which the code of "
        f"{type(model).__name__} does not read: here attention sees all of a text, as it does in Transformers without a cache, "
        "whereas its cache drops what is further away; if the model was trained without a window, write null"
    )


def _probe(weightless: PreTrainedModel, images: ImageInputs) -> _Plan:
    """Runs one step; returns what it needs to be traced."""
    recorder, layers = LoopRecorder(), LayerRecorder()
    graph = _ProbeGraph(weightless, recorder, images)
    with (
        recorder.watching(weightless),
        refusing_lookahead(graph.masks, weightless.config),
        layers.watching(weightless, graph.cache, graph.masks),
    ):
        logits = probe(graph, _example_tokens(token_id=images.token_id))
    graph.masks.finish_recording()
    states = graph.cache.shapes()
    if not states:
        raise UnsupportedModelError("it writes nothing to the key/value cache, so no state could be retained")
    if not graph.masks.forms and any(shape.id.role in SLOTTED for shape in states):
        raise UnsupportedModelError("it makes its attention masks by itself, from token counts instead of positions")
    asking, writing = graph.masks.attention_calls, len({shape.id.layer for shape in states if shape.id.role == "key"})
    if graph.masks.forms and asking == 0 and fall_back_to_eager(weightless):
        return _probe(weightless, images)
    if 0 < asking < writing:
        raise UnsupportedModelError(
            f"the attention of {writing - asking} of its layers bypasses the attention interface"
        )
    if logits.dim() != 3 or logits.shape[1] != 1:
        raise UnsupportedModelError(f"its logits have the shape {tuple(logits.shape)}")
    loops = _probe_loops(weightless, recorder.owners(weightless), states, images)
    counts = PositionalArangeMode in graph.counts
    return _Plan(masks=graph.masks, states=states, loops=loops, kinds=layers.kinds(), counts_tokens=counts)


def _probe_loops(
    weightless: PreTrainedModel, owners: Mapping[int, str], states: tuple[StateShape, ...], images: ImageInputs
) -> tuple[LoopSite, ...]:
    """Runs two steps of unequal length to see what the modules with recurrent states are called with."""
    if not owners:
        return ()
    names = list(owners.values())
    calls = []
    for length in (_SEQ, _SEQ + 2):
        with recorded_calls(weightless, names) as recorded:
            probe(_ProbeGraph(weightless, LoopRecorder(), images), _example_tokens(length, images.token_id))
        calls.append(recorded)
    short, long = calls
    return tuple(
        loop_site(
            name,
            # Keys and values of the layer may belong to another module.
            [shape for shape in states if shape.id.layer == layer and shape.id.role not in SLOTTED],
            short[name],
            long[name],
            _BATCH,
        )
        for layer, name in owners.items()
    )


def _check_extra_inputs(plan: _Plan, extra_inputs: tuple[str, ...]) -> None:
    asked = [name for name in extra_inputs if name in EXTRA_INPUTS]
    if asked and any(shape.id.role not in (*SLOTTED, *CROSS) for shape in plan.states):
        raise UnsupportedModelError(
            "its convolution or recurrent states have no form for continuous batching, speculative decoding and compute contexts"
        )


def _example_tokens(length: int = _SEQ, token_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.full((_BATCH, length), token_id)
    return tokens, torch.arange(length).expand(_BATCH, -1).contiguous()


def _example(
    shapes: tuple[StateShape, ...], extra_inputs: tuple[str, ...], images: ImageInputs
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments of the trace, and which of their dimensions are symbolic."""
    names = (BATCH, SEQ, CTX, FULL_BATCH, COMPUTE_CTX, KEPT_LOGITS)
    batch, seq, ctx, full_batch, compute_ctx, kept = (torch.export.Dim(name, min=1) for name in names)
    rows, row_axis = (_FULL_BATCH, full_batch) if "batch_index" in extra_inputs else (_BATCH, batch)
    encoder_ctx = torch.export.Dim(ENCODER_CTX, min=1)
    states = [shape.zeros(rows, EXAMPLE_SLOTS if shape.id.role in CROSS else _CTX) for shape in shapes]
    examples = {
        "batch_index": (torch.arange(_BATCH).unsqueeze(1), {0: batch}),
        "comp_ctx_lengths": (torch.zeros(_COMPUTE_CTX, dtype=torch.int64), {0: compute_ctx}),
        "num_logits_to_keep": (torch.zeros((_KEPT_LOGITS, 1), dtype=torch.int64), {0: kept}),
        PROMPT_LENGTHS: (torch.full((_BATCH, 1), _SEQ), {0: batch}),
    }
    dims = {BATCH: batch, SEQ: seq, CTX: ctx}
    dims |= {name: torch.export.Dim(name, min=1) for name in (VISION, ENCODER_SEQ, TILES)}
    for name in images.names:
        axes_of_input = {axis: dims[dim] for axis, dim in images.axes(name).items()}
        examples[name] = (images.example(name, _BATCH, _SEQ, _CTX), axes_of_input)
    extras = [examples[name][0] for name in extra_inputs]
    extra_axes = [examples[name][1] for name in extra_inputs]
    token_axes = {0: batch, 1: seq}
    slots: dict[Role, Any] = {**dict.fromkeys(SLOTTED, ctx), **dict.fromkeys(CROSS, encoder_ctx)}
    state_axes = [{0: row_axis, **({2: slots[role]} if (role := shape.id.role) in slots else {})} for shape in shapes]
    axes = (token_axes, token_axes, extra_axes, state_axes)
    return (*_example_tokens(token_id=images.token_id), extras, states), axes


def _name_interface(
    model: onnx_ir.Model, shapes: tuple[StateShape, ...], extra_inputs: tuple[str, ...]
) -> tuple[StateSpec, ...]:
    states = tuple(
        StateSpec(input=shape.id.name, output=f"{shape.id.name}_RetainedState", kind=shape.id.kind) for shape in shapes
    )
    rename_interface(
        model,
        inputs=["input_ids", "position_ids", *extra_inputs, *(state.input for state in states)],
        outputs=["logits", *(state.output for state in states)],
    )
    first_state = 2 + len(extra_inputs)
    number = {name: 2 + place for place, name in enumerate(extra_inputs)}
    found_in = {
        "batch_index": (FULL_BATCH, first_state),
        "comp_ctx_lengths": (COMPUTE_CTX, number.get("comp_ctx_lengths", 0)),
        "num_logits_to_keep": (KEPT_LOGITS, number.get("num_logits_to_keep", 0)),
    }
    extra_dims = {dim: (place, 0) for dim, place in (found_in[name] for name in extra_inputs if name in found_in)}
    if TILES_SEEN in number:
        cross = next(place for place, shape in enumerate(shapes) if shape.id.role in CROSS)
        extra_dims |= {
            ENCODER_SEQ: (number[VISION_EMBEDS], 1),
            TILES: (number[TILES_SEEN], 2),
            ENCODER_CTX: (first_state + cross, 2),
        }
    elif VISION_EMBEDS in number:
        extra_dims[VISION] = (number[VISION_EMBEDS], 1)
    slotted = next((number for number, shape in enumerate(shapes) if shape.id.role in SLOTTED), None)
    context = {} if slotted is None else {CTX: (first_state + slotted, 2)}
    rename_dims(model, {BATCH: (0, 0), SEQ: (0, 1), **context, **extra_dims})
    return states
