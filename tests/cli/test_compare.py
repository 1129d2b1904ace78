"""``qeff compare``: the figures of exact and of rounded programs, and the gate."""

from __future__ import annotations

import os
from xml.etree import ElementTree as ET

import pytest

from qeff_framework.errors import InputError

SIZES = ("--prefill-seq-len", "4", "--ctx-len", "32")
PROMPTS = ("--prompt", "my name is", "one two three four five", "--new-tokens", "9")


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("one two three four five six seven eight nine ten " * 5, encoding="utf-8")
    return file


def test_an_exact_program_passes_the_gate(model_qeff, llama, text):
    gate = ("--max-kl", "1e-6", "--min-agreement", "1")

    result = model_qeff("compare", llama, "--backend", "ort_sim", *SIZES, *PROMPTS, "--text", text, *gate, "--json")

    assert result.code == 0, result.err
    found = result.json
    assert (found["prompts"]["tokens"], found["prompts"]["agreeing"]) == (18, 18)
    assert found["prompts"]["common_prefixes"] == [9, 9]
    assert found["text"]["tokens"] == found["text"]["agreeing"] > 40
    assert found["text"]["max_logit_error"] < 1e-4
    assert found["text"]["perplexity"] == pytest.approx(found["text"]["reference_perplexity"], rel=1e-4)
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    assert all(0 < layer[what] < 1e-5 for layer in found["layers"] for what in ("keys", "values"))
    assert found["missed"] == []


def test_a_program_of_the_device_misses_a_narrow_gate(model_qeff, llama, text, tmp_path):
    device = ("-O", "simulate=ai100", "-O", "mxfp6_matmul=true", "-O", "mxint8_kv_cache=true")
    plot = tmp_path / "errors.svg"

    result = model_qeff(
        "compare",
        llama,
        "--backend",
        "ort_sim",
        *SIZES,
        *PROMPTS,
        *("--text", text, "--text-tokens", "30", "--plot", plot, "--max-kl", "1e-6", "--min-agreement", "1"),
        *device,
    )

    assert result.code == 1
    assert "the mean KL divergence is" in result.err
    assert "more than --max-kl 1e-06" in result.err
    assert "of the prompts' tokens agree, less than --min-agreement 1" in result.err
    assert "perplexity of the text" in result.out
    layers = [line.split() for line in result.out.splitlines() if line[:1] in "01" and line[1:2] == " "]
    assert all(1e-3 < float(error) < 0.5 for row in layers for error in row[1:3])
    assert sum("grows most" in " ".join(row) for row in layers) == 1
    drawn = ET.fromstring(plot.read_text(encoding="utf-8"))
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))) == 4


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--min-agreement", "95"], "is a share from 0 to 1"),
        (["--max-kl", "-1"], "must be 0 or more"),
        (["--new-tokens", "0"], "--new-tokens must be at least 1"),
        (["--plot", "no/such/folder/x.svg"], "there is no folder"),
        (["--plot", "."], "is a folder; name a file in it"),
        (["--plot", "errors.png"], "the charts are SVG"),
        (["--text", "no_such_file.txt"], "cannot be read"),
        (["--prompts-file", os.devnull], "holds no prompts"),
        (["-O", "include_sampler=true"], "returns no logits to compare; leave include_sampler out"),
    ],
)
def test_mistakes_are_told_before_anything_is_compiled(model_qeff, llama, argv, told, monkeypatch):
    monkeypatch.setattr("qeff_framework.cli.compile.compile_model", lambda *_, **__: pytest.fail("compiled"))

    result = model_qeff("compare", llama, "--backend", "ort_sim", *argv)

    assert result.code != 0
    assert told in result.err


def test_a_prompt_too_long_for_the_context_is_refused_before_the_export(qeff, llama, monkeypatch):
    monkeypatch.setattr("qeff_framework.model.QEFFBaseModel.export", lambda *_, **__: pytest.fail("exported"))

    result = qeff("compare", llama, "--backend", "ort_sim", *SIZES, *PROMPTS[:-1], "30")

    assert result.code == 1
    assert "and 30 new ones make" in result.err
    assert "more than ctx_len=32; ask for at most" in result.err


def test_a_text_without_a_token_to_predict_is_refused(model_qeff, llama, tmp_path):
    """It would have a perplexity of 1, by both."""
    short = tmp_path / "short.txt"
    short.write_text("one", encoding="utf-8")

    result = model_qeff("compare", llama, "--backend", "ort_sim", *SIZES, *PROMPTS, "--text", short)

    assert result.code == 1
    assert "short.txt has 1 tokens, of which none can be predicted" in result.err


def test_a_backend_that_is_not_named_is_chosen_once(model_qeff, llama, monkeypatch):
    chosen: list[str] = []

    def choose() -> str:
        chosen.append("ort_sim")
        return "ort_sim"

    def stop(*_, **__) -> None:
        raise InputError("far enough")

    monkeypatch.setattr("qeff_framework.registry.registry.choose", choose)
    monkeypatch.setattr("qeff_framework.cli.models.open_model", stop)

    result = model_qeff("compare", llama)

    assert "far enough" in result.err
    assert chosen == ["ort_sim"]


def test_other_tasks_are_refused(model_qeff, bert):
    result = model_qeff("compare", bert, "--backend", "ort_sim")

    assert result.code == 2
    assert "compare is for models of task causal-lm; this one is for encoder" in result.err
