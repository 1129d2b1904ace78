"""Tokens and embeddings of tiny models, against PyTorch in eager mode. Torch is imported by the checks alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.options import LayerWindowOptions
from qeff_framework.testing.checks import BrokenPromiseError, check, require
from qeff_framework.testing.comparing import require_close

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from qeff_framework.coverage.reference import GreedyReference
    from qeff_framework.model import QEFFBaseModel
    from qeff_framework.testing.subject import Subject

#: New tokens of each prompt.
_STEPS: Final = 8
#: Prompts of 9 and 12 tokens, in chunks that are full, partly filled and empty; the context holds them and the new tokens.
_SIZES: Final[Mapping[str, Any]] = {"prefill_seq_len": 4, "ctx_len": 24, "batch_size": 2}
#: Lengths of an encoder: the shorter one holds one of the prompts.
_LENGTHS: Final = (10, 16)
#: Choices between logits that are closer than this, in standard deviations, may fall otherwise, by precision.
_NEAR_TIE: Final = {"float32": 0.0, "float16": 0.2, "int8": 0.5}
#: Largest difference of hidden states, in standard deviations, by precision.
_HIDDEN: Final = {"float32": 1e-3, "float16": 5e-2, "int8": 3e-1}

#: Kinds of causal LMs, and a type of Transformers that is of that kind.
KINDS: Final[Mapping[str, str]] = {
    "dense": "llama",
    "window and softcap": "gemma2",
    "experts": "mixtral",
    "sinks": "gpt_oss",
    "position bias": "bloom",
    "recurrent": "mamba",
    "hybrid": "falcon_h1",
}
_PLAIN: Final = "llama"
_PENALTY: Final = 1.8
#: Two layers of each model are enough: one of each kind where a family has two.
_ALTERNATING: Final[Mapping[str, Any]] = {
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}
_CHANGES: Final[Mapping[str, Mapping[str, Any]]] = {
    "gemma2": _ALTERNATING,
    "gpt_oss": _ALTERNATING,
    "bloom": {"n_layer": 2},
    "t5": {"num_layers": 2, "num_decoder_layers": 2},
}
_FEW_LAYERS: Final[Mapping[str, Any]] = {"num_hidden_layers": 2}


@functools.cache
def _module(model_type: str, task: str) -> Any:
    from qeff_framework.coverage.tiny import tiny_model

    return tiny_model(model_type, task, changes=_CHANGES.get(model_type, _FEW_LAYERS))


@functools.cache
def _reference(model_type: str, task: str) -> GreedyReference:
    """What Transformers generates, each prompt alone."""
    from qeff_framework.coverage.reference import clear_reference

    return clear_reference(_module(model_type, task), _STEPS)


@functools.cache
def _penalised(model_type: str) -> list[list[int]]:
    """What Transformers generates with a repetition penalty."""
    from qeff_framework.coverage.reference import decode_alone

    prompts, settings = _reference(model_type, "causal-lm").prompts, {"repetition_penalty": _PENALTY}
    module = _module(model_type, "causal-lm")
    return [decode_alone(module, prompt, _STEPS, settings=settings).tokens for prompt in prompts]


def _compiled(subject: Subject, model: QEFFBaseModel, **sizes: Any) -> QEFFBaseModel:
    """The model, compiled by the backend with the artifact store in the workspace."""
    with subject.store(), subject.available("compile"):
        model.compile(backend=subject.asked, **{**subject.settings.options, **sizes})
    return model


def _generated(
    subject: Subject, model: QEFFBaseModel, prompts: Sequence[Sequence[int]], **settings: Any
) -> list[list[int]]:
    """New tokens of each prompt: greedy, without the rules of the family's generation config."""
    from qeff_framework.generation import SCORE_SETTINGS

    asked = {"generation_len": _STEPS, "ignore_eos": True, **dict.fromkeys(SCORE_SETTINGS), **settings}
    inputs = {"input_ids": [*prompts], "attention_mask": [[1] * len(row) for row in prompts]}
    with subject.store(), subject.available("execute"), model.load(**subject.settings.runtime_options) as runner:
        tokens: list[list[int]] = runner.generate(inputs, **asked).generated_ids
    return tokens


def _require_tokens(subject: Subject, tokens: list[list[int]], reference: GreedyReference, what: str) -> None:
    """The tokens must be those of the reference, up to a choice that the precision leaves open."""
    compared = 0
    for row, (got, want) in enumerate(zip(tokens, reference.tokens, strict=True)):
        differing = [step for step, pair in enumerate(zip(got, want, strict=True)) if pair[0] != pair[1]]
        compared += differing[0] if differing else len(want)
        if not differing:
            continue
        logits = reference.logits[row][differing[0]]
        best = logits.topk(2).values
        margin = float((best[0] - best[1]) / logits.std())
        require(
            margin < _NEAR_TIE[subject.settings.precision],
            f"{what}: prompt {row} gives {got}, Transformers {want}; they differ from new token {differing[0]} on, a choice by "
            f"{margin:.2f} standard deviations of the logits",
        )
    least = len(reference.tokens) * _STEPS // 2
    require(compared >= least, f"{what}: near ties leave only {compared} tokens to compare")


