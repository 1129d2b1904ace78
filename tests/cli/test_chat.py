"""``qeff chat``: the conversation grows, and each answer is that of ``qeff generate`` for the messages so far."""

from __future__ import annotations

import io
import json

import pytest

from qeff_framework.serving import Engine
from tests.checkpoints import save_tiny_checkpoint


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def chat(model_qeff, toy_artifact, monkeypatch):
    def run(*argv, lines, stdin=io.StringIO):
        monkeypatch.setattr("sys.stdin", stdin("".join(f"{line}\n" for line in lines)))
        return model_qeff("chat", toy_artifact, *argv)

    return run


def messages(result):
    return [(message["role"], message["content"]) for message in result.json["messages"]]


def test_each_answer_is_that_of_generate_for_the_messages_so_far(chat, model_qeff, toy_artifact, tmp_path):
    result = chat("--system", "ten", "--max-new-tokens", 3, "--json", lines=["one", "", "five"])

    assert result.code == 0, result.err
    told = result.json["messages"]
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user", "assistant"]
    for place in (2, 4):
        (tmp_path / "messages.json").write_text(json.dumps(told[:place]))
        argv = ["--messages-file", tmp_path / "messages.json", "--max-new-tokens", 3, "--json"]
        alone = model_qeff("generate", toy_artifact, *argv)
        assert alone.json["results"][0]["text"] == told[place]["content"]


def test_commands_of_the_conversation(chat):
    lines = ["one", "/reset", "/system two", "three", "/unknown", "/help", "//five", "/exit", "never"]
    result = chat("--system", "ten", "--max-new-tokens", 2, "--json", lines=lines)

    assert result.code == 0
    assert [entry for entry in messages(result) if entry[0] != "assistant"] == [
        ("system", "two"),
        ("user", "three"),
        ("user", "/five"),
    ]
    assert "there is no command '/unknown'" in result.err
    reset = chat("--system", "ten", "--max-new-tokens", 2, "--json", lines=["one", "/reset", "three", "/system"])
    assert messages(reset) == []


def test_answers_are_printed_and_what_does_not_fit_is_told(chat):
    result = chat("--max-new-tokens", 2, lines=["one", "one " * 40, "two"])

    assert result.code == 1
    assert len(result.out.splitlines()) == 2
    assert "/reset begins anew" in result.err
    assert "1 messages were not answered" in result.err


def test_a_message_of_several_lines(chat):
    lines = ['"""one', "  /reset", '"""', '"""two"""', '""" """', '"""three', "four"]
    result = chat("--max-new-tokens", 2, "--json", lines=lines)
    assert [text for role, text in messages(result) if role == "user"] == ["one\n  /reset", "two", "three\nfour"]


def test_an_interruption_ends_the_answer_and_the_conversation_goes_on(chat, monkeypatch):
    stream = Engine.stream

    def interrupted(engine, number):
        for count, piece in enumerate(stream(engine, number)):
            if count == 1:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(Engine, "stream", interrupted)
    result = chat("--max-new-tokens", 5, lines=["one", "five"], stdin=Terminal)
    assert result.code == 0
    # One token of each answer.
    assert len(result.out.split()) == 2
    # Not at a terminal, an interruption ends the command.
    assert chat("--max-new-tokens", 5, lines=["one"]).code == 130


def test_a_checkpoint_without_a_template_says_so(chat, toy_artifact, monkeypatch):
    monkeypatch.setattr("qeff_framework.tokenization.tokenizer._read_templates", lambda directory, config: None)
    result = chat(lines=["one"])

    assert result.code == 1
    assert f"{toy_artifact} has no chat template" in result.err


def test_a_checkpoint_without_a_template_is_refused_before_any_work(qeff, tmp_path):
    folder = save_tiny_checkpoint(tmp_path / "tiny")
    for _ in range(2):  # The second time it is known without the tokenizer.
        result = qeff("chat", folder, "--backend", "ort_sim")
        assert result.code == 1
        assert "tiny has no chat template" in result.err
    assert not (tmp_path / "home" / "exports").exists()
