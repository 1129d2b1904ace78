"""``qeff generate``: text and embeddings, from models and artifacts."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess

import numpy as np
import pytest

from tests.cli.conftest import PROGRAM_SIZES, command, run_process

PROMPTS = ["my name is", "one two three four five six", "ten"]
NEW_TOKENS = 6
HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript")


@pytest.fixture(scope="session")
def expected_ids(llama):
    """What Transformers generates for each prompt, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    results = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        results.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    assert len({token for row in results for token in row}) > 4, "a degenerate model would prove nothing"
    return results


def test_artifact_equals_transformers(model_qeff, artifact, expected_ids):
    result = model_qeff("generate", artifact, "--prompt", *PROMPTS, "--max-new-tokens", NEW_TOKENS, "--json")

    assert result.code == 0, result.err
    assert [row["token_ids"] for row in result.json["results"]] == expected_ids
    assert [row["prompt"] for row in result.json["results"]] == PROMPTS
    assert result.json["device"]["simulator"] == "yes"
    assert result.json["metrics"]["new_tokens"] == sum(map(len, expected_ids))


def test_model_is_compiled_first(model_qeff, llama, expected_ids):
    argv = ["generate", llama, "--backend", "ort_sim", *PROGRAM_SIZES, "--prompt", PROMPTS[0]]

    result = model_qeff(*argv, "--max-new-tokens", NEW_TOKENS, "--json")

    assert result.json["results"][0]["token_ids"] == expected_ids[0]


def test_text_and_figures(model_qeff, toy_artifact):
    result = model_qeff("generate", toy_artifact, "--prompt", "one", "--max-new-tokens", "3")

    text, _, figures = result.out.partition("\n\n")
    assert text == "two three four"
    assert figures.splitlines()[0].split(maxsplit=1) == ["backend", "toy (simulator, device fingers)"]
    assert [line.split("  ")[0] for line in figures.splitlines()[1:]] == [
        "time to first token",
        "decode",
        "total",
        "artifact",
    ]
    assert figures.splitlines()[-1].endswith(str(toy_artifact))


def test_an_artifact_that_lost_its_description_is_no_checkpoint(model_qeff, toy_artifact, tmp_path):
    copy = shutil.copytree(toy_artifact, tmp_path / "copy")
    (copy / "compiled.json").unlink()

    result = model_qeff("generate", copy, "--prompt", "one")

    assert result.code == 1
    assert "manifest.json lists compiled.json, which is not there; copy the whole directory again" in result.err


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_more_prompts_than_the_program_takes_at_once(model_qeff, toy_artifact, tmp_path, stream):
    file = tmp_path / "prompts.txt"
    file.write_text("three\n\nfour four\n", encoding="utf-8")

    result = model_qeff(
        "-q", "generate", toy_artifact, "--prompt", "one", "--prompts-file", file, "--max-new-tokens", "2", stream
    )

    assert result.out.splitlines() == ["[0] two three", "[1] four five", "[2] five six"]


