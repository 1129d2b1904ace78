"""The fuzz command draws what is valid, finds what is wrong, makes it small, and runs it again."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qeff_framework.coverage.fuzz import Example, command, comparison, hunt, replay
from qeff_framework.coverage.fuzz.command import main
from qeff_framework.coverage.fuzz.comparison import NEAR_TIE, Outcome, TinyModel, TinyProgram
from qeff_framework.coverage.fuzz.configs import mechanisms, model_configs
from qeff_framework.coverage.fuzz.examples import PLAIN_SIZES, ModelConfig, Request
from qeff_framework.coverage.fuzz.findings import Finding
from qeff_framework.coverage.fuzz.hunt import cases, hunt_requests, shrunk
from qeff_framework.coverage.fuzz.programs import program_sizes
from qeff_framework.coverage.fuzz.requests import requests
from qeff_framework.coverage.reference import Decoded
from qeff_framework.coverage.tiny import tiny_config
from qeff_framework.generation.loop import TextGenerator
from qeff_framework.generation.scheduler import Scheduler
from qeff_framework.shapes import CausalLMShapes

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

_FEW = settings(max_examples=30, derandomize=True, suppress_health_check=list(HealthCheck))
_PLAIN = ModelConfig(task="causal-lm", model_type="gpt_bigcode")
#: The smallest change that every family knows.
_SMALL = dataclasses.replace(_PLAIN, changes={"layers": {"n_layer": 1}})


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyProgram]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEFF_HOME", str(tmp_path_factory.mktemp("qeff-home")))
        with TinyModel(_SMALL).compile({"prefill_seq_len": 4, "ctx_len": 16, "batch_size": 2}, "ort_sim") as program:
            yield program


# --- what is drawn ------------------------------------------------------------------------------------------------------


def test_configurations_change_every_mechanism_of_a_family_within_its_rules() -> None:
    known = mechanisms("causal-lm", "gemma3_text")
    assert {"heads", "layers", "rope", "sliding_window", "attn_logit_softcapping", "rms_norm_eps"} <= set(known)
    seen: set[str] = set()

    @_FEW
    @given(model_configs("causal-lm", "gemma3_text"))
    def check(drawn: ModelConfig) -> None:
        config: Any = tiny_config("gemma3_text", "causal-lm", drawn.fields)
        seen.update(drawn.changes)
        assert config.num_attention_heads % config.num_key_value_heads == 0
        assert len(config.layer_types) == config.num_hidden_layers
        for fields in drawn.changes.values():
            # With attention in both directions Gemma 3 halves the window that it is given.
            for name in set(fields) - {"rope_parameters", "sliding_window"}:
                assert getattr(config, name) == fields[name]
        kinds = {parameters["rope_type"] for parameters in config.rope_parameters.values()}
        assert kinds <= {"default", "linear", "yarn", "llama3", "longrope", "dynamic"}

    check()
    assert seen == set(known)


@pytest.mark.parametrize("model_type", ["mixtral", "falcon"])
def test_models_of_drawn_configurations_run(model_type: str) -> None:
    verdicts: Counter[str] = Counter()
    for case in cases("causal-lm", model_type, base_seed=0, count=8):
        try:
            verdicts["run"] += TinyModel(case.config).vocab_size > 0
        except comparison.StageError as error:
            verdicts[error.outcome.verdict] += 1
    assert verdicts["run"] >= 6
    assert set(verdicts) <= {"run", "no reference"}


@_FEW
@given(st.data())
def test_sizes_are_valid_and_requests_fit_them(data: st.DataObject) -> None:
    for sizes in data.draw(program_sizes("causal-lm")):
        shapes = CausalLMShapes(**{name: tuple(v) if isinstance(v, list) else v for name, v in sizes.items()})
        request = data.draw(requests(sizes, likely=[5, 6], vocab_size=131))
        longest = max(map(len, request.prompts))
        assert longest + request.settings.get("max_new_tokens", 1) <= shapes.ctx_len
        assert request.settings.get("max_length", shapes.ctx_len) <= shapes.ctx_len
        assert shapes.full_batch_size or len(request.prompts) <= shapes.batch_size
        assert json.loads(json.dumps(dataclasses.asdict(request))) == dataclasses.asdict(request)


def test_a_token_never_chooses_more_experts_than_its_groups_hold() -> None:
    # The tiny model has eight experts in four groups, and a token chooses among two groups.
    drawn = cases("causal-lm", "deepseek_v3", base_seed=7, count=32)
    assert {case.config.fields.get("num_experts_per_tok", 3) for case in drawn} == {1, 3, 4}


def test_a_seed_draws_the_same_cases() -> None:
    drawn = cases("causal-lm", "llama", base_seed=3, count=5)
    assert drawn == cases("causal-lm", "llama", base_seed=3, count=5)
    assert drawn != cases("causal-lm", "llama", base_seed=4, count=5)


# --- what is found ------------------------------------------------------------------------------------------------------


def test_a_right_program_is_equal_for_every_request(program: TinyProgram) -> None:
    lines: list[Mapping[str, Any]] = []
    assert hunt_requests(program, 0, 20, lines.append) == []
    verdicts = Counter(line["verdict"] for line in lines if line["event"] == "outcome")
    assert verdicts["equal"] >= 12
    assert set(verdicts) <= {"equal", "refused", "near tie"}


@pytest.fixture
def wrong_after_six(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token behind a text of seven tokens or more is another one."""
    right = Scheduler._run_step

    def wrong(self: Scheduler, inputs: Any) -> Any:
        logits = np.array(right(self, inputs))
        for row, positions in enumerate(inputs.feed["position_ids"]):
            if positions.max() >= 6:
                logits[row] = np.roll(logits[row], 1, axis=-1)
        return logits

    monkeypatch.setattr(Scheduler, "_run_step", wrong)


