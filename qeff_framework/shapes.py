"""From what users ask for (`prefill_seq_len`, `ctx_len`, ...) to the specializations that a backend compiles.

Each task has a frozen dataclass of its own, checked like a backend's options. Names and defaults are those that users
of the Qualcomm stack know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from qeff_framework.contracts import EXTRA_INPUTS, PROBABILITIES, SAMPLER_INPUTS, TOKEN_BITMASKS, Specialization
from qeff_framework.options import option

#: Prompt tokens per prefill step where none are asked for and the context holds as many.
_PREFILL_SEQ_LEN = 32
#: Stands for a length that was not given; no length that can be given is as short.
_NOT_GIVEN = 0


@dataclass(frozen=True, kw_only=True)
class CausalLMShapes:
    """Sizes of a causal language model's programs: one for the prompt, one for each further token."""

    prefill_seq_len: int | tuple[int, ...] = option(
        _NOT_GIVEN,
        "prompt tokens per prefill step; longer prompts take several; several numbers give one prefill program each, and a step "
        "takes the one that fits what is left of the prompt; not given: 32, or ctx_len where that is less",
        minimum=1,
    )
    ctx_len: int = option(128, "positions of the KV cache: prompt and generated tokens together", minimum=2)
    batch_size: int = option(1, "prompts that are run together", minimum=1)
    full_batch_size: int | None = option(
        None, "rows of continuous batching: prompts that decode together, a finished one is replaced", minimum=1
    )
    kv_cache_batch_size: int | None = option(
        None, "KV cache slots, full_batch_size or more; the others keep what finished prompts have left", minimum=1
    )
    num_speculative_tokens: int | tuple[int, ...] | None = option(
        None, "draft tokens checked per decode step; several numbers give one decode program each"
    )
    comp_ctx_lengths_prefill: tuple[int, ...] = option(
        (), "cache positions that a prefill step reads: one prefill program for each length"
    )
    comp_ctx_lengths_decode: tuple[int, ...] = option(
        (), "cache positions that a decode step reads: one decode program for each length, the last one is ctx_len"
    )
    ccl_enabled: bool = option(
        False,
        "compute contexts of lengths that double from 4096 on, where the two lists are not given; none up to 4096",
    )
    prefill_only: bool | None = option(
        None,
        "True: the programs that read prompts and no others; False: those that decode; not given: both in one artifact",
    )
    include_sampler: bool = option(
        False, "choose tokens on the device, so that no logits travel: penalties, temperature, top-k, top-p, min-p"
    )
    include_guided_decoding: bool = option(
        False,
        "with include_sampler: the host says which tokens may be chosen, for JSON schemas, regex and banned tokens",
    )
    return_pdfs: bool = option(
        False, "with include_sampler: the program returns the probability of every token as well, as probs"
    )

    def __post_init__(self) -> None:
        """Fits the default of the prefill into the context, and refuses sizes that contradict each other."""
        if self.prefill_seq_len == _NOT_GIVEN:
            object.__setattr__(self, "prefill_seq_len", min(_PREFILL_SEQ_LEN, self.ctx_len))
        if not self.prefill_lengths or self.prefill_lengths[0] < (1 if len(self.prefill_lengths) == 1 else 2):
            raise ValueError(
                f"prefill_seq_len={self.prefill_seq_len!r} must be one number of at least 1, or several of at least 2: decode "
                "programs read one token"
            )
        if self.longest_prefill > self.ctx_len:
            raise ValueError(
                f"prefill_seq_len={self.longest_prefill} is greater than ctx_len={self.ctx_len}: a prefill step cannot hold "
                "more tokens than the KV cache; raise ctx_len or lower prefill_seq_len"
            )
        problems = [*self._continuous_batching_problems(), *self._speculation_problems(), *self._context_problems()]
        if problems:
            raise ValueError("; ".join(problems))

    def _continuous_batching_problems(self) -> Iterator[str]:
        slots, rows = self.kv_cache_batch_size, self.full_batch_size
        if rows is None:
            if slots is not None:
                yield "kv_cache_batch_size needs full_batch_size: it counts the slots of continuous batching"
            return
        if self.batch_size != 1:
            yield (
                f"batch_size={self.batch_size} and full_batch_size={rows} exclude each other: with continuous batching "
                "prompts are prefilled as rows become free; leave batch_size out"
            )
        if slots is not None and slots < rows:
            yield f"kv_cache_batch_size={slots} is less than full_batch_size={rows}: each row needs a slot of its own"

    def _speculation_problems(self) -> Iterator[str]:
        drafts = self.draft_lengths
        if self.num_speculative_tokens == () or (drafts and min(drafts) < 0):
            yield f"num_speculative_tokens={self.num_speculative_tokens!r} must be one or more numbers of at least 0"
        elif drafts and max(drafts) + 1 > self.longest_prefill:
            yield (
                f"num_speculative_tokens={max(drafts)} makes decode steps of {max(drafts) + 1} tokens: more than "
                f"prefill_seq_len={self.longest_prefill}; raise prefill_seq_len or lower num_speculative_tokens"
            )
        if drafts and self.include_sampler:
            yield (
                "include_sampler cannot be combined with num_speculative_tokens: drafts are checked by their logits, which a "
                "program with a sampler does not return"
            )
        for name in ("include_guided_decoding", "return_pdfs"):
            if getattr(self, name) and not self.include_sampler:
                yield f"{name} belongs to the sampler of a program; give include_sampler=True as well, or leave it out"
        if len(drafts) > 1 and self.has_compute_contexts:
            yield (
                "several num_speculative_tokens cannot be combined with comp_ctx_lengths: the device tells programs apart by one "
                "input that differs in all of them"
            )

    def _context_problems(self) -> Iterator[str]:
        prefill, decode = self.comp_ctx_lengths_prefill, self.comp_ctx_lengths_decode
        for name, lengths in (("comp_ctx_lengths_prefill", prefill), ("comp_ctx_lengths_decode", decode)):
            wrong = [length for length in lengths if not 1 <= length <= self.ctx_len]
            if wrong:
                yield f"{name} holds {wrong[0]}: lengths are 1 to ctx_len={self.ctx_len}"
        if bool(prefill) != bool(decode):
            given = "comp_ctx_lengths_prefill" if prefill else "comp_ctx_lengths_decode"
            yield f"{given} alone is not enough: give comp_ctx_lengths_prefill and comp_ctx_lengths_decode"
        common = sorted(set(prefill) & {*decode, self.ctx_len}) if decode else []
        if common:
            yield (
                f"comp_ctx_lengths_prefill holds {common[0]}, which is a length of the decode programs as well (they end with "
                f"ctx_len={self.ctx_len}): the device tells programs apart by this length, so choose another one, such as "
                f"{_lower_multiple(common[0], {*prefill, *decode})}"
            )
        if len(self.prefill_lengths) > 1 and self.has_compute_contexts:
            yield (
                "several prefill_seq_len cannot be combined with comp_ctx_lengths: the device tells programs apart by one input "
                "that differs in all of them"
            )
        if prefill and not common and min(prefill) < self.longest_prefill:
            yield (
                f"comp_ctx_lengths_prefill holds {min(prefill)}, less than prefill_seq_len={self.longest_prefill}: a step must "
                "read at least what it writes"
            )
        if self.ccl_enabled and not prefill and not decode:
            yield from self._automatic_context_problems()

    def _automatic_context_problems(self) -> Iterator[str]:
        automatic = self._automatic_contexts()
        if automatic.decode and not automatic.prefill and not self._is_one_program:
            yield (
                f"ccl_enabled: prefill_seq_len={self.longest_prefill} is more than every prefill length that differs from those "
                "of the decode programs; lower it, or give comp_ctx_lengths_prefill and comp_ctx_lengths_decode"
            )

    @property
    def prefill_lengths(self) -> tuple[int, ...]:
        """Prompt tokens per step of each prefill program, ascending, each once."""
        return tuple(sorted(set(_several(self.prefill_seq_len))))

    @property
    def longest_prefill(self) -> int:
        """Prompt tokens per step at most."""
        return self.prefill_lengths[-1]

    @property
    def draft_lengths(self) -> tuple[int, ...]:
        """Draft tokens per decode step, ascending, each once; empty without speculation."""
        asked = self.num_speculative_tokens
        if asked is None:
            return ()
        return (asked,) if isinstance(asked, int) else tuple(sorted(set(asked)))

    @property
    def has_compute_contexts(self) -> bool:
        """Programs for several lengths of the cache that they read."""
        return any(self._contexts)

    @property
    def _contexts(self) -> _Contexts:
        prefill, decode = self.comp_ctx_lengths_prefill, self.comp_ctx_lengths_decode
        if prefill or decode:
            return _Contexts(prefill=(*sorted({*prefill}),), decode=(*sorted({*decode, self.ctx_len}),))
        return self._automatic_contexts() if self.ccl_enabled else _Contexts(prefill=(), decode=())

    @property
    def _is_one_program(self) -> bool:
        """The decode program does the prefill too."""
        return self.prefill_lengths == (1,) and self.full_batch_size is None

    def _automatic_contexts(self) -> _Contexts:
        most = _MOST_CONTEXTS_OF_ONE_PROGRAM if self._is_one_program else _MOST_CONTEXTS
        decode = _doubling(self.ctx_len, most)
        if self._is_one_program:
            return _Contexts(prefill=(), decode=decode)
        # The device tells programs apart by this length, so no prefill program may have one of a decode program.
        lower = {_lower_multiple(length, {*decode}) for length in decode}
        prefill = tuple(sorted(length for length in lower if length >= self.longest_prefill))
        return _Contexts(prefill=prefill, decode=decode)

    def extra_inputs(self) -> tuple[str, ...]:
        """Inputs that the graph needs for these sizes, see `contracts.EXTRA_INPUTS` and `contracts.SAMPLER_INPUTS`."""
        asked = {
            "batch_index": self.full_batch_size is not None,
            "comp_ctx_lengths": self.has_compute_contexts,
            "num_logits_to_keep": self.num_speculative_tokens is not None,
        }
        sampler = SAMPLER_INPUTS if self.include_sampler else ()
        masks = (TOKEN_BITMASKS,) if self.include_guided_decoding else ()
        return (*(name for name in EXTRA_INPUTS if asked[name]), *sampler, *masks)

    def extra_outputs(self) -> tuple[str, ...]:
        """Outputs of the graph beside its own, see `contracts.ExportRequest`."""
        return (PROBABILITIES,) if self.return_pdfs else ()

    def specializations(self) -> tuple[Specialization, ...]:
        """Prefill and decode over the same cache; a single one when the prefill takes one token at a time."""
        shared = {"ctx_len": self.ctx_len}
        if self.full_batch_size is not None:
            shared["full_batch_size"] = self.kv_cache_batch_size or self.full_batch_size
        prefill: list[Specialization] = []
        for length in self.prefill_lengths:
            name = f"prefill_{length}" if len(self.prefill_lengths) > 1 else "prefill"
            prefill += self._entries(name, self.batch_size, length, shared, kept=1)
        if self.prefill_only:
            return tuple(prefill)
        rows = self.full_batch_size or self.batch_size
        decode: list[Specialization] = []
        for drafts in self.draft_lengths or (0,):
            name = f"decode_{drafts}_drafts" if len(self.draft_lengths) > 1 else "decode"
            decode += self._entries(name, rows, drafts + 1, shared, kept=drafts + 1)
        if self.prefill_only is False:
            return tuple(decode)
        known = [dict(entry.dims) for entry in decode]
        return (*(entry for entry in prefill if dict(entry.dims) not in known), *decode)

    def _entries(
        self, name: str, rows: int, seq_len: int, shared: Mapping[str, int], *, kept: int
    ) -> list[Specialization]:
        dims = {"batch_size": rows, **shared, "seq_len": seq_len}
        if self.num_speculative_tokens is not None:
            dims["num_logits_to_keep"] = kept
        if not self.has_compute_contexts:
            return [Specialization(name=name, dims=dims)]
        lengths = self._contexts.prefill if name.startswith("prefill") else self._contexts.decode
        return [
            Specialization(name=f"{name}_{length}", dims={**dims, "comp_ctx_lengths": length}) for length in lengths
        ]


