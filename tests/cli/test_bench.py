"""``qeff bench``: what it measures, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qeff_framework.bench import Measured
from qeff_framework.bench.contender import Program, load

MEASURED = Measured(
    name="ort_sim",
    info={"device": "CPU"},
    load=[0.5, 0.7],
    peak_bytes=[2e8, 2e8],
    first_token=[[0.010, 0.020]],
    decode=[[50.0, 40.0]],
    throughput=[[30.0, 20.0]],
    tokens=[[[1, 2]]],
)


def test_program_and_transformers_do_the_same_work(llama, artifact):
    prompts: list[list[int]] = [[5, 9, 20, 31, 7], [4, 4, 8, 30, 2]]
    early: list[int] = []
    program = {"kind": "program", "directory": str(artifact), "runtime_options": {"num_threads": 1}, "extensions": None}
    contenders = [load(program), load({"kind": "transformers", "arguments": {"model": str(llama)}})]

    ours, theirs = (each.generate(prompts, 7, lambda early_tokens=0: early.append(early_tokens)) for each in contenders)

    assert ours == theirs
    assert [len(row) for row in ours] == [7, 7]
    assert early == [0, 0]  # once each, for both rows together
    assert contenders[0].info["threads"] == "1"


def test_tokens_that_come_before_every_row_has_its_first_are_told(artifact, monkeypatch):
    """Rows that take turns decode while others wait: their tokens are none of the steps after the first one."""
    program = Program(str(artifact), {}, None)
    early: list[int] = []

    def generate_ids(prompts, settings, *, on_token):
        for row, token in [(0, 4), (0, 5), (1, 6), (0, 7), (1, 8), (2, 9), (0, 1), (2, 3)]:
            on_token(row, token)
        return SimpleNamespace(generated_ids=[[4, 5, 7, 1], [6, 8], [9, 3]])

    monkeypatch.setattr(program._generator, "generate_ids", generate_ids)

    program.generate([[3], [4], [5]], 4, lambda early_tokens=0: early.append(early_tokens))

    assert early == [3]


def test_an_artifact_is_measured(model_qeff, artifact):
    argv = ["bench", artifact, "--prompt-len", "3,9", "--new-tokens", "5", "--batch-size", "1", "--rounds", "1"]

    result = model_qeff(*argv, "-R", "num_threads=1", "--json")

    assert result.code == 0, result.err
    (ours,) = result.json["contenders"]
    assert ours["name"] == "ort_sim"
    assert ours["info"]["threads"] == "1"
    assert [(case["prompt_len"], case["batch_size"]) for case in ours["cases"]] == [(3, 1), (9, 1)]
    for case in ours["cases"]:
        (first,), (rate,) = case["first_token_seconds"], case["tokens_per_second"]
        (decode,) = case["decode_tokens_per_second"]
        assert first > 0
        assert first + 4 / decode == pytest.approx(5 / rate)  # the first token and the four steps are the whole call
    assert ours["peak_bytes"][0] > 1e7
    assert 0 < ours["load_seconds"][0] < 60


def test_a_model_is_compiled_for_what_is_measured_and_ratios_are_told(model_qeff, llama, monkeypatch):
    asked = []

    def measure(contenders, cases, **how):
        asked.append((contenders, cases, how))
        slower = {"name": "transformers", "first_token": [[0.040, 0.040]], "decode": [[10.0, 10.0]]}
        return [MEASURED, Measured(**{**vars(MEASURED), **slower})]

    monkeypatch.setattr("qeff_framework.bench.measure", measure)
    sizes = ("--prefill-seq-len", "4", "--prompt-len", "20", "--new-tokens", "12", "--batch-size", "2")

    result = model_qeff("bench", llama, "--backend", "ort_sim", *sizes, "--against", "transformers", "--rounds", "2")

    ((contenders, cases, how),) = asked
    assert [each.name for each in contenders] == ["ort_sim", "transformers"]
    assert (cases[0].prompt_len, cases[0].new_tokens, cases[0].batch_size) == (20, 12, 2)
    assert (how["rounds"], how["vocab_size"]) == (2, 40)
    lines = result.out.splitlines()
    assert lines[1].split()[:3] == ["ort_sim", "20", "2"]
    assert "15.0 (10.0 - 20.0)" in lines[1]
    assert "45.0 (40.0 - 50.0)" in lines[1]
    (told,) = [line for line in lines if line.startswith("ort_sim / transformers")]
    assert "0.38 (0.25 - 0.50)" in told
    assert "4.50 (4.00 - 5.00)" in told


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--prompt-len", "40"], "--prompt-len 40: the program reads prompts of up to 32 tokens"),
        (["--prompt-len", "30", "--new-tokens", "3"], "do not fit into ctx_len=32"),
        (["--prompt-len", "8,x"], "argument --prompt-len: 'x' is no whole number"),
        (["--batch-size", "3"], "--batch-size 3: the program runs 1 to 2 rows together"),
        (["--batch-size", "x"], "--batch-size: 'x' is no whole number"),
        (["--batch-size", "0"], "--batch-size: 0 must be at least 1"),
        (["--time-limit", "nan"], "--time-limit a number of seconds above 0"),
        (["-R", "num_threads=0"], "option 'num_threads' must be at least 1, got 0"),
        (["--ctx-len", "64"], "it is compiled already"),
        (["--against", "transformers"], "needs the model's weights; give the model instead of an artifact"),
    ],
)
def test_what_an_artifact_cannot_do_is_refused(model_qeff, artifact, argv, told):
    result = model_qeff("bench", artifact, *argv)

    assert result.code != 0
    assert told in result.err


def test_cases_that_the_context_does_not_hold_are_refused_before_the_export(qeff, llama, monkeypatch):
    monkeypatch.setattr("qeff_framework.model.QEFFBaseModel.export", lambda *_, **__: pytest.fail("exported"))

    result = qeff(
        "bench", llama, "--backend", "ort_sim", "--ctx-len", "32", "--prompt-len", "8,30", "--new-tokens", "3"
    )

    assert result.code == 1
    assert "--prompt-len 30 and --new-tokens 3 do not fit into ctx_len=32; shorten one" in result.err


def test_other_tasks_are_refused_before_anything_is_compiled(model_qeff, bert):
    result = model_qeff("bench", bert, "--backend", "ort_sim")

    assert result.code == 2
    assert "bench measures text generation (causal-lm or seq2seq-lm); this model is for encoder" in result.err
