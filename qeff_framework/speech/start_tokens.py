"""What the decoder of a speech model begins with, as the checkpoint's generation config says it: language, task, time stamps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qeff_framework.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SpeechFacts:
    """The part of a generation config that only speech models have. Empty for those that begin with one token."""

    #: Token by language, ``{"<|en|>": 50259}``.
    languages: Mapping[str, int] = field(default_factory=dict)
    #: Token by task, ``{"transcribe": 50359}``.
    tasks: Mapping[str, int] = field(default_factory=dict)
    #: Code by name of a language, ``{"english": "en"}``.
    language_names: Mapping[str, str] = field(default_factory=dict)
    is_multilingual: bool = True
    #: Stands behind the start tokens of an answer without time stamps; time stamps are the tokens behind it.
    no_timestamps_token_id: int | None = None
    max_initial_timestamp_index: int | None = None
    #: Pairs of position and token, ``None`` for a language that is to be detected.
    forced_decoder_ids: Sequence[Sequence[int | None]] = ()
    language: str | None = None
    task: str | None = None
    return_timestamps: bool = False
    #: Stands before what was said before, or what the caller says.
    prev_sot_token_id: int | None = None
    condition_on_prev_tokens: bool = False

    @classmethod
    def of(
        cls, generation: Mapping[str, Any], config: Mapping[str, Any], language_names: Mapping[str, str]
    ) -> SpeechFacts:
        """From ``generation_config.json`` and ``config.json``."""
        suppressed: Sequence[int] = generation.get("suppress_tokens") or ()
        previous = generation.get("prev_sot_token_id")
        if previous is None and len(suppressed) > 1:
            previous = suppressed[-2]  # as Transformers has it for older checkpoints
        forced = generation.get("forced_decoder_ids") or config.get("forced_decoder_ids") or ()
        return cls(
            languages=generation.get("lang_to_id") or {},
            tasks=generation.get("task_to_id") or {},
            language_names=language_names,
            is_multilingual=bool(generation.get("is_multilingual", True)),
            no_timestamps_token_id=generation.get("no_timestamps_token_id"),
            max_initial_timestamp_index=generation.get("max_initial_timestamp_index"),
            forced_decoder_ids=forced,
            language=generation.get("language"),
            task=generation.get("task"),
            return_timestamps=bool(generation.get("return_timestamps")),
            prev_sot_token_id=previous,
            condition_on_prev_tokens=bool(generation.get("condition_on_prev_tokens")),
        )

    @property
    def no_speech_token_id(self) -> int | None:
        """The token that stands for silence, by Transformers' rule."""
        return None if self.no_timestamps_token_id is None else self.no_timestamps_token_id - 1

    @property
    def timestamp_begin(self) -> int | None:
        """The token of the time 0."""
        return None if self.no_timestamps_token_id is None else self.no_timestamps_token_id + 1

    def language_id(self, language: str) -> int:
        """The token of a language: by name, by code, or as the token is written. Raises `InputError` for an unknown one."""
        name = language.lower()
        code = self.language_names.get(name, name)
        token = name if name in self.languages else f"<|{code}|>"
        if token not in self.languages:
            known = (
                ", ".join(sorted(text.strip("<|>") for text in self.languages))
                or "none: the checkpoint names no languages"
            )
            raise InputError(f"the model does not know the language {language!r}; it knows {known}")
        return self.languages[token]

    def task_id(self, task: str) -> int:
        """The token of a task."""
        if task not in self.tasks:
            known = ", ".join(self.tasks) or "none: the checkpoint names no tasks"
            raise InputError(f"the model does not know the task {task!r}; it knows {known}")
        return self.tasks[task]

    def check(self, language: str | None, task: str | None) -> None:
        """Raises `InputError` for a language or a task that the model does not have, before anything runs."""
        if not self.is_multilingual and (language is not None or task is not None):
            raise InputError("language and task cannot be chosen for a model of English alone; leave them out")
        asked: tuple[tuple[str, object], ...] = (("language", language), ("task", task))
        for name, value in asked:
            if not isinstance(value, str | None):
                raise InputError(
                    f"{name}={value!r} must be one text, for all clips of the call; call generate once for each {name}"
                )
        if language is not None:
            self.language_id(language)
        if task is not None:
            self.task_id(task)


@dataclass(frozen=True, kw_only=True)
class StartTokens:
    """The start of an answer, by the rules of Transformers' Whisper; a language that is `None` must be detected."""

    tokens: tuple[int | None, ...]

    @classmethod
    def of(
        cls, start: int, facts: SpeechFacts, *, language: str | None, task: str | None, timestamps: bool
    ) -> StartTokens:
        """The tokens for one clip, from `start`, the decoder's start token."""
        language = language if language is not None else facts.language
        task = task if task is not None else facts.task
        tokens: list[int | None] = [start]
        if language is None and task is None:
            tokens += _forced(facts.forced_decoder_ids)
        if language is not None:
            tokens[1:2] = [facts.language_id(language)]
        elif facts.languages and (len(tokens) < 2 or tokens[1] is None):
            tokens[1:2] = [None]
        if task is not None:
            tokens.append(facts.task_id(task))
        elif language is not None and facts.tasks and not {*facts.tasks.values()} & {*tokens}:
            tokens.append(facts.tasks["transcribe"])
        if not facts.languages:
            tokens = [token for token in tokens if token is not None]
        last = facts.no_timestamps_token_id
        if last is not None:
            if not timestamps and tokens[-1] != last:
                tokens.append(last)
            elif timestamps and tokens[-1] == last:
                tokens.pop()
        return cls(tokens=tuple(tokens))

    @property
    def needs_language(self) -> bool:
        """The language must be detected."""
        return None in self.tokens

    def with_language(self, token: int) -> list[int]:
        """The tokens with the detected language."""
        return [token if each is None else each for each in self.tokens]


def _forced(pairs: Sequence[Sequence[int | None]]) -> list[int | None]:
    """Tokens behind the start token. Raises `InputError` for pairs that leave a position out."""
    tokens: list[int | None] = []
    for expected, (position, token) in enumerate(pairs, start=1):
        if position != expected:
            raise InputError(
                f"forced_decoder_ids of the checkpoint name position {position} where {expected} should be; mend its "
                "generation_config.json"
            )
        tokens.append(token)
    return tokens
