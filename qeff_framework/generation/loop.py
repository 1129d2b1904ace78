"""The generation loop of language models over any `ExecutionSession`.

The host's part of the contract: prompts go in as chunks of the compiled prefill length, then one token per step. Position -1
marks padding, which writes nothing to the cache; a row that has finished, or that was never used, is padding only. With a program
for continuous batching, prompts take turns in its rows, see `continuous`. With a program that returns several logits per step, a
decode step also checks drafts, see `prompt_lookup`: each token is chosen as without them, and drafts that differ are thrown away.
What they have left in the cache lies behind the text, where the mask hides it until the right tokens take its place.
With an encoder, the prompts are what it reads in the first step, and the decoder starts with a token of its own; the later steps
give the encoder padding.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import ExecutionError, InputError, OptionError
from qeff_framework.generation.admission import admitted_rows
from qeff_framework.generation.continuous import Scheduler
from qeff_framework.generation.device_sampler import DeviceSampler
from qeff_framework.generation.drafting import Drafting, drafting_of
from qeff_framework.generation.generation_config import resolve_settings
from qeff_framework.generation.output import GenerationOutput, PerfMetrics
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.prompts import PaddingIds, Prompts, TokenizedPrompts, tokenize_prompts
from qeff_framework.generation.rows import Row, Step
from qeff_framework.generation.sampling import GreedySelector, RuledSelector, TokenSelector
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.generation.step_inputs import StepInputs
from qeff_framework.generation.stopping import StopRules
from qeff_framework.generation.streaming import Printer, TextStream, TokenStreamer
from qeff_framework.images.rows import TOKEN_TYPES, RowImages
from qeff_framework.tokenization.chat import ChatOptions
from qeff_framework.tokenization.tokenizer import TextTokenizer, as_text_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import GenerationConfig

logger = logging.getLogger(__name__)


class TextGenerator:
    """Generates text with a loaded program.

    `tokenizer` is needed for prompts and results in text form. `generation_defaults` is the content of the checkpoint's
    ``generation_config.json``. Like its session, a generator is for one thread, and it runs one generation at a time.
    """

    def __init__(
        self,
        session: ExecutionSession,
        tokenizer: object | None = None,
        generation_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.session = session
        self.shape = ProgramShape.of(session.compiled)
        self.tokenizer: TextTokenizer | None = None if tokenizer is None else as_text_tokenizer(tokenizer)
        self.generation_defaults = dict(generation_defaults or {})
        self._prefill = StepInputs(self.shape, self.shape.prefill)
        self._decodes = [StepInputs(self.shape, step) for step in self.shape.decodes]
        #: Number of the generation that owns the session's cache.
        self._generation_id = 0
        self._warned: set[str] = set()

    def settings(
        self, generation_config: GenerationConfig | Mapping[str, Any] | None = None, **overrides: Any
    ) -> GenerationSettings:
        """The settings of a call, see `resolve_settings`.

        Where `generation_defaults` does not mention ``eos_token_id``, the tokenizer's ends a row; `None` there means that nothing
        does.
        """
        defaults = dict(self.generation_defaults)
        end = None if self.tokenizer is None else self.tokenizer.eos_token_id
        defaults.setdefault("eos_token_id", end)
        if self.shape.has_encoder and defaults.get("decoder_start_token_id") is None:
            defaults["decoder_start_token_id"] = defaults.get("bos_token_id")
        if not self.shape.has_encoder and "decoder_start_token_id" in overrides:
            raise OptionError("generate: decoder_start_token_id is for encoder-decoder models; leave it out")
        settings = resolve_settings(defaults, generation_config, warn=self._warn, **overrides)
        if end is not None and not settings.eos_token_ids and not {"eos_token_id", "ignore_eos"} & set(overrides):
            self._warn(
                "the checkpoint's generation config names no end of sequence, so that the limits alone end a text, as in "
                f"Transformers; its tokenizer's is eos_token_id={end}"
            )
        return settings

    def _warn(self, message: str) -> None:
        """Logs a warning, once for each generator."""
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("%s", message)

    def generate(
        self,
        prompts: Prompts,
        settings: GenerationSettings | None = None,
        *,
        stream: bool | TextIO = False,
        streamer: TokenStreamer | None = None,
        logits_processor: Sequence[Any] | None = None,
        stopping_criteria: Sequence[Any] | None = None,
        on_token: Callable[[int, int], None] | None = None,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        chat: ChatOptions | None = None,
        prompt_to_adapter_mapping: str | Sequence[str | None] | None = None,
        **overrides: Any,
    ) -> GenerationOutput:
        """Generates for texts, for conversations (lists of messages), for token ids, or for what a tokenizer returns.

        Either `settings` is given, or they are made from `generation_config` and from every argument that has no name of its
        own here: ``max_new_tokens`` (or ``generation_len``), ``do_sample``, ``eos_token_id``, ... see `resolve_settings`.
        `stream` prints the text while it is generated, to standard output or to the given file; several prompts are printed one
        after the other, each when it has finished. `chat` says how conversations are rendered. The other arguments are described
        at `generate_ids`. Raises `InputError` before any work for prompts that do not fit.
        """
        settings = self._resolved(settings, generation_config, overrides)
        tokenized = self._tokenized(prompts, settings, chat)
        printer = None
        if stream:
            file = sys.stdout if stream is True else stream
            printer = Printer(self._needed_tokenizer("stream=True"), len(tokenized.ids), file)
        output = self.generate_ids(
            tokenized.ids,
            settings,
            streamer=streamer,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            on_token=on_token,
            on_step=printer.put if printer else None,
            prompt_to_adapter_mapping=prompt_to_adapter_mapping,
        )
        return output if tokenized.texts is None else replace(output, prompts=tokenized.texts)

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings | None = None,
        *,
        streamer: TokenStreamer | None = None,
        logits_processor: Sequence[Any] | None = None,
        stopping_criteria: Sequence[Any] | None = None,
        on_token: Callable[[int, int], None] | None = None,
        on_step: Callable[[Step], None] | None = None,
        images: Sequence[RowImages] | None = None,
        prompt_to_adapter_mapping: str | Sequence[str | None] | None = None,
    ) -> GenerationOutput:
        """Generates for prompts of token ids of any lengths: at most `batch_size`, with continuous batching any number.

        `logits_processor` and `stopping_criteria` are Transformers' lists; they are called per row, see `ProcessedSelector`
        and `StopRules`. `streamer` is one of Transformers' streamers: it gets the prompt, then token after token, and takes
        one prompt only. `on_token` is called with the row and the token, `on_step` with the whole `Step`. `images` holds what
        belongs to the images of each prompt.
        """
        run = self._start(prompts, settings, logits_processor, stopping_criteria, prompt_to_adapter_mapping)
        for row, of_row in zip(run.rows, images or (), strict=bool(images)):
            row.images = of_row
        if streamer is not None:
            _feed_prompt(streamer, run.rows)
        with closing(self._steps(run)) as steps:
            for step in steps:
                if streamer is not None:
                    streamer.put(_tensor([step.token]))
                if on_token is not None:
                    on_token(step.row, step.token)
                if on_step is not None:
                    on_step(step)
        if streamer is not None:
            streamer.end()
        return self._output(run)

    def stream(
        self,
        prompt: Prompts,
        settings: GenerationSettings | None = None,
        *,
        logits_processor: Sequence[Any] | None = None,
        stopping_criteria: Sequence[Any] | None = None,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        chat: ChatOptions | None = None,
        prompt_to_adapter_mapping: str | Sequence[str | None] | None = None,
        **overrides: Any,
    ) -> TextStream:
        """Pieces of the text of one prompt as they are generated, see `TextStream`. The inputs are checked at once."""
        settings = self._resolved(settings, generation_config, overrides)
        tokenizer = self._needed_tokenizer("a text stream")
        tokenized = self._tokenized(prompt, settings, chat)
        _check_single(tokenized.ids, "a text stream")
        run = self._start(tokenized.ids, settings, logits_processor, stopping_criteria, prompt_to_adapter_mapping)

        def finish() -> GenerationOutput:
            output = self._output(run)
            return output if tokenized.texts is None else replace(output, prompts=tokenized.texts)

        return TextStream(self._steps(run), tokenizer, finish)

    def _resolved(
        self,
        settings: GenerationSettings | None,
        generation_config: GenerationConfig | Mapping[str, Any] | None,
        overrides: Mapping[str, Any],
    ) -> GenerationSettings:
        if settings is None:
            return self.settings(generation_config, **overrides)
        if generation_config is not None or overrides:
            given = ", ".join([*overrides, *(["generation_config"] if generation_config is not None else [])])
            raise OptionError(f"generate: settings are complete, {given} cannot be added; give one or the other")
        return settings

    def _tokenized(self, prompts: Prompts, settings: GenerationSettings, chat: ChatOptions | None) -> TokenizedPrompts:
        tokenized = tokenize_prompts(
            prompts, self._needed_tokenizer, chat=chat, padding=self._padding_ids(settings), warn=self._warn
        )
        if tokenized.texts is None:
            self._warn_about_two_starts(tokenized.ids)
        return tokenized

    def _padding_ids(self, settings: GenerationSettings) -> PaddingIds:
        """As Transformers: looked for in the ids of decoders, unless it ends sequences too; an encoder reads ids as they are."""
        if self.shape.has_encoder:
            return PaddingIds(suspected=settings.pad_token_id)
        if settings.padding_token_id is not None:
            return PaddingIds(hidden=settings.padding_token_id)
        ends = (*settings.eos_token_ids, *settings.ignored_eos_token_ids)
        suspected = settings.pad_token_id if settings.pad_token_id is not None else next(iter(ends), None)
        # A single prompt is not padded, and may begin with such a token.
        return PaddingIds(suspected=suspected, suspected_from=2)

    def _warn_about_two_starts(self, rows: Sequence[Sequence[int]]) -> None:
        start = self.tokenizer.bos_token_id if self.tokenizer is not None else None
        for number, row in enumerate(rows):
            if start is not None and list(row[:2]) == [start, start]:
                self._warn(
                    f"prompt {number} begins with the start token {start} twice: a text that a chat template has rendered begins "
                    "with it already (tokenize it with add_special_tokens=False, or give the messages or the text as prompts)"
                )

    def _needed_tokenizer(self, purpose: str) -> TextTokenizer:
        if self.tokenizer is None:
            raise InputError(f"{purpose} needs a tokenizer; pass tokenizer=..., or give and take token ids")
        return self.tokenizer

    def _start(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings | None,
        logits_processor: Sequence[Any] | None,
        stopping_criteria: Sequence[Any] | None,
        prompt_to_adapter_mapping: str | Sequence[str | None] | None = None,
    ) -> _Run:
        """Checks everything that can be checked before the session is touched."""
        settings = settings if settings is not None else self.settings()
        rows = admitted_rows(prompts, settings, self.shape, adapters=prompt_to_adapter_mapping)
        selector: TokenSelector = GreedySelector()
        sampler: DeviceSampler | None = None
        if self.shape.candidates is not None:
            selector = sampler = DeviceSampler(settings, rows, self.shape, logits_processor)
        elif logits_processor or settings.score_settings or settings.do_sample:
            selector = RuledSelector(settings, rows, logits_processor, vocab_size=self.shape.vocab_size)
        rules = StopRules(settings, rows, tokenizer=self.tokenizer, criteria=stopping_criteria)
        drafting = drafting_of(rows, settings, self.shape)
        self._generation_id += 1
        return _Run(
            rows=rows,
            selector=selector,
            sampler=sampler,
            rules=rules,
            drafting=drafting,
            pad=self._pad(settings),
            generation_id=self._generation_id,
        )

    def _pad(self, settings: GenerationSettings) -> int:
        """Any id that the embedding has: padding reaches neither the cache nor a result."""
        pad = settings.pad_token_id
        within = pad is not None and pad >= 0 and (self.shape.vocab_size is None or pad < self.shape.vocab_size)
        return pad if pad is not None and within else 0

    def _steps(self, run: _Run) -> Generator[Step]:
        """Runs prefill and decode; yields each token as soon as it is known."""
        self._owned(run)
        run.started = time.perf_counter()
        run.rules.begin()
        if run.sampler is not None:
            for inputs in (self._prefill, *self._decodes):
                run.sampler.configure(inputs)
        self.session.reset()
        yield from self._one_batch(run) if self.shape.slots is None else self._continuously(run, self.shape.slots)

    def _one_batch(self, run: _Run) -> Iterator[Step]:
        """All prompts together: prefill, then decode until the last row has finished."""
        active = run.rows
        yield from self._take(run, self._run_prefill(run), active)
        run.prefill_time = run.last_token - run.started
        while active := [row for row in active if not row.finished]:
            if reread := [row for row in active if self._has_to_be_reread(row)]:
                yield from self._take(run, self._run_prefill(run), reread)
                continue
            drafts = run.drafts(active, self.shape)
            logits = self._run_decode(run, active, drafts)
            yield from self._take(run, logits, active, drafts)

    def _continuously(self, run: _Run, slots: int) -> Iterator[Step]:
        """A prompt takes the place of one that has finished; one is prefilled while the others decode."""
        shape = self.shape
        reuse = shape.reusable and not (run.sampler is not None and run.sampler.needs_own_marks)
        scheduler = Scheduler(run.rows, lanes=shape.batch_size, slots=slots, reuse=reuse)
        while scheduler.busy:
            if (row := scheduler.admit()) is not None:
                started = time.perf_counter()
                logits = self._run_chunk(run, row, scheduler.slot(row.lane))
                run.prefill_time += time.perf_counter() - started
                if row.is_prefilled:
                    steps = self._take_alone(run, logits, row)
                    scheduler.filled()
                    scheduler.release()
                    yield from steps
            if scheduler.decode_now:
                for row in scheduler.decoding:
                    if self._has_to_be_reread(row):
                        yield from self._take_alone(run, self._reread(run, row, scheduler.slot(row.lane)), row)
                scheduler.release()
                if not (active := scheduler.decoding):
                    continue
                drafts = run.drafts(active, self.shape)
                logits = self._run_decode(run, active, drafts, scheduler.slot)
                steps = list(self._take(run, logits, active, drafts))
                scheduler.release()
                yield from steps

    def _owned(self, run: _Run) -> None:
        if run.generation_id != self._generation_id:
            raise ExecutionError(
                "another generation has started on this session; its cache does not hold this text any more"
            )

    def _run_prefill(self, run: _Run) -> NDArray[Any]:
        """Feeds the prompts chunk by chunk; returns the logits after the last token of each, ``[B, 1, V]``."""
        kept: NDArray[Any] | None = None
        if self.shape.has_encoder:
            self._prefill.place_sources([row.source for row in run.rows], run.pad)
            self._decodes[0].source_lengths[:] = self._prefill.source_lengths
        while filling := [row for row in run.rows if not row.is_prefilled]:
            self._prefill.clear(run.pad)
            for row in filling:
                self._place_chunk(run, row, row.lane)
            logits = self._run_step(self._prefill)
            if kept is None:
                kept = np.zeros(logits.shape, dtype=logits.dtype)
            for row in filling:
                # Later chunks of longer prompts return logits for this row too, of padding; the session may reuse its array.
                if row.is_prefilled:
                    kept[row.lane] = logits[row.lane]
        if kept is None:
            raise ExecutionError("the prefill ran no step")
        return kept

    def _run_chunk(self, run: _Run, row: Row, slot: int) -> NDArray[Any]:
        """Feeds the next chunk of one prompt into a cache slot; returns its logits, ``[1, 1, V]``."""
        self._owned(run)
        self._prefill.clear(run.pad)
        self._prefill.batch_index[0, 0] = slot
        self._place_chunk(run, row, 0)
        return self._run_step(self._prefill)

    def _has_to_be_reread(self, row: Row) -> bool:
        """Whether Transformers would read the row's text anew at this length; it then counts as a prompt of that length."""
        length = row.position + 1
        if length not in self.shape.reread_lengths or length == row.prompt_length:
            return False
        row.read_anew()
        return True

    def _reread(self, run: _Run, row: Row, slot: int) -> NDArray[Any]:
        """Feeds the whole text of a row into its cache slot again; returns the logits of its last token, ``[1, 1, V]``."""
        logits = self._run_chunk(run, row, slot)
        while not row.is_prefilled:
            logits = self._run_chunk(run, row, slot)
        return logits

    def _place_chunk(self, run: _Run, row: Row, place: int) -> None:
        start = row.prefilled
        width = self._prefill.shape.width
        if row.images is not None and TOKEN_TYPES in self.shape.image_inputs:
            width = row.images.chunk(start, width)
        tokens = row.unread(width)
        self._place_images(self._prefill, place, row, start, len(tokens))
        self._prefill.place(place, tokens, start, accepted=tokens[max(len(row.prompt) - start, 0) :])
        self._prefill.prompt_lengths[place, 0] = row.prompt_length
        self._prefill.lora_ids[place, 0] = row.adapter
        row.prefilled += len(tokens)
        if run.sampler is not None and row.is_prefilled:
            run.sampler.draw(self._prefill, place, row)

    def _place_images(self, inputs: StepInputs, place: int, row: Row, start: int, count: int) -> None:
        if inputs.images is not None and row.images is not None:
            inputs.images.place(place, row.images, start, count)

    def _run_decode(
        self,
        run: _Run,
        active: Sequence[Row],
        drafts: Sequence[Sequence[int]],
        slot_of: Callable[[int], int] | None = None,
    ) -> NDArray[Any]:
        """Feeds the last token of each row with its drafts behind it; returns ``[B, K, V]``, the last of them in the last column.

        `slot_of` tells the cache slot of a lane.
        """
        self._owned(run)
        needed = 1 + max(map(len, drafts))
        inputs = next(inputs for inputs in self._decodes if inputs.shape.width >= needed)
        inputs.clear(run.pad)
        if slot_of is not None:
            for lane in range(self.shape.batch_size):
                inputs.batch_index[lane, 0] = slot_of(lane)
        for row, drafted in zip(active, drafts, strict=True):
            tokens = [row.generated[-1], *drafted]
            inputs.place(row.lane, tokens, row.position, accepted=tokens)
            self._place_images(inputs, row.lane, row, row.position, len(tokens))
            inputs.prompt_lengths[row.lane, 0] = row.prompt_length
            inputs.lora_ids[row.lane, 0] = row.adapter
            if run.sampler is not None:
                run.sampler.draw(inputs, row.lane, row)
        run.decode_steps += 1
        return self._run_step(inputs)

    def _run_step(self, inputs: StepInputs) -> NDArray[Any]:
        """Logits of each row's last tokens, ``[B, K, V]``; of a sampler its tokens, ``[B, 1, 1]``. Valid until the next step."""
        outputs = self.session.run(inputs.feed)
        name, last = ("logits", "vocabulary") if self.shape.candidates is None else ("next_tokens", "1")
        result = outputs.get(name)
        wanted = inputs.shape.rows, inputs.shape.kept
        if result is None or result.ndim != 3 or result.shape[:2] != wanted:
            found = "none" if result is None else f"shape {result.shape}"
            raise ExecutionError(
                f"the program must return {name} [{wanted[0]}, {wanted[1]}, {last}], it returned {found} "
                f"among {', '.join(sorted(outputs))}"
            )
        return result

    def _take(
        self, run: _Run, logits: NDArray[Any], active: Sequence[Row], drafts: Sequence[Sequence[int]] | None = None
    ) -> Iterator[Step]:
        """Selects a token for every active row, and one more for each draft that was right.

        `logits` is ``[B, K, V]``; its last columns belong to the row's last token and its drafts. All rows take their tokens
        before the first one is handed out.
        """
        steps: list[Step] = []
        if drafts is None or not any(drafts):
            tokens = run.selector(logits[:, -1], active)
            steps += [run.append(row, token) for row, token in zip(active, tokens, strict=True)]
        else:
            for row, drafted in zip(active, drafts, strict=True):
                steps += _checked(run, logits, row, drafted)
        run.last_token = time.perf_counter()
        if run.first_token is None:
            run.first_token = run.last_token
        yield from steps

    def _take_alone(self, run: _Run, logits: NDArray[Any], row: Row) -> list[Step]:
        """`_take` for the logits ``[1, 1, V]`` of a prefill program with one row, whatever the row's lane is."""
        lane, row.lane = row.lane, 0
        steps = list(self._take(run, logits, [row]))
        row.lane = lane
        return steps

    def _output(self, run: _Run) -> GenerationOutput:
        tokenizer = self.tokenizer
        return GenerationOutput(
            batch_size=self.shape.batch_size,
            prompts=[tokenizer.decode(row.given) for row in run.rows] if tokenizer else [],
            prompt_lengths=[len(row.given) for row in run.rows],
            generated_ids=[row.generated for row in run.rows],
            generated_texts=[tokenizer.decode(row.generated) for row in run.rows] if tokenizer else [],
            finish_reasons=[row.finish_reason for row in run.rows if row.finish_reason is not None],
            perf_metrics=_metrics(run, note=self.session.info.get("note", "")),
        )


