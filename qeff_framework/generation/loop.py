"""Text generation over any `ExecutionSession`: prompts in, texts out, with the steps of `Scheduler` between them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import ExecutionError, InputError, OptionError
from qeff_framework.generation.admission import admitted_rows
from qeff_framework.generation.beams import BeamSearch, check_beams
from qeff_framework.generation.device_sampler import DeviceSampler
from qeff_framework.generation.draft_model import DraftModel
from qeff_framework.generation.drafting import drafting_of
from qeff_framework.generation.generation_config import resolve_settings
from qeff_framework.generation.grammar import grammar_of
from qeff_framework.generation.output import GenerationOutput
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.prompts import PaddingIds, Prompts, TokenizedPrompts, tokenize_prompts
from qeff_framework.generation.request import Request
from qeff_framework.generation.rows import Row, Step
from qeff_framework.generation.sampling import GreedySelector, RuledSelector, TokenSelector
from qeff_framework.generation.scheduler import Scheduler
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.generation.stopping import StopRules
from qeff_framework.generation.streaming import Printer, TextStream, TokenStreamer
from qeff_framework.images.rows import RowImages
from qeff_framework.session_use import use_of
from qeff_framework.tokenization.chat import ChatOptions
from qeff_framework.tokenization.tokenizer import TextTokenizer, as_text_tokenizer

if TYPE_CHECKING:
    from transformers import GenerationConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TextGenerator:
    """Generates text with a loaded program.

    `tokenizer` is needed for prompts and results in text form. `generation_defaults` is the content of the checkpoint's
    ``generation_config.json``. It runs one generation at a time: calls of several threads take turns.
    """

    def __init__(
        self,
        session: ExecutionSession,
        tokenizer: object | None = None,
        generation_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.session = session
        self._use = use_of(session)
        self.shape = ProgramShape.of(session.compiled)
        self.tokenizer: TextTokenizer | None = None if tokenizer is None else as_text_tokenizer(tokenizer)
        self.generation_defaults = dict(generation_defaults or {})
        self.scheduler = Scheduler(session, self.shape)
        #: The generation that owns the session's cache.
        self._owner: Request | None = None
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
        settings = resolve_settings(defaults, generation_config, warn=self.warn, **overrides)
        size = self.shape.vocab_size
        unknown = [token for token in settings.eos_token_ids if token < 0 or (size is not None and token >= size)]
        if unknown:
            self.warn(
                f"eos_token_id names {', '.join(map(str, unknown))}, which the model cannot generate"
                + (f" (it knows 0 to {size - 1})" if size is not None else "")
                + ", so that it ends no text"
            )
        if end is not None and not settings.eos_token_ids and not {"eos_token_id", "ignore_eos"} & set(overrides):
            self.warn(
                "the checkpoint's generation config names no end of sequence, so that the limits alone end a text, as in "
                f"Transformers; its tokenizer's is eos_token_id={end}"
            )
        return settings

    def warn(self, message: str) -> None:
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
        draft: ExecutionSession | None = None,
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
        tokenized = self.tokenized(prompts, settings, chat)
        printer, answers = None, settings.num_return_sequences
        if stream:
            if not isinstance(stream, bool) and not hasattr(stream, "write"):
                raise OptionError(f"generate: stream={stream!r} must be True, False or a file that is open for text")
            file = sys.stdout if stream is True else stream
            printer = Printer(self._needed_tokenizer("stream=True"), len(tokenized.ids) * answers, file)
        output = self.generate_ids(
            tokenized.ids,
            settings,
            streamer=streamer,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            on_token=on_token,
            on_step=printer.put if printer else None,
            prompt_to_adapter_mapping=prompt_to_adapter_mapping,
            draft=draft,
        )
        return output if tokenized.texts is None else replace(output, prompts=_repeated(tokenized.texts, answers))

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
        draft: ExecutionSession | None = None,
    ) -> GenerationOutput:
        """Generates for prompts of token ids of any lengths: at most `batch_size`, with continuous batching any number.

        `logits_processor` and `stopping_criteria` are Transformers' lists; they are called per row, see `ProcessedSelector`
        and `StopRules`. `streamer` is one of Transformers' streamers: it gets the prompt, then token after token, and takes
        one prompt only. `on_token` is called with the row and the token, `on_step` with the whole `Step`. `images` holds what
        belongs to the images of each prompt. `draft` is the session of a smaller program that proposes tokens, see `DraftModel`.
        """
        with self._use.turn:
            return self._generated(
                self._started(prompts, settings, logits_processor, stopping_criteria, prompt_to_adapter_mapping, draft),
                len(prompts),
                images=images,
                streamer=streamer,
                on_token=on_token,
                on_step=on_step,
            )

    def _generated(
        self,
        request: Request,
        prompts: int,
        *,
        images: Sequence[RowImages] | None,
        streamer: TokenStreamer | None,
        on_token: Callable[[int, int], None] | None,
        on_step: Callable[[Step], None] | None,
    ) -> GenerationOutput:
        """The result of `request`, which has so many prompts."""
        beams = len(request.rows) // prompts
        for row, of_row in zip(request.rows, _repeated(images or (), beams), strict=bool(images)):
            row.images = of_row
        if streamer is not None:
            if not (hasattr(streamer, "put") and hasattr(streamer, "end")):
                raise InputError(
                    f"streamer={type(streamer).__name__} has no put and end, which a streamer of Transformers has; "
                    "stream=True prints the text without one"
                )
            if beams > 1:
                raise InputError(
                    "a streamer gets tokens as they are chosen, and beam search chooses them at the end; leave it out"
                )
            _feed_prompt(streamer, request.rows)
        with closing(self._steps(request)) as steps:
            for step in steps:
                if streamer is not None:
                    streamer.put(_tensor([step.token]))
                if on_token is not None:
                    on_token(step.row, step.token)
                if on_step is not None:
                    on_step(step)
        if streamer is not None:
            streamer.end()
        return self.output(request)

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
        draft: ExecutionSession | None = None,
        **overrides: Any,
    ) -> TextStream:
        """Pieces of the text of one prompt as they are generated, see `TextStream`. The inputs are checked at once."""
        settings = self._resolved(settings, generation_config, overrides)
        tokenizer = self._needed_tokenizer("a text stream")
        tokenized = self.tokenized(prompt, settings, chat)
        _check_single(tokenized.ids, "a text stream")
        request = self._started(
            tokenized.ids, settings, logits_processor, stopping_criteria, prompt_to_adapter_mapping, draft
        )

        def finish() -> GenerationOutput:
            output = self.output(request)
            return output if tokenized.texts is None else replace(output, prompts=tokenized.texts)

        if settings.num_return_sequences > 1:
            raise InputError("a text stream has one answer; leave num_return_sequences out")
        return TextStream(self._steps(request), tokenizer, finish)

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

    def tokenized(
        self, prompts: Prompts, settings: GenerationSettings, chat: ChatOptions | None = None
    ) -> TokenizedPrompts:
        """Token ids of prompts of every form that `generate` takes."""
        tokenized = tokenize_prompts(
            prompts, self._needed_tokenizer, chat=chat, padding=self._padding_ids(settings), warn=self.warn
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
                self.warn(
                    f"prompt {number} begins with the start token {start} twice: a text that a chat template has rendered begins "
                    "with it already (tokenize it with add_special_tokens=False, or give the messages or the text as prompts)"
                )

    def _needed_tokenizer(self, purpose: str) -> TextTokenizer:
        if self.tokenizer is None:
            raise InputError(f"{purpose} needs a tokenizer; pass tokenizer=..., or give and take token ids")
        return self.tokenizer

    def request(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings | None = None,
        *,
        logits_processor: Sequence[Any] | None = None,
        stopping_criteria: Sequence[Any] | None = None,
        prompt_to_adapter_mapping: str | Sequence[str | None] | None = None,
        draft: ExecutionSession | DraftModel | None = None,
        queued: bool = False,
    ) -> Request:
        """A request for the scheduler. Checks everything that can be checked before the session is touched.

        `queued`: the prompts may wait for a place in the program, see `admitted_rows`.
        """
        settings = settings if settings is not None else self.settings()
        for name, functions in (("logits_processor", logits_processor), ("stopping_criteria", stopping_criteria)):
            if functions is not None and not isinstance(functions, Sequence):
                raise OptionError(
                    f"generate: {name} takes a list, and a {type(functions).__name__} was given; put it into one: {name}=[...]"
                )
            odd = [each for each in functions or () if not callable(each)]
            if odd:
                raise OptionError(
                    f"generate: {name} holds {odd[0]!r:.60}, which cannot be called with token ids and scores"
                )
        beams = settings.num_beams
        if beams > 1:
            has_draft = draft is not None or settings.prompt_lookup_num_tokens is not None
            check_beams(len(prompts), settings, self.shape, has_draft=has_draft)
            prompts = _repeated(prompts, beams)
            if prompt_to_adapter_mapping is not None and not isinstance(prompt_to_adapter_mapping, str):
                prompt_to_adapter_mapping = _repeated(prompt_to_adapter_mapping, beams)
        rows = admitted_rows(prompts, settings, self.shape, adapters=prompt_to_adapter_mapping, queued=queued)
        if settings.return_pdfs and not self.shape.returns_probabilities:
            raise InputError(
                "return_pdfs: the program does not return probabilities; compile with include_sampler=True, return_pdfs=True"
            )
        selector: TokenSelector = GreedySelector()
        sampler: DeviceSampler | None = None
        if self.shape.candidates is not None:
            grammar = None
            if self.shape.masked_tokens is not None:
                grammar = grammar_of(settings, self.tokenizer, self.shape.masked_tokens)
            selector = sampler = DeviceSampler(settings, rows, self.shape, logits_processor, grammar)
        elif beams == 1 and (logits_processor or settings.score_settings or settings.do_sample):
            selector = RuledSelector(
                settings,
                rows,
                logits_processor,
                vocab_size=self.shape.vocab_size,
                grammar=grammar_of(settings, self.tokenizer, self.shape.vocab_size),
            )
        rules = StopRules(settings, rows, tokenizer=self.tokenizer, criteria=stopping_criteria)
        search: BeamSearch | None = None
        if beams > 1:
            grammar = grammar_of(settings, self.tokenizer, self.shape.vocab_size)
            search = BeamSearch(settings, rows, rules, custom=logits_processor, grammar=grammar)
        return Request(
            rows=rows,
            selector=selector,
            sampler=sampler,
            beams=search,
            keeps_probabilities=settings.return_pdfs,
            rules=rules,
            drafting=drafting_of(rows, settings, self.shape, draft),
            pad=self._pad(settings),
        )

    def _started(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings | None,
        logits_processor: Sequence[Any] | None,
        stopping_criteria: Sequence[Any] | None,
        prompt_to_adapter_mapping: str | Sequence[str | None] | None,
        draft: ExecutionSession | None,
    ) -> Request:
        """The request of a new generation, which takes the session over."""
        request = self.request(
            prompts,
            settings,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            prompt_to_adapter_mapping=prompt_to_adapter_mapping,
            draft=draft,
        )
        self._owner = request
        return request

    def _pad(self, settings: GenerationSettings) -> int:
        """Any id that the embedding has: padding reaches neither the cache nor a result."""
        pad = settings.pad_token_id
        within = pad is not None and pad >= 0 and (self.shape.vocab_size is None or pad < self.shape.vocab_size)
        return pad if pad is not None and within else 0

    def _steps(self, request: Request) -> Generator[Step]:
        """Runs the program until all rows have finished; yields each token as soon as it is known."""
        scheduler = self.scheduler
        with self._use.turn:
            self._check_owner(request)
            scheduler.reset()
            scheduler.add(request)
        while True:
            # Not held while a caller has the tokens: other threads may begin a generation of their own then.
            with self._use.turn:
                self._check_owner(request)
                if not scheduler.busy:
                    return
                steps = scheduler.step()
                if request.error is not None:
                    raise request.error
            yield from steps

    def _check_owner(self, request: Request) -> None:
        if request is not self._owner:
            raise ExecutionError(
                "another generation has started on this session; its cache does not hold this text any more"
            )

    def output(self, request: Request) -> GenerationOutput:
        """The result of a request that has finished."""
        tokenizer, answers = self.tokenizer, request.answers
        probs = [np.stack(row.probabilities) for row in request.rows if request.keeps_probabilities]
        return GenerationOutput(
            probs=probs,
            batch_size=self.shape.batch_size,
            prompts=[tokenizer.decode(row.given) for row in answers] if tokenizer else [],
            prompt_lengths=[len(row.given) for row in answers],
            generated_ids=[row.generated for row in answers],
            generated_texts=[tokenizer.decode(row.generated) for row in answers] if tokenizer else [],
            finish_reasons=[row.finish_reason for row in answers if row.finish_reason is not None],
            perf_metrics=request.metrics(note=self.session.info.get("note", "")),
        )


def _repeated(items: Sequence[T], count: int) -> list[T]:
    """Each of `items` `count` times."""
    return [item for item in items for _ in range(count)]


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
