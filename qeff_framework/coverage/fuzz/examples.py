"""What one comparison consists of. All of it is JSON, so that a finding can be run again from a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from qeff_framework.contracts import Task
from qeff_framework.errors import OptionError

if TYPE_CHECKING:
    import torch

#: How the prompts are passed: lists of ids, or a padded array of them with or without its attention mask.
Form = Literal["lists", "left padded", "right padded", "left padded without mask"]
#: Where the settings stand: keywords of `generate`, its generation config, or the checkpoint's ``generation_config.json``.
Place = Literal["keywords", "generation config", "checkpoint"]

#: Sizes of the simplest program of each task; `Example.sizes` is relative to nothing, but shrinking goes towards these.
PLAIN_SIZES: Final[Mapping[Task, Mapping[str, Any]]] = {
    "causal-lm": {"prefill_seq_len": 4, "ctx_len": 32, "batch_size": 3},
    "seq2seq-lm": {"encoder_seq_len": 16, "ctx_len": 32, "batch_size": 3},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A tiny model: the family's tiny configuration with some changes, and the seed of its weights."""

    task: Task
    model_type: str
    seed: int = 0
    #: Changed fields by the mechanism that they belong to; each mechanism can be left out by itself.
    changes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """All changed fields, for `tiny_config`."""
        merged: dict[str, Any] = {}
        for fields in self.changes.values():
            for name, value in fields.items():
                nested = isinstance(value, Mapping) and name.endswith("_config")
                merged[name] = {**merged.get(name, {}), **value} if nested else value
        return merged

    def build(self) -> torch.nn.Module:
        """The model. Raises what Transformers raises for values that it rejects."""
        from qeff_framework.coverage.tiny import tiny_model

        return tiny_model(self.model_type, self.task, self.seed, self.fields)

    def without(self, mechanism: str) -> Self:
        """The model without the changes of one mechanism."""
        kept = {name: fields for name, fields in self.changes.items() if name != mechanism}
        return dataclasses.replace(self, changes=kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One call of `generate`."""

    prompts: Sequence[Sequence[int]]
    form: Form = "lists"
    #: The id that pads.
    pad: int = 0
    #: Fields of a generation config, ``max_new_tokens`` or ``max_length`` among them; without either the context is the limit.
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    place: Place = "keywords"
    #: Ids that a stopping criterion looks for.
    stop_tokens: Sequence[int] = ()
    #: Keywords of `generate` that Transformers is not given: drafts by prompt lookup, which change no token.
    lookup: Mapping[str, int] = dataclasses.field(default_factory=dict)
    #: Scores are compared as well, through a logits processor on both sides.
    scores: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One comparison: a model, the sizes that it is compiled for, and a request."""

    config: ModelConfig
    #: Keywords of `compile`.
    sizes: Mapping[str, Any]
    #: `None` where export, compile or load is what failed.
    request: Request | None = None
    #: Requests that ran in the same session before, where the outcome depends on them.
    before: Sequence[Request] = ()

    def to_json(self) -> dict[str, Any]:
        """The example as JSON values."""
        content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | str) -> Self:
        """Reads what `to_json` wrote, or its text.

        Raises:
            OptionError: it is something else.
        """
        try:
            values: Mapping[str, Any] = json.loads(content) if isinstance(content, str) else content
            request = values.get("request")
            return cls(
                config=ModelConfig(**values["config"]),
                sizes=values["sizes"],
                request=None if request is None else Request(**request),
                before=[Request(**each) for each in values.get("before", ())],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise OptionError(f"this is no example of the fuzz command: {error!r}") from error

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads the ``example`` of a finding's file, or an example alone.

        Raises:
            OptionError: the file cannot be read, or holds something else.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OptionError(f"cannot read an example from {file}: {error}") from error
        if not isinstance(content, dict):
            raise OptionError(f"cannot read an example from {file}: it holds no JSON object")
        return cls.from_json(content.get("example", content))

    def simpler(self) -> Iterator[Example]:
        """Examples of fewer parts, the simplest first: without changes, with the plain program, without one of each."""
        plain = PLAIN_SIZES[self.config.task]
        default = dataclasses.replace(self.config, changes={}, seed=0)
        candidates = [
            dataclasses.replace(self, config=default, sizes=plain),
            dataclasses.replace(self, config=default),
            dataclasses.replace(self, sizes=plain),
            dataclasses.replace(self, before=()),
            *(dataclasses.replace(self, config=self.config.without(name)) for name in self.config.changes),
            *(dataclasses.replace(self, sizes=sizes) for sizes in _simpler_sizes(self.sizes, plain)),
        ]
        yield from (candidate for candidate in candidates if candidate != self)

    def shorter(self) -> Iterator[Example]:
        """Examples whose request asks for less: for failures that end the process, where Hypothesis cannot shrink it."""
        if self.request is None:
            return
        request = self.request
        for index in range(len(request.prompts)):
            fewer = [*request.prompts[:index], *request.prompts[index + 1 :]]
            cut = [
                prompt[: (len(prompt) + 1) // 2] if i == index else prompt for i, prompt in enumerate(request.prompts)
            ]
            for prompts in (fewer, cut):
                if prompts and prompts != list(request.prompts):
                    yield self._with(prompts=prompts)
        # Without a mask, this setting alone says what padding is.
        needed = {"pad_token_id"} if request.form == "left padded without mask" else set()
        for name in sorted(request.settings.keys() - needed):
            yield self._with(settings={key: value for key, value in request.settings.items() if key != name})
        plain: Mapping[str, Any] = {
            "form": "lists",
            "place": "keywords",
            "stop_tokens": [],
            "lookup": {},
            "scores": False,
        }
        for name, value in plain.items():
            if getattr(request, name) != value:
                yield self._with(**{name: value})

    def _with(self, **values: Any) -> Example:
        assert self.request is not None  # noqa: S101  (the callers have looked)
        return dataclasses.replace(self, request=dataclasses.replace(self.request, **values))


def _simpler_sizes(sizes: Mapping[str, Any], plain: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in sizes.items():
        rest = {key: other for key, other in sizes.items() if key != name}
        if name == "full_batch_size":
            yield {**{key: other for key, other in rest.items() if key != "kv_cache_batch_size"}, "batch_size": value}
        elif name in ("comp_ctx_lengths_prefill", "comp_ctx_lengths_decode"):
            yield {key: other for key, other in rest.items() if not key.startswith("comp_ctx_lengths")}
        elif name not in plain:
            yield rest
        elif value != plain[name]:
            yield {**sizes, name: plain[name]}