@pytest.mark.usefixtures("wrong_after_six")
def test_a_planted_fault_is_found_made_small_and_run_again(
    program: TinyProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = hunt_requests(program, 0, 20, lambda line: None)
    tokens = next(finding for finding in found if finding.outcome.verdict == "tokens")
    request = tokens.example.request
    assert request is not None
    assert (len(request.prompts), request.form, request.place, request.lookup) == (1, "lists", "keywords", {})
    assert set(request.settings) <= {"max_new_tokens", "max_length"}
    expected = comparison.decode_alone(program.model.module, request.prompts[0], 16).tokens
    assert f"Transformers chooses {expected[7 - len(request.prompts[0])]}" in tokens.outcome.detail

    file = tmp_path / "finding.json"
    file.write_text(json.dumps(tokens.to_json()))
    again = Example.load(file)
    assert again == tokens.example
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "store"))
    assert replay(again) == tokens.outcome
    monkeypatch.undo()
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "store"))
    assert replay(again).verdict == "equal"


def test_scores_that_differ_without_another_token_are_found(
    program: TinyProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Scheduler._run_step
    monkeypatch.setattr(Scheduler, "_run_step", lambda self, inputs: right(self, inputs) * 1.1)
    request = Request(prompts=[[20, 30, 40]], settings={"max_new_tokens": 4})
    assert program.compare(request).verdict == "equal"
    outcome = program.compare(dataclasses.replace(request, scores=True))
    assert outcome.verdict == "scores"
    assert outcome.score_error is not None
    assert outcome.score_error > 0.05


def test_beyond_the_tolerance_scores_are_measured_by_the_float32_of_transformers_itself(
    program: TinyProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A penalty of 2**n magnifies whatever rounding there is beyond any constant.
    ends = {"eos_token_id": 5, "exponential_decay_length_penalty": [1, 2.0], "max_new_tokens": 9, "min_new_tokens": 9}
    request = Request(prompts=[[20, 30, 40], [50]], settings=ends, scores=True)
    monkeypatch.setattr(comparison, "SCORE_TOLERANCE", 0.0)
    outcome = program.compare(request)
    assert outcome.verdict == "equal", outcome
    assert outcome.rounding is not None
    assert 0 < outcome.rounding < 1e-3

    right = Scheduler._run_step
    monkeypatch.setattr(Scheduler, "_run_step", lambda self, inputs: right(self, inputs) * 1.001)
    outcome = program.compare(request)
    assert outcome.verdict == "scores", outcome
    assert "from float64 by" in outcome.detail


@pytest.mark.usefixtures("wrong_after_six")
def test_a_choice_is_a_near_tie_where_the_float32_of_transformers_is_as_unsure(
    program: TinyProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(prompts=[[20, 30, 40]], settings={"max_new_tokens": 8})
    outcome = program.compare(request)
    assert outcome.verdict == "tokens"
    assert outcome.rounding is not None
    assert outcome.gap is not None
    assert outcome.rounding < 1e-4 < outcome.gap

    unsure = copy.deepcopy(program.model.double)
    with torch.no_grad():
        for parameter in unsure.parameters():
            parameter.mul_(torch.linspace(0.5, 1.5, parameter.numel()).reshape(parameter.shape))
    monkeypatch.setattr(program.model, "double", unsure)
    outcome = program.compare(request)
    assert outcome.verdict == "near tie", outcome


def test_settings_that_are_dropped_are_found(program: TinyProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    first = program.model.likely[0]
    request = Request(prompts=[[16]], settings={"suppress_tokens": program.model.likely, "max_new_tokens": 8})
    assert program.compare(request).verdict == "equal"
    forgetful = TextGenerator.settings
    monkeypatch.setattr(
        TextGenerator, "settings", lambda self, config=None, **given: forgetful(self, config, max_new_tokens=8)
    )
    outcome = program.compare(request)
    assert outcome.verdict == "tokens", (first, outcome)


@pytest.mark.parametrize(("gap", "verdict"), [(0.5 * NEAR_TIE, "near tie"), (2 * NEAR_TIE, "tokens")])
def test_a_near_tie_is_one_by_the_stated_margin(gap: float, verdict: str) -> None:
    logits = torch.tensor([[0.0, 4.0, 4.0, -4.0]])
    logits[0, 2] -= gap * logits.std()
    wanted = Decoded(tokens=[1], logits=logits, scores=logits)
    assert comparison._difference(0, [2], wanted).verdict == verdict
    # Another token than the second best one is never a near tie.
    assert comparison._difference(0, [3], wanted).verdict == "tokens"


def test_model_and_program_shrink_towards_the_plain_ones() -> None:
    changes = {"heads": {"n_head": 2}, "rope": {"rope_parameters": {"rope_type": "yarn"}}, "layers": {"n_layer": 1}}
    sizes = {"prefill_seq_len": 7, "ctx_len": 40, "full_batch_size": 3, "num_speculative_tokens": 2}
    example = Example(config=dataclasses.replace(_PLAIN, changes=changes, seed=2), sizes=sizes)
    outcome = Outcome(verdict="tokens")

    def try_out(candidate: Example) -> Finding | None:
        fails = "rope" in candidate.config.changes and candidate.sizes.get("num_speculative_tokens")
        return Finding(example=candidate, outcome=outcome) if fails else None

    smallest = shrunk(Finding(example=example, outcome=outcome), try_out, Example.simpler, trials=40).example
    assert set(smallest.config.changes) == {"rope"}
    assert smallest.sizes == {**PLAIN_SIZES["causal-lm"], "num_speculative_tokens": 2}


# --- the command --------------------------------------------------------------------------------------------------------


def test_a_run_with_a_case_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = Request(prompts=[[20, 21, 22, 23], [30]], settings={"max_new_tokens": 3})

    def deadly(case: hunt.Case, *, backend: str, examples: int, log: hunt.Log) -> dict[str, Any]:
        log({"event": "outcome", "shrinking": False, "verdict": "equal", "score_error": 1e-6})
        log({"event": "outcome", "shrinking": False, "verdict": "near tie", "gap": 1e-5})
        if case.config.model_type == "gpt2":
            example = Example(config=case.config, sizes=case.programs[0], request=request)
            log({"event": "start", "shrinking": False, "example": example.to_json()})
            os._exit(3)
        return {}

    def dies_of_three_tokens(example: Example, *, backend: str) -> Outcome:
        assert example.request is not None
        if any(len(prompt) > 2 for prompt in example.request.prompts):
            os._exit(3)
        return Outcome(verdict="equal")

    monkeypatch.setattr(hunt, "hunt", deadly)
    monkeypatch.setattr(command, "replay", dies_of_three_tokens)
    out = tmp_path / "out"
    arguments = ["--families", "gpt2,gpt_bigcode", "--count", "1", "--backend", "ort_sim", "--out", str(out)]
    assert main(arguments) == 1
    page = (out / "report.md").read_text()
    assert "**5 examples** of 2 configurations of 2 families" in page
    assert "There were 2, the widest by 1.0e-05." in page
    assert "crash" in capsys.readouterr().out
    found = Example.load(out / "finding-001.json")
    assert found.request is not None
    assert [len(prompt) for prompt in found.request.prompts] == [4]
    assert found.config.changes == {}
    assert found.request.settings == {}
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines if "verdict" in line].count("equal") == 2
    # The replay of that file ends in the same way, and another run does not write over these results.
    assert main(["--replay", str(out / "finding-001.json"), "--backend", "ort_sim"]) == 1
    assert main(arguments) == 2
    assert "holds" in capsys.readouterr().err


def test_an_interrupted_run_reports_what_it_has_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = Request(prompts=[[20, 21]])
    out = tmp_path / "out"

    def endless(case: hunt.Case, *, backend: str, examples: int, log: hunt.Log) -> dict[str, Any]:
        example = Example(config=case.config, sizes=case.programs[0], request=request)
        differs = case.config.model_type == "gpt_bigcode" or (out / "finding-001.json").exists()
        log({"event": "start", "shrinking": False, "example": example.to_json()})
        log({"event": "outcome", "shrinking": False, "verdict": "tokens" if differs else "equal", "detail": "77"})
        if case.config.model_type == "gpt2":
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(100)
        return {}

    monkeypatch.setattr(hunt, "hunt", endless)
    before = signal.getsignal(signal.SIGTERM)
    arguments = ["--jobs", "1", "--count", "1", "--backend", "ort_sim", "--out", str(out), "--families"]
    assert main([*arguments, "gpt_bigcode,gpt2,opt"]) == 1
    # The finding of the first case stood there while the second one ran, and that one's own is not lost.
    assert "interrupted" in capsys.readouterr().out
    assert "**2 examples** of 2 configurations of 2 families" in (out / "report.md").read_text()
    found = [Example.load(file).config.model_type for file in sorted(out.glob("finding-*.json"))]
    assert found == ["gpt_bigcode", "gpt2"]
    assert list((out / "running").iterdir()) == []

    other = tmp_path / "other"
    arguments[arguments.index(str(out))] = str(other)
    (out / "finding-001.json").unlink()
    assert main([*arguments, "gpt2"]) == 0
    assert "**1 examples**" in (other / "report.md").read_text()
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_hypothesis_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["--count", "1"]) == 2
    assert "qeff-framework[fuzz]" in capsys.readouterr().err


def test_families_are_named_as_the_coverage_names_them() -> None:
    assert [str(family) for family in command.families_of("bart, seq2seq-lm:bart,t5")] == [
        "bart",
        "seq2seq-lm:bart",
        "seq2seq-lm:t5",
    ]
    assert len(command.families_of(None)) >= 20
    with pytest.raises(command.OptionError, match="no 'lama'"):
        command.families_of("lama")
