"""One example both ways: Transformers' greedy decoding of each prompt alone, and a compiled program's of all of them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np

from qeff_framework.coverage.fuzz.examples import Example, ModelConfig, Request
from qeff_framework.coverage.processes import first_line
from qeff_framework.coverage.reference import Decoded, decode_alone
from qeff_framework.errors import InputError, OptionError, QEFFError, UnsupportedModelError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from qeff_framework.runtime import CompiledRunner

#: A difference is a near tie when Transformers scores the token that the program chose within this of its own choice, in
#: standard deviations of the logits of that step.
NEAR_TIE: Final = 1e-3
#: Largest difference of a score, in the same unit, that another order of summation explains.
SCORE_TOLERANCE: Final = 1e-2
#: What differs by more is held against Transformers in float64: it is rounding as well where it is at most this many times the
#: error of Transformers' own float32. A penalty that grows exponentially magnifies rounding, an unclear choice of experts too.
ROUNDING: Final = 8.0

#: A logits processor of Transformers.
_Processor = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]

#: `refused`: the framework says why it does not do this. `no reference`: Transformers itself rejects it, or computes no finite
#: logits. `scores`: the tokens agree and the scores do not. `error`: an exception that is no refusal. `crash`: no result at all.
Verdict = Literal["equal", "near tie", "refused", "no reference", "tokens", "scores", "error", "crash"]
#: What has to be explained.
FINDINGS: Final[frozenset[Verdict]] = frozenset({"tokens", "scores", "error", "crash"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a comparison ended."""

    verdict: Verdict
    #: What differs, or the reason of a refusal.
    detail: str = ""
    #: `export`, `compile`, `load`, `generate`, or `reference`.
    stage: str = "generate"
    #: Largest difference of a score in standard deviations, where scores were compared.
    score_error: float | None = None
    #: Distance of the two choices in standard deviations, where the tokens differ.
    gap: float | None = None
    #: Largest error of Transformers' scores in float32 against its own in float64, in the same unit, where it was looked at.
    rounding: float | None = None

    @property
    def is_finding(self) -> bool:
        """Whether it has to be explained."""
        return self.verdict in FINDINGS

    def facts(self) -> dict[str, Any]:
        """What is known, as JSON values."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, "")}


def _verdict_of(error: Exception) -> Verdict:
    """A refusal is an error about what was asked for; every other one is a finding."""
    return "refused" if isinstance(error, InputError | OptionError | UnsupportedModelError) else "error"


class StageError(Exception):
    """A stage in front of `generate` failed; `outcome` says which one and how."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.detail)
        self.outcome = outcome


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        verdict: Verdict = "no reference" if name == "reference" else _verdict_of(error)
        raise StageError(Outcome(verdict=verdict, detail=first_line(error), stage=name)) from error


class TinyModel:
    """The model of a configuration, and what Transformers generates with it.

    Raises:
        StageError: Transformers rejects the configuration, or computes no finite logits with it.
    """

    #: Prompts whose tokens tell what the model is likely to generate.
    _PROBES: Final = ([16], [40, 41, 42], [100, 17, 100, 17, 60], list(range(20, 32)))
    _STEPS: Final = 12

    def __init__(self, config: ModelConfig) -> None:
        with _stage("reference"):
            self.config = config
            self.module = config.build()
            text_config: Any = self.module.config
            self.vocab_size = int(text_config.get_text_config(decoder=True).vocab_size)
            decoded = [decode_alone(self.module, probe, self._STEPS) for probe in self._PROBES]
            if not all(bool(each.logits.isfinite().all()) for each in decoded):
                raise ValueError("the logits are not finite")
        #: Tokens that the model generates, those that come often first: settings that name them have an effect.
        self.likely = _by_frequency([token for each in decoded for token in each.tokens])

    @functools.cached_property
    def double(self) -> torch.nn.Module:
        """A copy of the module in float64. Some families compute a part of it in float32 all the same."""
        return copy.deepcopy(self.module).double()

    def compile(self, sizes: Mapping[str, Any], backend: str) -> TinyProgram:
        """The loaded program.

        Raises:
            StageError: export, compile or load failed, or refused the sizes.
        """
        from qeff_framework.auto import QEFFAutoModelForCausalLM, QEFFAutoModelForSeq2SeqLM

        auto = QEFFAutoModelForSeq2SeqLM if self.config.task == "seq2seq-lm" else QEFFAutoModelForCausalLM
        with _stage("compile"):
            model = auto(self.module)
            model.compile(backend=backend, **sizes)
        with _stage("load"):
            return TinyProgram(self, sizes, model.load())