@dataclass(frozen=True, kw_only=True)
class PeftShapes(CausalLMShapes):
    """Sizes of a causal language model with adapters."""

    max_loras: int | None = option(
        None, "adapters that the program has room for: they are written into it, and may come after compile", minimum=1
    )
    max_lora_rank: int | None = option(
        None, "rank of these adapters at most; not given: the greatest of those that are loaded", minimum=1
    )

    def __post_init__(self) -> None:
        """Refuses sizes that contradict each other."""
        super().__post_init__()
        if self.max_lora_rank is not None and self.max_loras is None:
            raise ValueError("max_lora_rank belongs to max_loras; give both, or leave it out")


class _Contexts(NamedTuple):
    """Cache positions that programs read, ascending; empty without compute contexts."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]


#: Automatic lengths of each kind of program at most; each is a program that must be compiled and loaded.
_MOST_CONTEXTS, _MOST_CONTEXTS_OF_ONE_PROGRAM = 5, 10
#: Contexts up to this many positions begin with this length.
_SHORTEST_CONTEXTS = ((32_768, 4096), (65_536, 8192))
_SHORTEST_OF_LONG_CONTEXTS = 16_384


def _doubling(ctx_len: int, most: int) -> tuple[int, ...]:
    """Lengths that double up to `ctx_len`; empty when a single one would be left."""
    length = next((shortest for limit, shortest in _SHORTEST_CONTEXTS if ctx_len <= limit), _SHORTEST_OF_LONG_CONTEXTS)
    lengths: list[int] = []
    while length < ctx_len and len(lengths) < most - 1:
        lengths.append(length)
        length *= 2
    return (*lengths, ctx_len) if lengths else ()


def _lower_multiple(length: int, taken: set[int], step: int = 32) -> int:
    """The next free multiple of `step` below `length`; the hardware reads the cache in blocks of that many."""
    candidates = (value for value in range((length - 1) // step * step, 0, -step) if value not in taken)
    return next(candidates, length - 1)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqLMShapes:
    """Sizes of an encoder-decoder's programs: one that reads the source for each of its lengths, one for each further token."""

    encoder_seq_len: int | tuple[int, ...] = option(
        128, "tokens of the source, which the encoder reads at once; several lengths give one program each"
    )
    ctx_len: int = option(
        128, "positions of the decoder's KV cache: its start token and generated tokens together", minimum=2
    )
    batch_size: int = option(1, "prompts that are run together", minimum=1)

    def __post_init__(self) -> None:
        """Refuses lengths that the decode program has, or none."""
        if not self.lengths or min(self.lengths) < 2:
            raise ValueError(
                f"encoder_seq_len={self.encoder_seq_len!r} must be one or more lengths of at least 2: length 1 is that of the "
                "decode program, whose encoder reads nothing"
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """The compiled lengths of the source, ascending, each once."""
        asked = self.encoder_seq_len
        return (asked,) if isinstance(asked, int) else tuple(sorted(set(asked)))

    def extra_inputs(self) -> tuple[str, ...]:
        """None: they belong to causal LMs."""
        return ()

    def specializations(self) -> tuple[Specialization, ...]:
        """One per length of the source, and one whose encoder has a single token of padding; all over the same states."""
        shared = {
            "batch_size": self.batch_size,
            "seq_len": 1,
            "ctx_len": self.ctx_len,
            "encoder_ctx_len": self.lengths[-1],
        }
        encodes = [
            Specialization(name=f"encoder_{length}", dims={**shared, "encoder_seq_len": length})
            for length in self.lengths
        ]
        return (*encodes, Specialization(name="decode", dims={**shared, "encoder_seq_len": 1}))


@dataclass(frozen=True, kw_only=True)
class EncoderShapes:
    """Sizes of an encoder's programs: one for each sequence length."""

    seq_len: int | tuple[int, ...] = option(128, "tokens per input; several lengths give one program each")
    batch_size: int = option(1, "inputs that are run together", minimum=1)

    def __post_init__(self) -> None:
        """Refuses empty or senseless lengths."""
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"seq_len={self.seq_len!r} must be one or more lengths of at least 1")

    @property
    def lengths(self) -> tuple[int, ...]:
        """The compiled lengths, ascending, each once."""
        return (self.seq_len,) if isinstance(self.seq_len, int) else tuple(sorted(set(self.seq_len)))

    def extra_inputs(self) -> tuple[str, ...]:
        """None: they belong to causal LMs."""
        return ()

    def specializations(self) -> tuple[Specialization, ...]:
        """One per length."""
        return tuple(
            Specialization(name=f"encode_{length}", dims={"batch_size": self.batch_size, "seq_len": length})
            for length in self.lengths
        )