def test_lines_of_a_prompts_file_end_with_a_line_feed_only(model_qeff, toy_artifact, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffone\u2028two\r\nthree\x0cfour\n\n\x85 \nfive\x0b\x85one".encode())

    result = model_qeff("generate", toy_artifact, "--prompts-file", file, "--max-new-tokens", "1", "--json")

    assert result.code == 0, result.err
    prompts = [(row["prompt"], row["text"]) for row in result.json["results"]]
    assert prompts == [("one\u2028two", "three"), ("three\x0cfour", "five"), ("five\x0b\x85one", "two")]


def test_prompts_as_messages(model_qeff, toy_artifact, tmp_path):
    argv = ["generate", toy_artifact, "--max-new-tokens", "1", "--json"]
    file = tmp_path / "messages.json"
    file.write_text('\ufeff[{"role": "one", "content": "two"}, {"role": "three", "content": "two"}]', encoding="utf-8")

    chat = model_qeff(
        *argv, "--chat", "--system", "is", "--prompt", "two", "--chat-template-kwargs", '{"last_word": "four"}'
    )
    mixed = model_qeff(*argv, "--messages-file", file, "--prompt", "one")

    assert [(row["prompt"], row["text"]) for row in chat.json["results"]] == [("is system two user four", "five")]
    assert [(row["prompt"], row["text"]) for row in mixed.json["results"]] == [
        ("one", "two"),
        ("two one two three ", "four"),
    ]


@pytest.mark.parametrize(
    ("argv", "content", "code", "told"),
    [
        (["--system", "x", "--prompt", "one"], None, 2, "--system begins a conversation; add --chat"),
        (
            ["--chat-template-kwargs", "{}", "--prompt", "one"],
            None,
            2,
            "add --chat, or give --messages-file FILE alone",
        ),
        (["--chat", "--chat-template-kwargs", "[]", "--prompt", "one"], None, 2, "must be a JSON object"),
        (["--chat", "--chat-template-kwargs", "{", "--prompt", "one"], None, 2, "--chat-template-kwargs is not JSON"),
        ([], "[", 1, "are not JSON"),
        ([], '[{"content": "x"}]', 1, "must hold a list of messages"),
        ([], "[]", 1, "must hold a list of messages"),
    ],
)
def test_wrong_messages_are_told_before_any_work(model_qeff, tmp_path, argv, content, code, told):
    file = tmp_path / "messages.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
        argv = ["--messages-file", file]

    result = model_qeff("generate", tmp_path / "no-model", *argv)

    assert result.code == code
    assert told in result.err


def test_stream_beside_json_goes_to_stderr(model_qeff, toy_artifact):
    result = model_qeff("generate", toy_artifact, "--prompt", "one", "--max-new-tokens", "2", "--stream", "--json")

    assert result.json["results"][0]["text"] == "two three"
    assert "two three\n" in result.err
    assert "time to first token" in result.err


def test_prompts_from_standard_input(environment, artifact, expected_ids):
    argv = ["-q", "generate", artifact, "--prompts-file", "-", "--max-new-tokens", NEW_TOKENS, "--json"]

    result = run_process(environment, *argv, input="\n".join(PROMPTS))

    assert [row["token_ids"] for row in result.json["results"]] == expected_ids


def test_artifact_runs_without_torch_and_transformers(environment, artifact):
    source = (
        "import sys; from qeff_framework.cli import main; code = main(sys.argv[1:]); "
        f"print(code, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    argv = [*command()[:1], "-c", source, "-q", "generate", str(artifact), "--prompt", "one", "--max-new-tokens", "2"]

    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "0 []"


def test_second_run_of_a_model_imports_neither_torch_nor_transformers(environment, llama, artifact, store):
    environment["QEFF_HOME"] = str(store)
    argv = [
        "-q",
        "generate",
        str(llama),
        "--backend",
        "ort_sim",
        *PROGRAM_SIZES,
        "--prompt",
        "one",
        "--max-new-tokens",
        "2",
    ]
    assert run_process(environment, *argv).code == 0
    source = (
        "import sys; from qeff_framework.cli import main; code = main(sys.argv[1:]); "
        "print(code, [m for m in ('torch', 'transformers', 'onnxscript') if m in sys.modules])"
    )

    done = subprocess.run(
        [*command()[:1], "-c", source, *argv], env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "0 []"


def test_seed_decides_what_is_drawn(model_qeff, artifact):
    def draw(seed):
        result = model_qeff(
            "generate", artifact, "--prompt", "one", "--do-sample", "--seed", seed, "--temperature", 3, "--json"
        )
        return result.json["results"][0]["token_ids"]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_runtime_option(model_qeff, toy_artifact):
    result = model_qeff("-q", "generate", toy_artifact, "--prompt", "one", "--max-new-tokens", "2", "-R", "shift=2")
    wrong = model_qeff("-q", "generate", toy_artifact, "--prompt", "one", "-R", "shfit=2")

    assert result.out == "three five\n"
    assert wrong.code == 2
    assert "did you mean 'shift'?" in wrong.err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--ctx-len", "8"], "compiled already"),
        (["-O", "level=2"], "compiled already"),
        (["--backend", "ort_sim"], "compiled for backend 'toy'"),
        (["--backend", ""], "compiled for backend 'toy'"),
        (["--task", "encoder"], "compiled for the task causal-lm, not for encoder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_the_compilation_do_not_fit_an_artifact(model_qeff, toy_artifact, argv, told):
    result = model_qeff("generate", toy_artifact, "--prompt", "one", *argv)

    assert result.code == 2
    assert told in result.err


def test_export_is_no_artifact(model_qeff, exported):
    result = model_qeff("generate", exported, "--prompt", "one")

    assert result.code == 1
    assert "is an export" in result.err


def test_too_long_prompt_is_1(model_qeff, toy_artifact):
    result = model_qeff("generate", toy_artifact, "--prompt", "one " * 40)

    assert result.code == 1
    assert "40 tokens" in result.err


def test_encoder_returns_embeddings(model_qeff, bert):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["my name is", "one two three four five six seven"]
    argv = ["generate", bert, "--backend", "ort_sim", "--seq-len", "4,8", "--pooling", "mean", "--prompt", *texts]

    result, text = model_qeff(*argv, "--json"), model_qeff("-q", *argv)

    model, tokenizer = AutoModel.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    for row, written in zip(result.json["embeddings"], texts, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(written, return_tensors="pt", return_token_type_ids=False)).last_hidden_state
        np.testing.assert_allclose(row, hidden.mean(dim=1)[0].numpy(), rtol=1e-3, atol=1e-4)
    assert result.json["shape"] == [2, 32]
    assert text.out == "float32 [2, 32]\n"


def test_encoder_takes_no_options_of_text_generation(model_qeff, bert):
    argv = ["generate", bert, "--backend", "ort_sim", "--seq-len", "4,8", "--pooling", "mean", "--prompt", "one"]

    for more in (["--max-new-tokens", "3"], ["--chat"]):
        result = model_qeff(*argv, *more)

        assert result.code == 2
        assert "encoder" in result.err


def test_classifier_returns_labels_and_scores(model_qeff, classifier):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["my name is", "one two three four five six seven"]
    argv = ["generate", classifier, "--backend", "ort_sim", "--seq-len", "4,8", "--prompt", *texts]

    result, text = model_qeff(*argv, "--json"), model_qeff("-q", *argv)

    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(classifier),
        AutoTokenizer.from_pretrained(classifier),
    )
    assert result.json["task"] == "sequence-classification"
    assert result.json["labels"] == ["bad", "middling", "good"]
    lines = []
    for number, (row, written) in enumerate(zip(result.json["results"], texts, strict=True)):
        with torch.no_grad():
            logits = model(**tokenizer(written, return_tensors="pt", return_token_type_ids=False)).logits[0]
        scores = logits.softmax(dim=0)
        np.testing.assert_allclose(row["logits"], logits.numpy(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            [row["scores"][name] for name in result.json["labels"]], scores, rtol=1e-3, atol=1e-4
        )
        assert row["label"] == model.config.id2label[int(logits.argmax())]
        lines.append(f"[{number}] {row['label']} {row['scores'][row['label']]:.4f}\n")
    assert text.out == "".join(lines)


def test_classifier_takes_no_options_of_text_generation(model_qeff, classifier):
    argv = ["generate", classifier, "--backend", "ort_sim", "--seq-len", "4,8", "--prompt", "one"]

    result = model_qeff(*argv, "--max-new-tokens", "3")

    assert result.code == 2
    assert "sequence-classification" in result.err


def test_token_classifier_returns_a_label_for_each_token(model_qeff, tagger):
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    texts = ["my name is", "one two three four five six seven"]
    argv = ["generate", tagger, "--backend", "ort_sim", "--seq-len", "4,8", "--prompt", *texts]

    result, text = model_qeff(*argv, "--json"), model_qeff("-q", *argv)

    model, tokenizer = (
        AutoModelForTokenClassification.from_pretrained(tagger),
        AutoTokenizer.from_pretrained(tagger),
    )
    assert result.json["task"] == "token-classification"
    assert result.json["labels"] == ["O", "PER", "LOC"]
    lines = []
    for number, (row, written) in enumerate(zip(result.json["results"], texts, strict=True)):
        with torch.no_grad():
            logits = model(**tokenizer(written, return_tensors="pt", return_token_type_ids=False)).logits[0]
        assert [token["token"] for token in row["tokens"]] == written.split()
        for token, values in zip(row["tokens"], logits, strict=True):
            np.testing.assert_allclose(token["logits"], values.numpy(), rtol=1e-3, atol=1e-4)
            assert token["label"] == model.config.id2label[int(values.argmax())]
            assert token["score"] == pytest.approx(float(values.softmax(dim=0).max()), rel=1e-3)
            assert written[token["start"] : token["end"]] == token["token"]
            lines.append(f"[{number}] {token['token']} {token['label']} {token['score']:.4f}\n")
    assert text.out == "".join(lines)


def test_questions_are_answered_from_the_context(model_qeff, reader, tmp_path):
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    questions, context = ["my name is", "one two"], "three four five six seven eight nine"
    file = tmp_path / "context.txt"
    file.write_text(context, encoding="utf-8")
    argv = ["generate", reader, "--backend", "ort_sim", "--seq-len", "16", "--prompt", *questions]

    result, text = model_qeff(*argv, "--context", context, "--json"), model_qeff("-q", *argv, "--context-file", file)

    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(reader), AutoTokenizer.from_pretrained(reader)
    assert result.json["task"] == "question-answering"
    lines = []
    for number, (row, question) in enumerate(zip(result.json["results"], questions, strict=True)):
        with torch.no_grad():
            outputs = model(**tokenizer(question, context, return_tensors="pt"))
        skipped = len(question.split())
        start, end = (outputs[name][0, skipped:].softmax(dim=0) for name in ("start_logits", "end_logits"))
        scores = torch.triu(torch.outer(start, end))
        first, last = divmod(int(scores.argmax()), len(end))
        assert row["text"] == " ".join(context.split()[first : last + 1]) == context[row["start"] : row["end"]]
        assert row["score"] == pytest.approx(float(scores.max()), rel=1e-3)
        lines.append(f"[{number}] {row['text']} {row['score']:.4f}\n")
    assert text.out == "".join(lines)


def test_a_context_is_for_question_answering(model_qeff, reader, classifier):
    for model, extra, message in (
        (reader, (), "give it with --context TEXT"),
        (classifier, ("--context", "one"), "--context is for question answering"),
    ):
        result = model_qeff("generate", model, "--backend", "ort_sim", "--seq-len", "16", "--prompt", "two", *extra)
        assert result.code == 2
        assert message in result.err


def test_one_prompt_is_streamed_on_a_terminal(environment, toy_site, toy_artifact):
    environment["PYTHONPATH"] += f":{toy_site}"
    terminal, other_end = pty.openpty()
    argv = command("generate", toy_artifact, "--prompt", "one", "--max-new-tokens", "3")

    with subprocess.Popen(argv, env=environment, stdout=other_end, stderr=other_end) as process:
        os.close(other_end)
        shown = b"".join(iter(lambda: read(terminal), b"")).decode()
    os.close(terminal)

    assert process.returncode == 0
    live, _, rest = shown.partition("two three four")
    assert "\rloading the program for toy 0.0 s" in live
    assert live.endswith("\r"), "the live line is removed before the text begins"
    assert "time to first token" in rest


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux reports the end of a terminal as an error
        return b""


def test_an_answer_of_a_given_form(model_qeff, toy_artifact, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "foo"')
    argv = ["generate", toy_artifact, "--prompt", "one"]
    assert "the JSON schema in" in model_qeff(*argv, "--json-schema", schema).err
    schema.write_text('{"enum": [1, 2]}')
    for form in (["--json-schema", schema], ["--regex", "two"]):
        result = model_qeff(*argv, *form)
        assert result.code == 1
        # The schema has come as far as the tokenizer of words, whose tokens have no bytes.
        assert f"{form[0][2:].replace('-', '_')} cannot be used with this tokenizer" in result.err


def test_a_draft_model_gives_the_same_text_in_fewer_steps(model_qeff, llama, artifact):
    asked = ("--prompt", "my name is", "one two", "--max-new-tokens", 12, "--json")
    plain = model_qeff("generate", artifact, *asked).json
    options = ("--backend", "ort_sim", *PROGRAM_SIZES, "-O", "num_speculative_tokens=3")
    drafted = model_qeff("generate", llama, *options, "--draft", llama, *asked).json
    assert drafted["results"] == plain["results"]
    # The draft model is the model itself: what it proposes is right.
    assert drafted["metrics"]["drafts_accepted"] == drafted["metrics"]["drafts_proposed"] > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--draft", "./nowhere", "-O", "num_speculative_tokens=2"), "model folder ./nowhere does not exist"),
        (("--prompt-lookup-num-tokens", 2), "give num_speculative_tokens=2 (-O num_speculative_tokens=2)"),
        (("--regex", "("), "regex cannot be followed"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_no_program_could_follow_is_told_before_it_is_compiled(model_qeff, llama, options, told, monkeypatch):
    monkeypatch.setattr("qeff_framework.model.QEFFBaseModel.compile", lambda *_, **__: pytest.fail("compiled"))

    result = model_qeff("generate", llama, "--backend", "ort_sim", "--prompt", "one", *options)

    assert result.code in (1, 2)
    assert told in result.err


@pytest.mark.parametrize(
    ("verb", "program", "options", "message"),
    [
        ("generate", "llama", ("--backend", "ort_sim"), "compile the program with -O num_speculative_tokens=4"),
        (
            "serve",
            "artifact",
            ("--port", 0),
            "returns the logits of one token per step; compile the program with -O num_spec",
        ),
        ("chat", "llama", ("--prompt-lookup-num-tokens", 2), "both propose tokens; give one of the two"),
    ],
)
def test_drafts_that_cannot_be_checked(model_qeff, request, artifact, verb, program, options, message):
    prompt = ("--prompt", "one") if verb == "generate" else ()
    result = model_qeff(verb, request.getfixturevalue(program), "--draft", artifact, *options, *prompt)
    assert result.code == 2
    assert message in result.err