def _by_frequency(tokens: Sequence[int]) -> list[int]:
    return sorted(set(tokens), key=lambda token: (-tokens.count(token), token))


class TinyProgram:
    """A loaded program beside the model that it was made of. Use it as a context manager."""

    def __init__(self, model: TinyModel, sizes: Mapping[str, Any], runner: CompiledRunner) -> None:
        self.model = model
        self.sizes = sizes
        self.runner = runner

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.close()

    def compare(self, request: Request) -> Outcome:
        """Runs the request both ways. An exception that is no refusal is the outcome's cause, see `compare_or_raise`."""
        try:
            return self.compare_or_raise(request)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is the result)
            return Outcome(verdict="error", detail=first_line(error))

    def compare_or_raise(self, request: Request) -> Outcome:
        """As `compare`; an exception of the program that is no refusal is raised, unless Transformers raises one as well."""
        own = _Scores()
        failure: Exception | None = None
        got: list[list[int]] = []
        try:
            got = self._generate(request, own)
        except Exception as error:  # noqa: BLE001  (told apart below)
            if _verdict_of(error) == "refused":
                return Outcome(verdict="refused", detail=first_line(error))
            failure = error
        expected_scores = _Scores()
        try:
            expected = [self._expected(index, request, expected_scores) for index in range(len(request.prompts))]
        except Exception as error:  # noqa: BLE001  (code of any family; settings that Transformers rejects)
            return Outcome(verdict="no reference", detail=first_line(error), stage="reference")
        if not all(bool(each.logits.isfinite().all()) for each in expected):
            return Outcome(verdict="no reference", detail="the logits are not finite", stage="reference")
        if failure is not None:
            raise failure
        for row, (tokens, wanted) in enumerate(zip(got, expected, strict=True)):
            if tokens != wanted.tokens:
                outcome = _difference(row, tokens, wanted)
                return self._or_near_tie(outcome, row, request, tokens, wanted) if outcome.is_finding else outcome
        outcome = self._compared_scores(own, expected_scores, expected)
        by_number = outcome.is_finding and outcome.score_error is not None
        return self._or_rounding(outcome, request, own, expected) if by_number else outcome

    def _or_near_tie(
        self, outcome: Outcome, row: int, request: Request, got: Sequence[int], wanted: Decoded
    ) -> Outcome:
        """A near tie instead, where Transformers' own float32 is as unsure of the two tokens as they are apart."""
        step = _first_difference(got, wanted)
        pair = self._rough_and_precise(row, request, wanted)
        if step is None or outcome.gap is None or pair is None:
            return outcome
        both = [got[step], wanted.tokens[step]]
        rough, precise = (scores[step][both] for scores in pair)
        error = _distance(rough, precise) / float(wanted.logits[step].std())
        near = np.isfinite(error) and outcome.gap <= ROUNDING * error
        return dataclasses.replace(outcome, verdict="near tie" if near else outcome.verdict, rounding=_rounded(error))

    def _or_rounding(self, outcome: Outcome, request: Request, own: _Scores, expected: Sequence[Decoded]) -> Outcome:
        """Equal instead, where the scores are about as far from those in float64 as Transformers' own ones in float32."""
        ours = theirs = 0.0
        scale = _scale(expected)
        for row, wanted in enumerate(expected):
            pair = self._rough_and_precise(row, request, wanted)
            if pair is None:
                return outcome
            start = self._start(row, request)
            for step, (rough, precise) in enumerate(zip(*pair, strict=True)):
                found = own.by_text[(*start, *wanted.tokens[:step])]
                ours = max(ours, min(_distance(each, precise) for each in found) / scale)
                theirs = max(theirs, _distance(rough, precise) / scale)
        close = np.isfinite(theirs) and ours <= ROUNDING * theirs
        told = f"{outcome.detail}; from float64 by {ours:.1e}, where Transformers' own float32 does by {theirs:.1e}"
        verdict: Verdict = "equal" if close else "scores"
        return dataclasses.replace(outcome, verdict=verdict, detail=told, rounding=_rounded(theirs))

    def _rough_and_precise(
        self, row: int, request: Request, wanted: Decoded
    ) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] | None:
        """Transformers' scores ``[V]`` of each step of `wanted`, in float32 and in float64; `None` without a run in float64."""
        start = len(self._start(row, request))

        def force(sequence: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            chosen = scores.new_full(scores.shape, -np.inf)
            chosen[:, wanted.tokens[sequence.shape[1] - start]] = 0.0
            return chosen

        try:
            both = [_Scores(), _Scores()]
            for module, seen in zip((self.model.module, self.model.double), both, strict=True):
                self._decoded(module, row, request, [seen, force])
        except Exception:  # noqa: BLE001  (code of any family; some mix float32 with the type of their weights)
            return None
        rough, precise = ([scores for (scores,) in seen.by_text.values()] for seen in both)
        return rough, precise

    def _start(self, row: int, request: Request) -> Sequence[int]:
        """What stands in front of a row's first new token."""
        config: Any = self.model.module.config
        return [config.decoder_start_token_id] if self.model.config.task == "seq2seq-lm" else request.prompts[row]

    def _compared_scores(self, own: _Scores, other: _Scores, expected: Sequence[Decoded]) -> Outcome:
        """The scores of each text that both have seen."""
        scale = _scale(expected)
        worst, where = 0.0, ""
        for text, rows in other.by_text.items():
            found = own.by_text.get(text)
            if found is None:
                return Outcome(verdict="scores", detail=f"no processor was called behind the text {list(text)}")
            # Rows whose texts are alike so far may be told apart by what their encoders have read.
            error = max(min(_distance(each, wanted) for each in found) for wanted in rows) / scale
            if error > worst:
                worst, where = error, f" behind the text {list(text)}"
        if not other.by_text:
            return Outcome(verdict="equal")
        rounded = _rounded(worst)
        if not worst <= SCORE_TOLERANCE:
            told = f"scores differ by {worst:.1e} standard deviations{where}"
            if not np.isfinite(worst):
                told = f"one side alone removes tokens{where}"
            return Outcome(verdict="scores", detail=told, score_error=rounded)
        return Outcome(verdict="equal", score_error=rounded)

    def _limit(self, index: int, request: Request) -> int:
        """New tokens of a prompt at most, as `generate` documents it."""
        lengths = [1 if self.model.config.task == "seq2seq-lm" else len(prompt) for prompt in request.prompts]
        settings = request.settings
        if "max_new_tokens" in settings:
            return int(settings["max_new_tokens"])
        if "max_length" in settings:
            return int(settings["max_length"]) - lengths[index]
        together = self.sizes.get("full_batch_size") is None
        return int(self.sizes["ctx_len"]) - (max(lengths) if together else lengths[index])

    def _text(self, index: int, request: Request) -> Sequence[int]:
        """What Transformers reads of a row: the prompt, since it finds out what padding is, except for an encoder's ids."""
        if request.form == "left padded without mask" and self.model.config.task == "seq2seq-lm":
            return _padded_ids(request)[index]
        return request.prompts[index]

    def _expected(self, index: int, request: Request, scores: _Scores) -> Decoded:
        return self._decoded(self.model.module, index, request, [scores] if request.scores else [])

    def _decoded(
        self, module: torch.nn.Module, index: int, request: Request, processors: Sequence[_Processor]
    ) -> Decoded:
        ends = ("max_new_tokens", "max_length")
        return decode_alone(
            module,
            self._text(index, request),
            self._limit(index, request),
            settings={name: value for name, value in request.settings.items() if name not in ends},
            processors=processors,
            criteria=_criteria(request),
        )

    def _generate(self, request: Request, scores: _Scores) -> list[list[int]]:
        import transformers

        from qeff_framework.generation import TextGenerator

        defaults: dict[str, Any] = {}
        start = getattr(self.model.module.config, "decoder_start_token_id", None)
        if start is not None:
            defaults["decoder_start_token_id"] = start
        keywords: dict[str, Any] = dict(request.lookup)
        if request.place == "checkpoint":
            defaults |= request.settings
        elif request.place == "keywords":
            keywords |= request.settings
        else:
            generation_config: Any = transformers.GenerationConfig  # untyped
            keywords["generation_config"] = generation_config(**request.settings)
        generator = TextGenerator(self.runner.session, generation_defaults=defaults)
        output = generator.generate(
            _inputs(request),
            logits_processor=[scores] if request.scores else None,
            stopping_criteria=_criteria(request) or None,
            **keywords,
        )
        return [list(map(int, row)) for row in output.generated_ids]


def _inputs(request: Request) -> Any:
    if request.form == "lists":
        return [list(prompt) for prompt in request.prompts]
    inputs = {"input_ids": np.array(_padded_ids(request))}
    if request.form != "left padded without mask":
        inputs["attention_mask"] = np.array(_padded(request, [[1] * len(prompt) for prompt in request.prompts], 0))
    return inputs


def _padded_ids(request: Request) -> list[list[int]]:
    return _padded(request, request.prompts, request.pad)


def _padded(request: Request, rows: Sequence[Sequence[int]], fill: int) -> list[list[int]]:
    width = max(map(len, rows))
    padding = [[fill] * (width - len(row)) for row in rows]
    left = request.form != "right padded"
    return [[*pad, *row] if left else [*row, *pad] for pad, row in zip(padding, rows, strict=True)]


def _criteria(request: Request) -> list[Any]:
    return [_StopAt(request.stop_tokens)] if request.stop_tokens else []


class _StopAt:
    """A stopping criterion that is met by some tokens. Transformers' own one would take the place of its end of sequence."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)

    def __call__(self, input_ids: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
        import torch

        return torch.isin(input_ids[:, -1], torch.tensor(self._tokens))


def _distance(scores: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The largest difference of a score; infinite where one side alone removes a token."""
    kept = ~np.isneginf(wanted)
    if (np.isneginf(scores) == kept).any():
        return float("inf")
    return float(np.abs(scores[kept] - wanted[kept]).max(initial=0.0))


class _Scores:
    """A logits processor that changes nothing and keeps the scores ``[V]`` of each row by the row's text."""

    def __init__(self) -> None:
        self.by_text: dict[tuple[int, ...], list[NDArray[np.float32]]] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.by_text.setdefault(tuple(input_ids[0].tolist()), []).append(scores[0].float().numpy().copy())
        return scores


def _difference(row: int, got: Sequence[int], wanted: Decoded) -> Outcome:
    """The verdict on tokens that differ: a near tie by `NEAR_TIE`, or a finding."""
    step = _first_difference(got, wanted)
    if step is None:
        counts = f"{len(got)} tokens where Transformers generates {len(wanted.tokens)}"
        detail = f"prompt {row}: {counts}: {list(got)}, {wanted.tokens}"
        return Outcome(verdict="tokens", detail=detail)
    token, other = got[step], wanted.tokens[step]
    scores = wanted.scores[step]
    gap = float((scores[other] - scores[token]) / wanted.logits[step].std())
    detail = (
        f"prompt {row}, step {step}: {token} where Transformers chooses {other}, better by {gap:.1e} standard deviations: "
        f"{list(got)}, {wanted.tokens}"
    )
    return Outcome(verdict="near tie" if gap <= NEAR_TIE else "tokens", detail=detail, gap=_rounded(gap))


def _first_difference(got: Sequence[int], wanted: Decoded) -> int | None:
    """The first step whose tokens differ; `None` where one side only has more of them."""
    pairs = enumerate(zip(got, wanted.tokens, strict=False))
    return next((step for step, (token, other) in pairs if token != other), None)


def _rounded(number: float) -> float | None:
    return float(f"{number:.1e}") if np.isfinite(number) else None


def _scale(expected: Sequence[Decoded]) -> float:
    """The smallest standard deviation of a step's logits."""
    return min((float(each.logits.std(dim=-1).min()) for each in expected if len(each.logits)), default=1.0)


def replay(example: Example | Mapping[str, Any] | str, *, backend: str = "ort_sim") -> Outcome:
    """Runs one example again, in this process. A mapping or a text is JSON as `Example.to_json` writes it."""
    chosen = example if isinstance(example, Example) else Example.from_json(example)
    try:
        with TinyModel(chosen.config).compile(chosen.sizes, backend) as program:
            for request in chosen.before:
                program.compare(request)
            return Outcome(verdict="equal") if chosen.request is None else program.compare(chosen.request)
    except StageError as error:
        return error.outcome
    except QEFFError as error:
        return Outcome(verdict=_verdict_of(error), detail=first_line(error))
