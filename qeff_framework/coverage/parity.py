"""A tiny model through export, compile and execute, held against what Transformers computes for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qeff_framework.coverage.families import coverage_of
from qeff_framework.coverage.processes import CheckError, message, where
from qeff_framework.coverage.reference import STEPS, GreedyReference, clear_reference, padded, reference_embedding
from qeff_framework.coverage.rounding import largest
from qeff_framework.coverage.tiny import tiny_prompts
from qeff_framework.errors import CompileError

if TYPE_CHECKING:
    import torch

    from qeff_framework.contracts import Array, CompiledModel, ExecutionSession, Task
    from qeff_framework.model import QEFFBaseModel

#: Prompts of 9 and 12 tokens, in a batch with one row to spare: chunks that are full, partly filled and empty.
PREFILL, CONTEXT, BATCH = 4, 32, 3
#: Encoders: the longer prompt fills neither length.
LENGTHS = (10, 16)
#: Largest difference of a hidden state, in standard deviations of all, that summation order explains.
HIDDEN_TOLERANCE: Final = 1e-3


def check_parity(model_type: str, *, task: Task, backend: str) -> dict[str, Any]:
    """The facts of a type whose tokens (or hidden states) through `backend` are those of Transformers.

    A causal LM decodes two prompts of unequal length in one batch, prefilled in chunks, for 16 greedy steps; an encoder-decoder
    does the same for two prompts that its encoder reads. An encoder
    embeds two texts of unequal length in one batch, by programs of two lengths. Where padding changes what Transformers itself
    computes (``facts["padding_effect"]``, in standard deviations), its result with the same padding is the reference.

    Raises:
        CheckError: they differ, or a stage failed; ``facts["stage"]`` names it. The stage ``reference`` means that
            Transformers itself could not do it.
    """
    facts: dict[str, Any] = {}
    with stage("reference", facts):
        module = coverage_of(task).model(model_type)
        facts["class"] = type(module).__name__
        return coverage_of(task).check(module, backend, facts)


def check_causal_lm(module: torch.nn.Module, backend: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Decodes prompts with a causal LM."""
    from qeff_framework.auto import QEFFAutoModelForCausalLM

    reference = clear_reference(module)
    model = QEFFAutoModelForCausalLM(module)
    _build(model, backend, facts, prefill_seq_len=PREFILL, ctx_len=CONTEXT, batch_size=BATCH)
    return _decode(model, reference, [len(prompt) - 1 for prompt in reference.prompts], facts)