@dataclass(frozen=True, kw_only=True)
class SoundShapes:
    """Sizes of the programs of a model that reads sound in one pass: one for each length."""

    seq_len: int | tuple[int, ...] | None = option(
        None,
        "samples of a clip, or feature frames where the processor makes such; several lengths give one program each; without it "
        "those of 10 seconds",
    )
    batch_size: int = option(1, "clips that are run together", minimum=1)

    def __post_init__(self) -> None:
        """Refuses empty or senseless lengths."""
        if self.seq_len is not None and (not self.lengths or min(self.lengths) < 1):
            raise ValueError(f"seq_len={self.seq_len!r} must be one or more lengths of at least 1")

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that were asked for, ascending, each once."""
        return tuple(sorted(set(_several(self.seq_len))))

    def extra_inputs(self) -> tuple[str, ...]:
        """None: they belong to causal LMs."""
        return ()

    def specializations(self) -> tuple[Specialization, ...]:
        """One per length; a single one for a model that takes one length only."""
        rows = {"batch_size": self.batch_size}
        if not self.lengths:
            return (Specialization(name="encode", dims=rows),)
        return tuple(
            Specialization(name=f"encode_{length}", dims={**rows, "seq_len": length}) for length in self.lengths
        )


@dataclass(frozen=True, kw_only=True)
class SpeechSeq2SeqShapes(SoundShapes):
    """Sizes of the programs of a speech model with encoder and decoder."""

    ctx_len: int = option(
        448, "positions of the decoder's KV cache: the start tokens and the text of a window together", minimum=2
    )
    encoder_ctx_len: int | None = option(
        None,
        "slots for the encoder's output that the decoder keeps; without it as many as the encoder makes frames",
        minimum=2,
    )


@dataclass(frozen=True, kw_only=True)
class ImageShapes:
    """Sizes of the program of a model that reads images in one pass."""

    img_size: int | None = option(None, "height and width of square images in pixels; without it the processor's")
    height: int | None = option(None, "height of images in pixels, with width", minimum=1)
    width: int | None = option(None, "width of images in pixels, with height", minimum=1)
    batch_size: int = option(1, "images that are run together", minimum=1)

    def __post_init__(self) -> None:
        """Refuses sizes that contradict each other."""
        if self.img_size is not None and (self.height is not None or self.width is not None):
            raise ValueError("img_size is height and width at once; leave it out, or leave height and width out")
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width belong together; give both, or img_size for square images")

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width, `None` for the processor's own."""
        if self.img_size is not None:
            return self.img_size, self.img_size
        return None if self.height is None or self.width is None else (self.height, self.width)

    def extra_inputs(self) -> tuple[str, ...]:
        """None: they belong to causal LMs."""
        return ()

    def specializations(self) -> tuple[Specialization, ...]:
        """One."""
        return (Specialization(name="encode", dims={"batch_size": self.batch_size}),)