@dataclass(kw_only=True)
class _Run:
    """One generation in progress."""

    rows: list[Row]
    selector: TokenSelector
    rules: StopRules
    pad: int
    generation_id: int
    sampler: DeviceSampler | None
    drafting: Drafting | None
    started: float = 0.0
    first_token: float | None = None
    last_token: float = 0.0
    prefill_time: float = 0.0
    decode_steps: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0

    def drafts(self, active: Sequence[Row], shape: ProgramShape) -> list[list[int]]:
        """The draft tokens that the next step checks for each row."""
        if self.drafting is None:
            return [[] for _ in active]
        drafts = self.drafting.drafts(active, shape)
        self.drafts_proposed += sum(map(len, drafts))
        return drafts

    def append(self, row: Row, token: int) -> Step:
        """Gives a row its next token, and says whether that was the last one."""
        row.generated.append(token)
        if self.drafting is not None:
            self.drafting.lookups[row.index].append(token)
        row.finish_reason = self.rules.reason(row, token)
        if row.finished:
            self.selector.forget(row)
            self.rules.forget(row)
        return Step(row.index, token, row.finish_reason)


def _checked(run: _Run, logits: NDArray[Any], row: Row, drafted: Sequence[int]) -> Iterator[Step]:
    """The row's next token, and those behind it as long as the drafts are what is chosen."""
    first = logits.shape[1] - 1 - len(drafted)
    for number in range(len(drafted) + 1):
        (token,) = run.selector(logits[:, first + number], [row])
        was_right = number < len(drafted) and token == drafted[number]
        yield run.append(row, token)
        if row.finished or not was_right:
            return
        run.drafts_accepted += 1


def _check_single(prompts: Sequence[object], what: str) -> None:
    if len(prompts) != 1:
        raise InputError(
            f"{what} takes one prompt, {len(prompts)} were given; use on_token, or call generate for each prompt"
        )


def _feed_prompt(streamer: TokenStreamer, rows: Sequence[Row]) -> None:
    _check_single(rows, "a streamer")
    streamer.put(_tensor([list(rows[0].prompt)]))


def _tensor(values: list[Any]) -> object:
    import torch

    return torch.tensor(values)


def _metrics(run: _Run, *, note: str) -> PerfMetrics:
    first = run.first_token if run.first_token is not None else run.started
    total = run.last_token - run.started
    decoding = total - run.prefill_time
    tokens = sum(len(row.generated) for row in run.rows)
    decoded = tokens - len(run.rows)
    return PerfMetrics(
        prefill_time=run.prefill_time,
        decode_perf=decoded / decoding if decoding > 0 else 0.0,
        total_perf=tokens / total if total > 0 else 0.0,
        total_time=total,
        decode_steps=run.decode_steps,
        time_to_first_token=first - run.started,
        note=note,
        drafts_proposed=run.drafts_proposed,
        drafts_accepted=run.drafts_accepted,
    )