def check_seq2seq_lm(module: torch.nn.Module, backend: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Decodes after an encoder has read the prompts."""
    from qeff_framework.auto import QEFFAutoModelForSeq2SeqLM

    reference = clear_reference(module)
    model = QEFFAutoModelForSeq2SeqLM(module)
    _build(model, backend, facts, encoder_seq_len=LENGTHS, ctx_len=CONTEXT, batch_size=BATCH)
    return _decode(model, reference, [0] * len(reference.prompts), facts)


def check_encoder(module: torch.nn.Module, backend: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Embeds prompts."""
    return _encoder(module, _EncoderReference.of(module, tiny_prompts()), backend, facts)


def _decode(
    model: QEFFBaseModel, reference: GreedyReference, starts: list[int], facts: dict[str, Any]
) -> dict[str, Any]:
    """Holds a compiled model's tokens against the reference; `starts`: the position of each row's first chosen token."""
    from qeff_framework.generation import SCORE_SETTINGS

    with stage("execute", facts):
        with model.load() as runner:
            runner.session = session = _Watched(runner.session)
            # The reference is decoded without the rules of the family's generation config.
            plain = dict.fromkeys(SCORE_SETTINGS)
            tokens = runner.generate(
                {"input_ids": reference.prompts, "attention_mask": [[1] * len(row) for row in reference.prompts]},
                generation_len=STEPS,
                ignore_eos=True,
                num_beams=1,
                **plain,
            ).generated_ids
        facts["logit_error"] = _logit_error(session, reference, tokens, starts)
    facts["margin"] = round(reference.margin, 5)
    for row, (got, want) in enumerate(zip(tokens, reference.tokens, strict=True)):
        if got != want:
            step = next(step for step, pair in enumerate(zip(got, want, strict=True)) if pair[0] != pair[1])
            facts["stage"] = "tokens"
            raise CheckError(
                f"prompt {row} differs from step {step} on, logits by {facts['logit_error']:.1e} up to there", facts
            )
    return facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class _EncoderReference:
    """What Transformers computes for each prompt, alone and padded to each compiled length that holds it."""

    prompts: list[list[int]]
    alone: list[torch.Tensor]
    #: By prompt and length.
    padded: dict[tuple[int, int], torch.Tensor]

    @classmethod
    def of(cls, module: torch.nn.Module, prompts: list[list[int]]) -> _EncoderReference:
        padded = {
            (row, width): reference_embedding(module, [prompt], width=width)[0]
            for row, prompt in enumerate(prompts)
            for width in LENGTHS
            if len(prompt) <= width
        }
        return cls(prompts=prompts, alone=reference_embedding(module, prompts), padded=padded)

    @property
    def padding_effect(self) -> float:
        """The largest difference that padding makes, in standard deviations; 0 where it is rounding."""
        effect = max(_difference(hidden, self.alone[row]) for (row, _), hidden in self.padded.items())
        return effect if effect > HIDDEN_TOLERANCE else 0.0

    def expected(self, row: int, width: int) -> torch.Tensor:
        """The prompt alone; with the padding of that length only if Transformers lets it take part."""
        return self.padded[row, width] if self.padding_effect else self.alone[row]


def _difference(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.std())


def _encoder(
    module: torch.nn.Module, reference: _EncoderReference, backend: str, facts: dict[str, Any]
) -> dict[str, Any]:
    import torch

    from qeff_framework.auto.feature_extraction import QEFFAutoModelForFeatureExtraction

    prompts, widest = reference.prompts, max(map(len, reference.prompts))
    if reference.padding_effect:
        facts["padding_effect"] = float(f"{reference.padding_effect:.1e}")
    model = QEFFAutoModelForFeatureExtraction(module, pooling=None)
    _build(model, backend, facts, seq_len=LENGTHS, batch_size=BATCH)
    with stage("execute", facts), model.load() as runner:
        has_mask = any(spec.name == "attention_mask" for spec in runner.compiled.inputs)

        def embedded(rows: Sequence[int], width: int) -> Any:
            given = [prompts[row] for row in rows]
            if not has_mask:  # Its program pads nothing: padding is text to it, as it is to Transformers.
                given = [padded(module, prompt, width) for prompt in given]
            return runner.generate({"input_ids": given})

        width = _length_for(widest)
        runs = [(row, width, got) for row, got in enumerate(embedded(range(len(prompts)), width))]
        runs += [
            (row, width, embedded([row], width)[0])
            for row, width in enumerate(_length_for(len(prompt)) for prompt in prompts)
        ]
    errors = [
        _difference(torch.from_numpy(got[: len(prompts[row])]), reference.expected(row, width))
        for row, width, got in runs
    ]
    error = largest(*errors)
    facts["hidden_error"] = float(f"{error:.1e}")
    if not error <= HIDDEN_TOLERANCE:
        facts["stage"] = "values"
        raise CheckError(f"hidden states differ by {error:.1e} standard deviations", facts)
    return facts


def _length_for(tokens: int) -> int:
    """The program that the runner takes for that many tokens."""
    return min(length for length in LENGTHS if length >= tokens)


def _build(model: QEFFBaseModel, backend: str, facts: dict[str, Any], **shapes: Any) -> None:
    with stage("export", facts):
        model.export()
    with stage("compile", facts):
        model.compile(backend=backend, **shapes)


def compiled_model(
    model: QEFFBaseModel, backend: str, facts: dict[str, Any], sizes: Mapping[str, Any]
) -> QEFFBaseModel:
    """The model, exported and compiled, which are one for models of several programs."""
    with stage("export", facts):
        try:
            model.compile(backend=backend, **sizes)
        except CompileError:
            with stage("compile", facts):
                raise
    return model


class _Watched:
    """A session that keeps the logits after every position."""

    def __init__(self, session: ExecutionSession) -> None:
        self._session = session
        self.compiled: CompiledModel = session.compiled
        self.info = session.info
        #: ``[V]`` by row and position.
        self.logits: dict[tuple[int, int], Array] = {}

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        outputs = self._session.run(inputs)
        for row, position in enumerate(inputs["position_ids"].max(axis=1).tolist()):
            self.logits[row, position] = outputs["logits"][row, 0].copy()
        return outputs

    def reset(self) -> None:
        self._session.reset()

    def close(self) -> None:
        self._session.close()


def _logit_error(session: _Watched, reference: GreedyReference, tokens: list[list[int]], starts: list[int]) -> float:
    """The largest difference of a logit over the steps that saw the reference's tokens.

    `starts` holds the position in each row whose logits the first token was chosen from.
    """
    worst = 0.0
    for row, (start, wanted) in enumerate(zip(starts, reference.tokens, strict=True)):
        for step in range(len(wanted)):
            if tokens[row][:step] != wanted[:step]:
                break
            got = session.logits[row, start + step]
            worst = largest(worst, float(np.abs(got - reference.logits[row][step].numpy()).max()))
    return float(f"{worst:.1e}")


@contextmanager
def stage(name: str, facts: dict[str, Any]) -> Iterator[None]:
    """Turns whatever the stage raises into the verdict that it failed there."""
    try:
        yield
    except CheckError:
        raise
    except Exception as error:
        facts["stage"] = name
        facts["where"] = where(error)
        raise CheckError(message(error), facts) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityCheck:
    """`check_parity` with its settings, for `sweep`."""

    task: Task
    backend: str

    def __call__(self, model_type: str) -> dict[str, Any]:
        """The facts of one type."""
        return check_parity(model_type, task=self.task, backend=self.backend)