@dataclass(frozen=True, kw_only=True)
class ImageAndTextShapes(ImageShapes):
    """Sizes of the programs of a model that embeds images and texts in one space."""

    seq_len: int | tuple[int, ...] | None = option(
        None,
        "tokens of a text; several lengths give one program each; without it as many as the model has positions for",
    )

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that were asked for, ascending, each once."""
        return tuple(sorted(set(_several(self.seq_len))))


@dataclass(frozen=True, kw_only=True)
class ImageTextShapes(CausalLMShapes):
    """Sizes of a vision-language model's programs: one for each size of image, and those of a causal language model."""

    img_size: int | tuple[int, ...] | None = option(
        None, "height and width of square images in pixels; several sizes give one image program each"
    )
    height: int | tuple[int, ...] | None = option(
        None, "height of images in pixels, with width; several sizes give one image program each"
    )
    width: int | tuple[int, ...] | None = option(None, "width of images in pixels, one for each height")
    num_frames: int | tuple[int, ...] | None = option(
        None, "frames of a video, for models that read some; several numbers give one video program each"
    )
    num_images: int = option(1, "images of one prompt at most, beside one video", minimum=1)
    skip_vision: bool = option(False, "compile the program of the language model alone")
    skip_lang: bool = option(False, "compile the programs of the images alone")

    def __post_init__(self) -> None:
        """Refuses sizes that contradict each other, as for text."""
        super().__post_init__()
        if self.skip_vision and self.skip_lang:
            raise ValueError("skip_vision and skip_lang leave no program to compile; give one of them")
        if self.img_size is not None and (self.height is not None or self.width is not None):
            raise ValueError("img_size is height and width at once; leave it out, or leave height and width out")
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width belong together; give both, or img_size for square images")
        heights, widths = _several(self.height), _several(self.width)
        if len(heights) != len(widths):
            raise ValueError(
                f"height has {len(heights)} sizes and width has {len(widths)}; give one width for each height"
            )
        named = {
            "img_size": _several(self.img_size),
            "height": heights,
            "width": widths,
            "num_frames": self.video_lengths,
        }
        for name, sizes in named.items():
            if any(size < 1 for size in sizes):
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        of_text = self.include_sampler or self.num_speculative_tokens is not None or self.prefill_only is not None
        if of_text or self.has_compute_contexts:
            raise ValueError(
                "include_sampler, num_speculative_tokens, prefill_only, comp_ctx_lengths and ccl_enabled are for models of text "
                "alone; leave them out"
            )

    @property
    def video_lengths(self) -> tuple[int, ...]:
        """Numbers of frames of the videos that are asked for."""
        return _several(self.num_frames)

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each size of image that is asked for; empty for the checkpoint's own."""
        if self.img_size is not None:
            return tuple((size, size) for size in _several(self.img_size))
        return tuple(zip(_several(self.height), _several(self.width), strict=True))

    def language_specializations(self, vision_size: int) -> tuple[Specialization, ...]:
        """Those of the language model; `vision_size` image tokens fit into the prompt of a row, and none into a decode step."""
        return tuple(
            replace(entry, dims={**entry.dims, "vision_size": 1 if entry.name.startswith("decode") else vision_size})
            for entry in self.specializations()
        )

    def joint_specializations(
        self, vision_size: int, image_tokens: int, tile_tokens: int = 0
    ) -> tuple[Specialization, ...]:
        """Those of one program for images and text: one that reads an image of `image_tokens`, then those of the language model.

        With `tile_tokens` those of a language model that attends to images beside its text.

        A device may know a step by the shape of one input, so the first has another ``seq_len`` than all others.
        """
        tiles = {"image_tiles": vision_size // tile_tokens} if tile_tokens else {}
        entries = [
            replace(entry, dims={**entry.dims, "encoder_ctx_len": vision_size, "encoder_seq_len": 1, **tiles})
            for entry in self.specializations()
        ]
        lengths = {entry.dims["seq_len"] for entry in entries}
        width = next(length for length in range(2, len(lengths) + 3) if length not in lengths)
        image = {**entries[0].dims, "seq_len": width, "encoder_seq_len": image_tokens}
        return (Specialization(name="image", dims=image), *entries)


@dataclass(frozen=True, kw_only=True)
class PipelineShapes:
    """Sizes of a diffusion pipeline's programs: those of each size of picture."""

    height: int | tuple[int, ...] | None = option(
        None, "height of pictures in pixels; not given: the pipeline's own; several sizes give programs for each"
    )
    width: int | tuple[int, ...] | None = option(None, "width of pictures in pixels, one for each height")
    batch_size: int = option(1, "prompts that are run together", minimum=1)
    guidance: bool = option(True, "compute with and without the prompt in one step: guidance_scale above 1")
    guidance_runs: int = option(
        1,
        "with guidance: runs of the denoiser in a step; 2: with and without the prompt one after the other, in programs for half "
        "of the batch, which take less memory",
        minimum=1,
    )
    num_frames: int | None = option(None, "frames of a video, for pipelines that make some", minimum=1)
    max_sequence_length: int | None = option(None, "tokens of a prompt, for pipelines that take this", minimum=1)
    enable_first_block_cache: bool = option(
        False,
        "three programs for the denoiser instead of one: in a step whose first block adds nearly what it added before, what the "
        "other blocks added is used again (cache_threshold of a call)",
    )

    max_loras: int | None = option(
        None,
        "adapters that the programs have room for: they are written into them, and may come after compile",
        minimum=1,
    )
    max_lora_rank: int | None = option(
        None, "rank of these adapters at most; not given: the greatest of those that are loaded", minimum=1
    )

    def __post_init__(self) -> None:
        """Refuses sizes that contradict each other."""
        if self.max_lora_rank is not None and self.max_loras is None:
            raise ValueError("max_lora_rank belongs to max_loras; give both, or leave it out")
        if self.guidance_runs not in (1, 2):
            raise ValueError(f"guidance_runs={self.guidance_runs} is neither 1 nor 2")
        if self.guidance_runs == 2 and (self.enable_first_block_cache or not self.guidance):
            other = "enable_first_block_cache=True" if self.enable_first_block_cache else "guidance=False"
            raise ValueError(f"guidance_runs=2 does not go with {other}; leave one of them out")
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width belong together; give both, or none for the pipeline's own size")
        small = [size for size in (*_several(self.height), *_several(self.width)) if size < 1]
        if small:
            raise ValueError(f"height and width are pixels, and {small[0]} is none; give at least 1")
        if len(_several(self.height)) != len(_several(self.width)):
            raise ValueError(
                f"height has {len(_several(self.height))} sizes and width has {len(_several(self.width))}; give one width for "
                "each height"
            )

    @property
    def image_sizes(self) -> tuple[tuple[int | None, int | None], ...]:
        """Height and width of each size that is asked for; `None` for the pipeline's own."""
        return tuple(zip(_several(self.height), _several(self.width), strict=True)) or ((None, None),)

    def extra_inputs(self) -> tuple[str, ...]:
        """None: they belong to causal LMs."""
        return ()

    def specializations(self) -> tuple[Specialization, ...]:
        """Each component has its own; see `QEFFDiffusionPipeline`."""
        return ()


def _several(sizes: int | tuple[int, ...] | None) -> tuple[int, ...]:
    if sizes is None:
        return ()
    return (sizes,) if isinstance(sizes, int) else sizes