def _causal_lm(subject: Subject, model_type: str) -> QEFFBaseModel:
    from qeff_framework.auto import QEFFAutoModelForCausalLM

    subject.need("causal-lm" in subject.capabilities.tasks, "task 'causal-lm'")
    return QEFFAutoModelForCausalLM(_module(model_type, "causal-lm"))


@check("generation", cases=(*KINDS,))
def check_causal_lm(subject: Subject, kind: str) -> None:
    """Two prompts of unequal length, read in chunks, generate the tokens of Transformers."""
    model = _compiled(subject, _causal_lm(subject, KINDS[kind]), **_SIZES)
    reference = _reference(KINDS[kind], "causal-lm")
    _require_tokens(subject, _generated(subject, model, reference.prompts), reference, kind)


@check("generation")
def check_prefill_of_one_token(subject: Subject) -> None:
    """A program whose only step takes one token generates the same."""
    model = _compiled(subject, _causal_lm(subject, _PLAIN), **{**_SIZES, "prefill_seq_len": 1})
    reference = _reference(_PLAIN, "causal-lm")
    _require_tokens(subject, _generated(subject, model, reference.prompts), reference, "prefill_seq_len=1")


@check("generation")
def check_continuous_batching(subject: Subject) -> None:
    """More prompts than rows, each joining when another has ended, generate what each generates alone."""
    subject.need(subject.capabilities.continuous_batching, "continuous_batching")
    reference = _reference(_PLAIN, "causal-lm")
    sizes = {**_SIZES, "batch_size": 1, "full_batch_size": 2, "kv_cache_batch_size": 3}
    model = _compiled(subject, _causal_lm(subject, _PLAIN), **sizes)
    tokens = _generated(subject, model, [*reference.prompts, *reversed(reference.prompts), reference.prompts[0]])
    for first, second, order in ((0, 1, (0, 1)), (2, 3, (1, 0))):
        pair = [tokens[first], tokens[second]]
        ordered = [pair[place] for place in order]
        _require_tokens(subject, ordered, reference, f"continuous batching, prompts {first} and {second}")
    require(tokens[4] == tokens[0], "continuous batching: the same prompt generates something else later")


@check("generation")
def check_speculative_decoding(subject: Subject) -> None:
    """Drafts, right and wrong ones, change no token."""
    subject.need(subject.capabilities.speculative_decoding, "speculative_decoding")
    reference = _reference(_PLAIN, "causal-lm")
    model = _compiled(subject, _causal_lm(subject, _PLAIN), **_SIZES, num_speculative_tokens=3)
    plain = _generated(subject, model, reference.prompts)
    _require_tokens(subject, plain, reference, "a speculative target without drafts")
    drafted = _generated(subject, model, reference.prompts, prompt_lookup_num_tokens=3)
    _require_tokens(subject, drafted, reference, "with drafts")


@check("generation")
def check_compute_contexts(subject: Subject) -> None:
    """Steps that read a part of the cache generate the same tokens."""
    subject.need(subject.capabilities.compute_contexts, "compute_contexts")
    reference = _reference(_PLAIN, "causal-lm")
    contexts = {"comp_ctx_lengths_prefill": (8, 16), "comp_ctx_lengths_decode": (12, 24)}
    model = _compiled(subject, _causal_lm(subject, _PLAIN), **_SIZES, **contexts)
    _require_tokens(subject, _generated(subject, model, reference.prompts), reference, "compute contexts")


@check("generation")
def check_windows_of_layers(subject: Subject) -> None:
    """A program for each layer, of which one hands on to the next, generate the tokens of one program."""
    subject.need(issubclass(subject.backend.options, LayerWindowOptions), "num_layers_per_program")
    subject.need_accepted(num_layers_per_program=1)
    reference = _reference(_PLAIN, "causal-lm")
    model = _compiled(subject, _causal_lm(subject, _PLAIN), **_SIZES, num_layers_per_program=1)
    _require_tokens(subject, _generated(subject, model, reference.prompts), reference, "a program for each layer")


