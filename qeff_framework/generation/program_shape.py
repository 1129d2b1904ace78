"""What a language model was compiled for, read from its specializations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from qeff_framework.contracts import (
    EXTRA_INPUTS,
    LORA_IDS,
    PROBABILITIES,
    PROMPT_LENGTHS,
    SAMPLER_INPUTS,
    TOKEN_BITMASKS,
    CompiledModel,
    TensorSpec,
)
from qeff_framework.errors import InputError
from qeff_framework.images.rows import IMAGE_INPUTS, IMAGE_POSITIONS, VISION_INDEX
from qeff_framework.tasks import task_spec, task_specs

_TOKENS = ("input_ids", "position_ids")
_SAMPLER = (*SAMPLER_INPUTS, TOKEN_BITMASKS)
_ENCODER_INPUTS = ("encoder_input_ids", "encoder_position_ids", "encoder_lengths")


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """The sizes of one kind of step."""

    rows: int
    #: Tokens of a row.
    width: int
    #: Logits of a row: those of its last tokens.
    kept: int = 1
    #: Numbers of cache positions that a program of this kind reads, ascending; the last one limits what it can be used for.
    contexts: tuple[int, ...]
    #: Numbers of tokens that the encoder reads, one program each, ascending; empty without an encoder.
    sources: tuple[int, ...] = ()
    #: Image tokens of a row at most; 0 in a model that reads text alone.
    vision: int = 0
    #: Tokens of the image that a step reads, of one program for images and text; 1 in a step without an image.
    image_tokens: int = 1
    #: Tiles of a row's images at most, of a decoder that attends to them beside its text.
    tiles: int = 0


@dataclass(frozen=True, kw_only=True)
class ProgramShape:
    """The programs of a language model and what they have in common."""

    #: One program for each number of prompt tokens in a step, ascending.
    prefills: tuple[StepShape, ...]
    #: One program for each number of tokens that a decode step checks, ascending; the first one is for a single token.
    decodes: tuple[StepShape, ...]
    ctx_len: int
    #: Slots of continuous batching; `None` when each row has its own cache.
    slots: int | None
    #: With slots, decode programs for a single token of fewer rows, ascending: the first so many lanes.
    fewer_rows: tuple[StepShape, ...] = ()
    #: With slots, prefill programs of several rows, which read chunks of as many prompts in one step.
    more_rows: tuple[StepShape, ...] = ()
    #: Names of the inputs beside tokens and positions.
    extra_inputs: frozenset[str]
    #: `None` when the program does not tell.
    vocab_size: int | None
    token_dtype: str
    position_dtype: str
    #: The cache of a finished prompt can serve one that begins in the same way: it holds nothing but one slot for each token, and
    #: what a slot holds depends on the tokens up to it alone.
    reusable: bool
    #: Tokens can be taken back: what the states hold behind a position has no influence on the tokens up to it.
    rewinds: bool = False
    #: A text that has grown to one of these lengths is read anew, as a prompt.
    reread_lengths: frozenset[int] = frozenset()
    #: Tokens that the program's own sampler chooses among; `None` when it returns logits.
    candidates: int | None = None
    #: Tokens that the program's own sampler takes a mask over; `None` when it takes none.
    masked_tokens: int | None = None
    #: The program's own sampler returns the probability of each token.
    returns_probabilities: bool = False
    #: Token ids that the encoder knows; `None` without an encoder or when the program does not tell.
    source_vocab_size: int | None = None
    #: Inputs that belong to images, by name; empty in a model that reads text alone.
    image_inputs: Mapping[str, TensorSpec] = field(default_factory=dict)
    #: The step of one program for images and text that reads an image; `None` where another program encodes them.
    image_step: StepShape | None = None
    #: The ids of the adapters that the program holds, by name.
    adapters: Mapping[str, int] = field(default_factory=dict)

    @property
    def prefill(self) -> StepShape:
        """The prefill program that reads most tokens at once."""
        return self.prefills[-1]

    @property
    def decode(self) -> StepShape:
        """The program for a single new token per row."""
        return self.decodes[0]

    @property
    def batch_size(self) -> int:
        """Rows that decode together."""
        return self.decode.rows

    @property
    def prefill_seq_len(self) -> int:
        """Tokens of one prefill chunk at most; 1 when the decode program does the prefill too."""
        return self.prefill.width

    @property
    def longest_prompt(self) -> int:
        """Tokens that the prefill programs can reach."""
        return self.prefill.contexts[-1]

    @property
    def has_encoder(self) -> bool:
        """The prompt is read by an encoder, and the decoder starts with a token of its own."""
        return bool(self.prefill.sources)

    @classmethod
    def of(cls, compiled: CompiledModel) -> Self:
        """Reads the sizes from the specializations. Raises `InputError` for programs that the loop cannot drive."""
        if not task_spec(compiled.task).generates_text:
            tasks = " or ".join(spec.name for spec in task_specs() if spec.generates_text)
            raise InputError(
                f"text generation needs a model of task {tasks}, this one was compiled for {compiled.task}"
            )
        if task_spec(compiled.task).is_encoder_decoder:
            return cls._of_encoder_decoder(compiled)
        of_images = (*IMAGE_INPUTS, IMAGE_POSITIONS, *compiled.metadata.get("image", ()))
        fed = _fed(compiled, (*EXTRA_INPUTS, PROMPT_LENGTHS, LORA_IDS, *of_images, *_SAMPLER))
        entries = [entry.dims for entry in compiled.specializations]
        image_step = _image_step(entries)
        entries = [dims for dims in entries if dims.get("encoder_seq_len", 1) == 1]
        ctx_len, slots = _common(entries, "ctx_len"), None
        if "batch_index" in fed:
            slots = _common(entries, "full_batch_size")
        steps = _steps(entries, ctx_len)
        most_rows = max(step.rows for step in steps)
        decodes = sorted((s for s in steps if s.width == s.kept and s.rows == most_rows), key=lambda s: s.width)
        if not decodes:
            raise InputError(
                "the program has no decode entry: none of its specializations has seq_len=1. One that reads prompts alone "
                "(prefill_only=True) is run through its session; compile another one to generate"
            )
        least_rows = min(step.rows for step in steps)
        prefills = sorted((s for s in steps if s.kept == 1 and s.rows == least_rows), key=lambda s: s.width)
        # The decode program reads a prompt where no other one does.
        prefills = [s for s in prefills if s.width > 1] or prefills
        if not prefills or least_rows != (most_rows if slots is None else 1):
            raise InputError(
                f"prefill and decode must have one batch_size and ctx_len in common, found "
                f"{sorted({(step.rows, ctx_len) for step in steps})}; with batch_index, prefill must have batch_size 1"
            )
        fewer = [s for s in steps if s.width == s.kept == 1 and s.rows < most_rows and s not in prefills]
        widths = {step.width for step in prefills}
        more = [
            s
            for s in steps
            if s.kept == 1 < s.width and least_rows < s.rows <= most_rows and s.width in widths and not s.vision
        ]
        return cls(
            prefills=tuple(prefills),
            decodes=tuple(decodes),
            ctx_len=ctx_len,
            slots=slots,
            # Rows move up for them, and what a sampler was told of a row stays with its lane.
            fewer_rows=() if slots is None or "random_numbers" in fed else tuple(sorted(fewer, key=lambda s: s.rows)),
            # A sampler is told of a row in the lane where it decodes.
            more_rows=() if slots is None or "random_numbers" in fed else tuple(sorted(more, key=lambda s: s.rows)),
            extra_inputs=frozenset(fed) - frozenset(_TOKENS),
            vocab_size=_vocab_size(compiled),
            token_dtype=fed["input_ids"].dtype,
            position_dtype=fed["position_ids"].dtype,
            # Equal tokens stand for other images, and have other keys and values with another adapter.
            reusable=not {PROMPT_LENGTHS, VISION_INDEX, LORA_IDS} & fed.keys()
            and all(state.kind in ("kv", "sampler") for state in compiled.states),
            rewinds=all(state.kind in ("kv", "adapter") for state in compiled.states),
            reread_lengths=frozenset(compiled.metadata.get("reread_lengths", ())),
            candidates=_fixed_size(fed, "random_numbers"),
            masked_tokens=_fixed_size(fed, TOKEN_BITMASKS),
            returns_probabilities=any(output.name == PROBABILITIES for output in compiled.outputs),
            image_inputs={name: fed[name] for name in of_images if name in fed},
            image_step=image_step,
            adapters=dict(compiled.metadata.get("adapters", {})) if LORA_IDS in fed else {},
        )

    @classmethod
    def _of_encoder_decoder(cls, compiled: CompiledModel) -> Self:
        fed = _fed(compiled, _ENCODER_INPUTS)
        entries = [entry.dims for entry in compiled.specializations]
        ctx_len, rows = _common(entries, "ctx_len"), _common(entries, "batch_size")
        lengths = sorted({dims.get("encoder_seq_len", 0) for dims in entries})
        if _common(entries, "seq_len") != 1 or lengths[0] != 1 or len(lengths) < 2:
            raise InputError(
                "the programs of an encoder-decoder must have seq_len=1, encoder_seq_len=1 to decode and a greater one to read "
                f"the source, found encoder_seq_len {lengths}; compile it anew"
            )
        return cls(
            prefills=(StepShape(rows=rows, width=1, contexts=(ctx_len,), sources=tuple(lengths[1:])),),
            decodes=(StepShape(rows=rows, width=1, contexts=(ctx_len,), sources=(1,)),),
            ctx_len=ctx_len,
            slots=None,
            extra_inputs=frozenset(_ENCODER_INPUTS),
            vocab_size=_vocab_size(compiled),
            token_dtype=fed["input_ids"].dtype,
            position_dtype=fed["position_ids"].dtype,
            reusable=False,
            source_vocab_size=compiled.metadata.get("source_vocab_size"),
        )


def _fed(compiled: CompiledModel, further: Collection[str]) -> dict[str, TensorSpec]:
    """What the host feeds: all inputs but the retained states."""
    states = {state.input for state in compiled.states}
    fed = {spec.name: spec for spec in compiled.inputs if spec.name not in states}
    if not set(_TOKENS) <= set(fed) or set(fed) - {*_TOKENS, *further}:
        raise InputError(
            f"the program takes the inputs {', '.join(sorted(fed))}; this loop feeds {', '.join(_TOKENS)} and, where a program "
            f"has them, {', '.join(further)}"
        )
    lacking = [name for name in SAMPLER_INPUTS if name not in fed]
    if lacking and any(name in fed for name in _SAMPLER):
        raise InputError(
            f"the program has a part of a sampler's inputs: it lacks {', '.join(lacking)}; compile it anew"
        )
    return fed


def _fixed_size(fed: Mapping[str, TensorSpec], name: str) -> int | None:
    """The last dimension of an input, `None` where the program does not have it."""
    if name not in fed:
        return None
    count = fed[name].shape[-1]
    if not isinstance(count, int):
        raise InputError(f"the program leaves the size of {name} open; compile it anew")
    return count


def _common(entries: list[Mapping[str, int]], name: str) -> int:
    values = {dims.get(name, 0) for dims in entries}
    if len(values) != 1 or 0 in values:
        raise InputError(f"all programs must have one {name} in common, found {sorted(values)}; compile the model anew")
    return values.pop()


def _steps(entries: list[Mapping[str, int]], ctx_len: int) -> list[StepShape]:
    contexts: dict[tuple[int, int, int, int, int], list[int]] = {}
    for dims in entries:
        kind = (
            dims.get("batch_size", 0),
            dims.get("seq_len", 0),
            dims.get("num_logits_to_keep", 1),
            _vision_size(dims),
            dims.get("image_tiles", 0),
        )
        contexts.setdefault(kind, []).append(dims.get("comp_ctx_lengths", ctx_len))
    return [
        StepShape(rows=rows, width=width, kept=kept, vision=vision, tiles=tiles, contexts=tuple(sorted(lengths)))
        for (rows, width, kept, vision, tiles), lengths in contexts.items()
    ]


def _vision_size(dims: Mapping[str, int]) -> int:
    """Image tokens of a row: an input of the language model's program, a state of one for images too."""
    return dims.get("vision_size", dims.get("encoder_ctx_len", 0))


def _image_step(entries: Sequence[Mapping[str, int]]) -> StepShape | None:
    """The step that reads an image and no tokens, of one program for images and text."""
    found = [dims for dims in entries if dims.get("encoder_seq_len", 1) > 1]
    if not found:
        return None
    (dims,) = found
    return StepShape(
        rows=dims["batch_size"],
        width=dims["seq_len"],
        contexts=(dims["ctx_len"],),
        vision=_vision_size(dims),
        image_tokens=dims["encoder_seq_len"],
        tiles=dims.get("image_tiles", 0),
    )


def _vocab_size(compiled: CompiledModel) -> int | None:
    for spec in compiled.outputs:
        if spec.name == "logits" and isinstance(spec.shape[-1], int):
            return spec.shape[-1]
    size = compiled.metadata.get("vocab_size")
    return size if isinstance(size, int) else None
