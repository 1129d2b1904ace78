"""The graph's sampler chooses what Transformers' processors leave, with the probabilities that they give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx_ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeff_framework.contracts import SAMPLER_INPUTS, TOKEN_BITMASKS
from qeff_framework.errors import ExportError
from qeff_framework.export.portable import export_portable
from qeff_framework.export.sampler import append_sampler
from qeff_framework.generation import GenerationSettings
from qeff_framework.generation.rows import Row
from qeff_framework.generation.scores import build_rules

VOCAB = 24
GREEDY = {
    "repetition_penalties": 1.0,
    "presence_penalties": 0.0,
    "temperatures": 0.0,
    "top_ks": VOCAB,
    "top_ps": 1.0,
    "min_ps": 0.0,
}
_LOGITS_ONLY = """
<ir_version: 10, opset_import: ["" : 18]>
logits_only (int64[batch_size, seq_len] input_ids, int64[batch_size, seq_len] position_ids,
             float[batch_size, 1, 24] scores, %s) => (float[batch_size, 1, 24] logits)
{ logits = Identity (scores) }
"""


class Sampler:
    """The sampler alone: the logits are an input."""

    def __init__(self, *, rows: int, slots: int | None = None, guided: bool = False) -> None:
        """`guided`: it takes masks and returns probabilities."""
        text = _LOGITS_ONLY % "int64[batch_size, 1] batch_index" if slots else _LOGITS_ONLY.replace(", %s", "")
        model = onnx_ir.serde.deserialize_model(onnx.parser.parse_model(text))
        self.states = append_sampler(
            model, first_state=len(model.graph.inputs), takes_masks=guided, returns_probabilities=guided
        )
        proto = onnx_ir.serde.serialize_model(model)
        onnx.checker.check_model(proto, full_check=True)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.held = {state.input: np.zeros((slots or rows, VOCAB), dtype=np.bool_) for state in self.states}
        self.slots = slots
        self.guided = guided
        #: Of the last step, ``[B, V]``.
        self.probabilities = np.zeros((0, VOCAB))

    def step(
        self,
        scores: Any,
        *,
        ids: Any = None,
        positions: Any = None,
        accepted: Any = None,
        index: Any = None,
        random: Any = 0.5,
        mask: Any = True,
        **asked: Any,
    ) -> list[int]:
        """The next token of each row; `asked` is by the names of the inputs, the rest is greedy."""
        scores = np.asarray(scores, dtype=np.float32)
        rows = len(scores)
        ids = np.zeros((rows, 1), np.int64) if ids is None else np.asarray(ids, np.int64)
        feeds = {name: np.full((rows, 1), {**GREEDY, **asked}[name], np.float32) for name in GREEDY}
        feeds |= {
            "top_ks": feeds["top_ks"].astype(np.int32),
            "scores": scores[:, None],
            "input_ids": ids,
            "position_ids": np.full(ids.shape, -1) if positions is None else np.asarray(positions),
            "last_accepted_output_tokens": np.full(ids.shape, -1) if accepted is None else np.asarray(accepted),
            "random_numbers": np.broadcast_to(np.asarray(random, np.float32), (rows, VOCAB)).copy(),
        }
        if self.slots:
            feeds["batch_index"] = np.asarray(index)[:, None]
        if self.guided:
            feeds[TOKEN_BITMASKS] = np.broadcast_to(np.asarray(mask, np.bool_), (rows, VOCAB)).copy()
        tokens, *states = self.session.run(None, {**feeds, **self.held})
        if self.guided:
            probabilities, *states = states
            assert probabilities.shape == (rows, 1, VOCAB)
            self.probabilities = probabilities[:, 0]
        self.held = dict(zip(self.held, states, strict=True))
        assert tokens.shape == (rows, 1, 1)
        chosen: list[int] = tokens[:, 0, 0].tolist()
        return chosen


@pytest.fixture(scope="module")
def alone() -> Sampler:
    return Sampler(rows=1)


@pytest.fixture(scope="module")
def guided() -> Sampler:
    return Sampler(rows=1, guided=True)


def host_probabilities(asked: Mapping[str, Any], scores: np.ndarray, history: list[int]) -> np.ndarray:
    """What the host's rules make of one row of scores ``[V]``."""
    names = {"temperatures": "temperature", "top_ks": "top_k", "top_ps": "top_p", "min_ps": "min_p"}
    config = {names[name]: value for name, value in asked.items() if name in names}
    penalty = asked.get("repetition_penalties", 1.0)
    row = Row(index=0, prompt=history, limit=9)
    chosen = GenerationSettings(do_sample=True, repetition_penalty=penalty, **config)
    changed = scores.copy()
    for rule in build_rules(chosen, row, len(scores)):
        rule(row, changed)
    weights = np.exp(changed - changed.max())
    return weights / weights.sum()