@check("generation")
def check_on_device_sampling(subject: Subject) -> None:
    """A sampler on the device takes the most likely token where it is asked to, and repeats its samples with a seed."""
    subject.need(subject.capabilities.on_device_sampling, "on_device_sampling")
    reference = _reference(_PLAIN, "causal-lm")
    model = _compiled(subject, _causal_lm(subject, _PLAIN), **_SIZES, include_sampler=True)
    _require_tokens(subject, _generated(subject, model, reference.prompts), reference, "sampler, greedy")
    sampling = {"do_sample": True, "temperature": 1.5, "top_k": 20, "top_p": 0.95}
    first, again, other = (_generated(subject, model, reference.prompts, **sampling, seed=seed) for seed in (1, 1, 2))
    require(first == again, "the same seed gives other samples")
    require(first != other, "another seed gives the same samples")
    penalised = _generated(subject, model, reference.prompts, repetition_penalty=_PENALTY)
    if subject.settings.precision == "float32":
        expected = _penalised(_PLAIN)
        require(penalised == expected, f"with a repetition penalty: {penalised}, Transformers {expected}")


@check("generation")
def check_encoder_decoder(subject: Subject) -> None:
    """An encoder-decoder generates the tokens of Transformers for sources of unequal length."""
    from qeff_framework.auto import QEFFAutoModelForSeq2SeqLM

    subject.need("seq2seq-lm" in subject.capabilities.tasks, "task 'seq2seq-lm'")
    reference = _reference("t5", "seq2seq-lm")
    model = QEFFAutoModelForSeq2SeqLM(_module("t5", "seq2seq-lm"))
    _compiled(subject, model, encoder_seq_len=_LENGTHS, ctx_len=_STEPS + 1, batch_size=2)
    _require_tokens(subject, _generated(subject, model, reference.prompts), reference, "encoder-decoder")


# --- encoders and their heads -----------------------------------------------------------------------------------------


@functools.cache
def _head(task: str) -> Any:
    """A tiny encoder with the head of `task`."""
    import torch
    import transformers

    from qeff_framework.coverage.tiny import tiny_config
    from qeff_framework.coverage.weights import randomise

    classes = {
        "sequence-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
        "question-answering": "AutoModelForQuestionAnswering",
    }
    config = tiny_config("bert", "encoder", {**_FEW_LAYERS, "num_labels": 2})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: torch.nn.Module = getattr(transformers, classes[task]).from_config(config, attn_implementation="eager")
        randomise(model)
    return model.float().eval()


def _prompts() -> list[list[int]]:
    from qeff_framework.coverage.tiny import tiny_prompts

    return tiny_prompts()


def _alone(module: Any, prompt: Sequence[int]) -> Any:
    """What Transformers computes for one text."""
    import torch

    ids = torch.tensor([[*prompt]])
    with torch.no_grad():
        return module(input_ids=ids, attention_mask=torch.ones_like(ids))


def _single_pass(subject: Subject, model: QEFFBaseModel) -> Any:
    """What a program of two lengths makes of both prompts at once."""
    _compiled(subject, model, seq_len=_LENGTHS, batch_size=2)
    with subject.store(), subject.available("execute"), model.load(**subject.settings.runtime_options) as runner:
        return runner.generate({"input_ids": _prompts()})


def _require_hidden(subject: Subject, got: NDArray[Any], expected: NDArray[Any], what: str) -> None:
    import numpy as np

    got = got[: len(expected)] if got.shape != expected.shape and got.ndim == expected.ndim else got
    if got.shape != expected.shape:
        require_close(subject, got, expected, what)
    worst = float(np.abs(got - expected).max() / expected.std())
    if not worst <= _HIDDEN[subject.settings.precision]:
        raise BrokenPromiseError(f"{what} differs from Transformers by {worst:.1e} standard deviations")


@check("generation")
def check_encoder(subject: Subject) -> None:
    """An encoder embeds two texts of unequal length as Transformers embeds each alone."""
    from qeff_framework.auto import QEFFAutoModelForFeatureExtraction

    subject.need("encoder" in subject.capabilities.tasks, "task 'encoder'")
    module = _module("bert", "encoder")
    found = _single_pass(subject, QEFFAutoModelForFeatureExtraction(module, pooling=None))
    for row, prompt in enumerate(_prompts()):
        expected = _alone(module, prompt).last_hidden_state[0].numpy()
        _require_hidden(subject, found[row], expected, f"the last hidden state of text {row}")


@check("generation", cases=("sequence-classification", "token-classification", "question-answering"))
def check_head(subject: Subject, task: str) -> None:
    """A classifier, or a model that answers questions, gives the logits of Transformers."""
    import numpy as np

    from qeff_framework.tasks import task_spec

    subject.need(task in subject.capabilities.tasks, f"task '{task}'")
    module = _head(task)
    found = _single_pass(subject, task_spec(task).model_class(module))
    for row, prompt in enumerate(_prompts()):
        outputs = _alone(module, prompt)
        names = ("start_logits", "end_logits") if task == "question-answering" else ("logits",)
        for name in names:
            expected = outputs[name][0].numpy()
            got = np.asarray(getattr(found, name)[row] if task == "question-answering" else found[row])
            _require_hidden(subject, got, expected, f"{name} of text {row}")