@st.composite
def samplings(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Distinct scores: Transformers keeps all of equal ones at the edge of top-k, a sampler with a number of candidates cannot.
    scores = rng.permutation(np.linspace(-4, 4, VOCAB) + rng.uniform(0, 0.1, VOCAB)).astype(np.float32)
    return {
        "scores": scores,
        "history": rng.integers(0, VOCAB, draw(st.integers(1, 6))).tolist(),
        "random": rng.uniform(0.001, 0.999, VOCAB).astype(np.float32),
        "asked": {
            "temperatures": draw(st.sampled_from([0.3, 0.7, 1.0, 2.5])),
            "top_ks": draw(st.integers(1, VOCAB)),
            "top_ps": draw(st.sampled_from([0.13, 0.5, 0.83, 0.97, 1.0])),
            "min_ps": draw(st.sampled_from([0.0, 0.03, 0.21, 1.0])),
            "repetition_penalties": draw(st.sampled_from([0.7, 1.0, 1.3])),
        },
    }


@settings(max_examples=300)
@given(samplings())
def test_a_draw_is_the_gumbel_maximum_of_what_transformers_leaves(alone: Sampler, case: dict[str, Any]) -> None:
    history, asked = case["history"], case["asked"]
    (token,) = alone.step(
        [case["scores"]], ids=[history], positions=[range(len(history))], random=case["random"], **asked
    )
    probabilities = host_probabilities(asked, case["scores"], history)
    penalized = host_probabilities({"repetition_penalties": asked["repetition_penalties"]}, case["scores"], history)
    ranks = np.argsort(np.argsort(-penalized, kind="stable"), kind="stable")
    with np.errstate(divide="ignore"):
        noisy = np.log(probabilities) - np.log(-np.log1p(-case["random"][ranks]))
    best, second = np.sort(noisy)[[-1, -2]]
    assert probabilities[token] > 0
    assert token == np.argmax(noisy) or best - second < 1e-4


@settings(max_examples=100)
@given(samplings(), st.integers(0, VOCAB - 1), st.integers(0, 2**32))
def test_masked_tokens_have_no_probability_and_the_others_what_transformers_gives_them(
    guided: Sampler, case: dict[str, Any], least: int, seed: int
) -> None:
    history, asked, scores = case["history"], case["asked"], case["scores"]
    mask = np.random.default_rng(seed).random(VOCAB) < 0.4
    mask[least] = True
    fed = {"ids": [history], "positions": [range(len(history))], "random": case["random"], "mask": mask}
    (token,) = guided.step([scores], **fed, **asked)
    masked = np.where(mask, scores, -np.inf)
    np.testing.assert_allclose(guided.probabilities[0], host_probabilities(asked, masked, history), atol=2e-6)
    assert guided.probabilities[0, token] > 0
    # A temperature that makes all scores alike brings no masked token back.
    (token,) = guided.step([scores], **fed, temperatures=1e9)
    assert mask[token]
    assert not guided.probabilities[0, ~mask].any()
    penalty = {"repetition_penalties": asked["repetition_penalties"]}
    (token,) = guided.step([scores], **fed, **asked | {"temperatures": 0.0})
    assert token == host_probabilities(penalty, masked, history).argmax()


@settings(max_examples=60)
@given(samplings())
def test_temperature_zero_is_greedy_whatever_the_rest_is(alone: Sampler, case: dict[str, Any]) -> None:
    history = case["history"]
    asked = {**case["asked"], "temperatures": 0.0}
    chosen = alone.step(
        [case["scores"]], ids=[history], positions=[range(len(history))], random=case["random"], **asked
    )
    penalty = {"repetition_penalties": asked["repetition_penalties"]}
    assert chosen == [host_probabilities(penalty, case["scores"], history).argmax()]


@pytest.mark.parametrize(
    "asked",
    [
        {"temperatures": 1.0},
        {"temperatures": 3.0, "top_ks": 11},
        {"temperatures": 0.8, "top_ps": 0.9},
        {"temperatures": 1.5, "min_ps": 0.05},
    ],
)
def test_draws_follow_the_distribution_of_transformers(asked: dict[str, Any]) -> None:
    count = 4000
    scores = np.random.default_rng(1).normal(0, 2, VOCAB).astype(np.float32)
    random = np.random.default_rng(2).random((count, VOCAB), dtype=np.float32)
    tokens = Sampler(rows=count).step(np.tile(scores, (count, 1)), random=random, **asked)
    expected = host_probabilities(asked, scores, [0]) * count
    found = np.bincount(tokens, minlength=VOCAB)
    assert (found[expected == 0] == 0).all()
    # Chi-squared over what is expected often enough; its mean is the number of cells, 3 standard deviations are allowed.
    often = expected > 5
    distance = float((((found - expected) ** 2)[often] / expected[often]).sum())
    assert distance < often.sum() + 3 * np.sqrt(2 * often.sum())


def test_the_extremes_of_random_numbers_draw_no_token_that_is_left_out(alone: Sampler) -> None:
    scores = [np.linspace(3, 0, VOCAB)]
    for random in (0.0, 1.0, [0.0, *[1.0] * (VOCAB - 1)], [1.0, *[0.0] * (VOCAB - 1)]):
        for kept in (1, 3):
            assert alone.step(scores, random=random, temperatures=1.0, top_ks=kept)[0] < kept


def test_marks_belong_to_a_cache_row_and_end_with_its_prompt() -> None:
    """Two prompts in rows 2 and 0; then row 2 is taken by another prompt."""
    sampler = Sampler(rows=2, slots=3)
    flat = np.linspace(1.0, 0.9, VOCAB)
    heavy = {"repetition_penalties": 100.0}

    def marks() -> dict[int, list[int]]:
        held = sampler.held["past_repetition_penalty_buffer"]
        return {slot: np.flatnonzero(held[slot]).tolist() for slot in range(3)}

    assert sampler.step([flat], ids=[[0, 1, 9]], positions=[[0, 1, -1]], index=[2], **heavy) == [2]
    assert sampler.step([flat], ids=[[2, 9, 9]], positions=[[2, -1, -1]], index=[2], **heavy) == [3]
    assert sampler.step([flat], ids=[[5, 0, 9]], positions=[[0, 1, -1]], index=[0], **heavy) == [1]
    assert marks() == {0: [0, 5], 1: [], 2: [0, 1, 2]}
    # A step of both, the first row finished: padding marks nothing.
    tokens = sampler.step(
        [flat, flat], ids=[[7], [3]], positions=[[-1], [3]], accepted=[[-1], [3]], index=[0, 2], **heavy
    )
    assert tokens == [1, 4]
    assert marks() == {0: [0, 5], 1: [], 2: [0, 1, 2, 3]}
    assert np.argwhere(sampler.held["past_presence_penalty_buffer"]).tolist() == [[2, 3]]
    assert sampler.step([flat], ids=[[8, 9]], positions=[[0, -1]], index=[2], **heavy) == [0]
    assert marks() == {0: [0, 5], 1: [], 2: [8]}
    assert not sampler.held["past_presence_penalty_buffer"].any()


def test_presence_penalty_counts_tokens_of_the_answer_only() -> None:
    sampler = Sampler(rows=1)
    flat = np.linspace(1.0, 0.9, VOCAB)
    assert sampler.step([flat], ids=[[0, 1]], positions=[[0, 1]], presence_penalties=2.0) == [0]
    assert sampler.step([flat], ids=[[0]], positions=[[2]], accepted=[[0]], presence_penalties=2.0) == [1]


def test_interface_of_an_export(llama, tmp_path) -> None:
    extra = ("batch_index", *SAMPLER_INPUTS, TOKEN_BITMASKS)
    exported = export_portable(
        llama, task="causal-lm", output_dir=tmp_path, extra_inputs=extra, extra_outputs=("probs",)
    )
    assert [spec.name for spec in exported.inputs[2:12]] == list(extra)
    assert exported.inputs[12].name == "past_key.0"
    mask, probabilities = exported.inputs[11], exported.outputs[1]
    assert (mask.dtype, mask.shape) == ("bool", ("batch_size", 128))
    assert (probabilities.name, probabilities.dtype, probabilities.shape) == (
        "probs",
        "float32",
        ("batch_size", 1, 128),
    )
    assert exported.outputs[0].name == "next_tokens"
    assert exported.outputs[0].shape == ("batch_size", 1, 1)
    assert [(state.input, state.kind) for state in exported.states[-2:]] == [
        ("past_repetition_penalty_buffer", "sampler"),
        ("past_presence_penalty_buffer", "sampler"),
    ]
    buffer = next(spec for spec in exported.inputs if spec.name == "past_presence_penalty_buffer")
    assert (buffer.dtype, buffer.shape) == ("bool", ("full_batch_size", 128))
    onnx.checker.check_model(str(exported.model_path), full_check=True)


@pytest.mark.parametrize("extra", [("temperatures",), ("num_logits_to_keep", *SAMPLER_INPUTS), (TOKEN_BITMASKS,)])
def test_part_of_a_sampler_and_several_logits_are_refused(llama, tmp_path, extra) -> None:
    with pytest.raises(ExportError):
        export_portable(llama, task="causal-lm", output_dir=tmp_path, extra_inputs=extra)
