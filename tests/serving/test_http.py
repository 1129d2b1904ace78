"""OpenAI's interface over a fake program: what the official client gets, what is refused, what is shown."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from qeff_framework.runtime import CompiledClassifier, CompiledEncoder
from qeff_framework.serving.http.guard import Limits
from qeff_framework.serving.http.protocol import ChatRequest, CompletionRequest
from tests.generation.fakes import FakeEncoder
from tests.serving.programs import program
from tests.serving.running import HEADERS, KEY, Served, serving

USER: Any = [{"role": "user", "content": "The fox"}]
GREEDY = {"model": "tiny", "max_tokens": 12}


@pytest.fixture(scope="module")
def served(artifact: Path) -> Iterator[Served]:
    runner = program(artifact, lanes=2, slots=3)
    with serving(runner, limits=Limits(body_bytes=20_000, body_seconds=0.5)) as server:
        yield server


@pytest.fixture(scope="module")
def alone(artifact: Path) -> Any:
    """``generate`` of the same program."""
    runner = program(artifact)
    return lambda prompts, **settings: runner.generate(prompts=prompts, **settings)


def test_completions_are_those_of_generate(served: Served, alone: Any) -> None:
    prompts = ["The quick brown fox", "It's what"]
    expected = alone(prompts, max_new_tokens=12)
    answer = served.client.completions.create(prompt=prompts, **GREEDY)
    assert [choice.text for choice in answer.choices] == expected.generated_texts
    assert [choice.finish_reason for choice in answer.choices] == [
        "stop" if reason == "eos" else reason for reason in expected.finish_reasons
    ]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(expected.prompt_lengths)
    assert answer.usage.completion_tokens == sum(map(len, expected.generated_ids))
    ids = served.client.completions.create(prompt=[5, 6, 7], **GREEDY)
    assert ids.choices[0].text == alone([[5, 6, 7]], max_new_tokens=12).generated_texts[0]

    texts: dict[int, str] = {0: "", 1: ""}
    pieces = list(
        served.client.completions.create(prompt=prompts, stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    for piece in pieces[:-1]:
        texts[piece.choices[0].index] += piece.choices[0].text
    assert list(texts.values()) == expected.generated_texts
    assert pieces[-1].usage == answer.usage or pieces[-1].usage.total_tokens == answer.usage.total_tokens


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_reads_answers_and_streams(served: Served, alone: Any) -> None:
    def curl(body: dict[str, Any]) -> str:
        headers = [word for name, value in HEADERS.items() for word in ("-H", f"{name}: {value}")]
        command = ["curl", "-sS", "--fail", "-N", f"{served.url}/v1/completions", *headers, "-d", json.dumps(body)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    (expected,) = alone("The fox", max_new_tokens=12).generated_texts
    assert json.loads(curl({**GREEDY, "prompt": "The fox"}))["choices"][0]["text"] == expected
    events = curl({**GREEDY, "prompt": "The fox", "stream": True}).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == expected


def test_chat_is_rendered_by_the_template(served: Served, alone: Any) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    for options in ({}, {"tools": tools}):
        expected = alone(USER, max_new_tokens=12, **options)
        answer = served.client.chat.completions.create(messages=USER, **options, **GREEDY)
        assert answer.choices[0].message.content == expected.generated_texts[0]
        assert answer.choices[0].message.role == "assistant"
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "The fox"}]}]
    pieces = list(served.client.chat.completions.create(messages=parts, stream=True, **GREEDY))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert (
        "".join(piece.choices[0].delta.content or "" for piece in pieces)
        == alone(USER, max_new_tokens=12).generated_texts[0]
    )
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")


def test_samples_seeds_and_stops(served: Served, alone: Any) -> None:
    sampled: dict[str, Any] = {"temperature": 0.8, "seed": 7, "n": 3, "extra_body": {"top_k": 20}}
    answer = served.client.chat.completions.create(messages=USER, **sampled, **GREEDY)
    expected = [
        alone([USER] * 2, max_new_tokens=12, do_sample=True, temperature=0.8, top_k=20, seed=7).generated_texts[i]
        for i in range(2)
    ]
    texts = [choice.message.content for choice in answer.choices]
    assert texts[:2] == expected
    assert len(set(texts)) == 3
    whole = served.client.completions.create(prompt="The fox", **GREEDY).choices[0].text
    # As most clients ask for the most likely tokens.
    cold = served.client.completions.create(prompt="The fox", temperature=0, top_p=0.5, seed=1, **GREEDY)
    assert cold.choices[0].text == whole
    cut = served.client.completions.create(prompt="The fox", stop=[whole[3:6]], **GREEDY).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[:3], "stop")
    banned = served.client.completions.create(
        prompt="The fox",
        logit_bias={str(t): -100 for t in alone("The fox", max_new_tokens=1).generated_ids[0]},
        **GREEDY,
    )
    assert banned.choices[0].text != whole


def test_answers_follow_their_response_format(served: Served, alone: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 999}}, "required": ["n"]}
    schema["additionalProperties"] = False
    form: Any = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema, "strict": True}}
    asked: Any = {"model": "tiny", "max_tokens": 60}
    expected = alone(USER, max_new_tokens=60, json_schema=schema).generated_texts[0]
    chat = served.client.chat.completions.create(messages=USER, response_format=form, **asked)
    assert chat.choices[0].message.content == expected
    assert isinstance(json.loads(expected)["n"], int)
    text = served.client.completions.create(prompt="x", extra_body={"response_format": form}, **asked)
    assert list(json.loads(text.choices[0].text)) == ["n"]
    word = served.client.completions.create(prompt="x", extra_body={"regex": "fox|dog"}, **asked)
    assert word.choices[0].text in ("fox", "dog")
    penalized = served.client.completions.create(prompt="x", presence_penalty=1.5, frequency_penalty=1, **GREEDY)
    same = alone(["x"], presence_penalty=1.5, frequency_penalty=1, max_new_tokens=12)
    assert penalized.choices[0].text == same.generated_texts[0]


def test_log_probabilities(served: Served) -> None:
    chat = served.client.chat.completions.create(messages=USER, logprobs=True, top_logprobs=2, **GREEDY)
    entries = chat.choices[0].logprobs
    assert entries is not None
    assert entries.content is not None
    assert chat.usage is not None
    assert len(entries.content) == chat.usage.completion_tokens
    for entry in entries.content:
        # Greedy: the chosen token is the most likely one.
        assert entry.logprob == entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        assert 0 < np.exp(entry.logprob) <= 1
    joined = b"".join(bytes(entry.bytes or ()) for entry in entries.content)
    assert (chat.choices[0].message.content or "") in joined.decode(errors="replace")
    text = served.client.completions.create(prompt="The fox", logprobs=3, **GREEDY).choices[0].logprobs
    assert text is not None
    assert text.tokens is not None
    assert text.token_logprobs is not None
    assert text.top_logprobs is not None
    assert [top[token] for token, top in zip(text.tokens, text.top_logprobs, strict=True)] == text.token_logprobs
    assert text.text_offset == sorted(text.text_offset or ())
    # Of a token that is chosen although it is not among the most likely ones as well, and on through the pieces of a stream.
    biased = {"prompt": "The fox", "logprobs": 0, "logit_bias": {"70": 100}, **GREEDY}
    whole = served.client.completions.create(**biased).choices[0].logprobs
    assert whole is not None
    assert [list(top or ()) for top in whole.top_logprobs or ()] == [[token] for token in whole.tokens or ()]
    pieces = [piece.choices[0].logprobs for piece in served.client.completions.create(stream=True, **biased)]
    assert [offset for piece in pieces if piece for offset in piece.text_offset or ()] == whole.text_offset


def test_models_health_metrics_and_the_page(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == ["tiny"]
    assert served.client.models.retrieve("tiny").id == "tiny"
    assert served.send("GET", "/health")[::2] == (200, {"status": "ok"})
    assert served.send("GET", "/ready")[::2] == (200, {"ready": True})
    numbers = served.send("GET", "/metrics")[2].decode()
    assert "qeff_places 2.0" in numbers
    assert 'qeff_requests_total{path="/v1/models",status="200"}' in numbers
    status, headers, page = served.send("GET", "/", headers={"authorization": ""})
    assert (status, b"page.js" in page) == (200, True)
    assert headers["content-security-policy"].startswith("default-src 'none'")
    for name in ("page.js", "page.css"):
        assert b"://" not in served.send("GET", f"/{name}")[2], "no other host is contacted"
    assert served.send("GET", "/health", headers={"x-request-id": "abc-1"})[1]["x-request-id"] == "abc-1"


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"model": "other"}, "model", "'other' is not served here; 'tiny' is"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 300}, "n", "less than or equal"),
        ({"max_tokens": 1000}, None, "more than"),
        ({"temperature": -1}, "temperature", "greater"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"frequency_penalty": 3}, "frequency_penalty", "less than or equal to 2"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema belongs to the type"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "'text', 'json_object' or 'json_schema'"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "foo"}}}},
            None,
            "Invalid type: foo",
        ),
        ({"best": 1}, "best", "not permitted"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"content": "x"}]}, "body", "each message needs a role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, "reads text only"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "body", "surrogate"),
        ({"logit_bias": {"x": 1}}, "body", "is no token id"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "logit_bias holds the token ids 99999"),
        ({"stop": [""]}, "stop", "stop holds an empty string"),
        ({"logprobs": 0}, "body", "logprobs must be true or false, and is 0"),
        ({"store": True}, "body", "store=true is not supported"),
        ({"service_tier": "flex"}, "body", "service_tier can be 'auto' or 'default'"),
        ({"tools": [{}], "parallel_tool_calls": False}, "body", "parallel_tool_calls=false is not supported"),
        ({"stop": [3]}, "stop", "stop: must be a text or a list of 16 texts at most"),
        ({"max_tokens": True}, "body", "max_tokens must be a number, and is true"),
        ({"temperature": False}, "body", "temperature must be a number, and is false"),
        ({"logprobs": True, "top_logprobs": True}, "body", "top_logprobs must be a number, and is true"),
        ({"stream_options": {}}, "body", "stream=true"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "body",
            "include_obfuscation is not supported",
        ),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "body", "two names of one limit"),
        ({"chat_template_kwargs": {"no_such_variable": 1}}, None, "does not read 'no_such_variable'"),
        ({"chat_template_kwargs": {"tools": []}}, None, "chat_template_kwargs holds tools, which is given"),
        ({"messages": [{"role": "user", "contents": "x"}]}, None, "has no 'content'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_openais_form(
    served: Served, change: dict[str, Any], param: str | None, message: str
) -> None:
    status, _, answer = served.send("POST", "/v1/chat/completions", {**GREEDY, "messages": USER, **change})
    assert status == (404 if "model" in change else 400)
    assert set(answer) == {"error"}
    assert message in answer["error"]["message"]
    assert answer["error"]["param"] == param
    assert "Traceback" not in json.dumps(answer)


@pytest.mark.parametrize("prompt", [[], [[]], [True], ["a", [3]], [-1], 3, {"text": "a"}])
def test_the_forms_of_a_prompt_are_told_in_one_sentence(served: Served, prompt: Any) -> None:
    error = served.send("POST", "/v1/completions", {"model": "tiny", "prompt": prompt})[2]["error"]
    assert error["param"] == "prompt"
    assert error["message"] == (
        "prompt: must be a text, a list of texts, a list of token ids or a list of such lists, and no list may be empty"
    )


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b'{"model" "tiny"}', {}, "the body is no valid JSON: Expecting ':' delimiter at character 9"),
        (b"[]", {}, "the body is JSON, but no object"),
        (
            b'{"model": "tiny", "prompt": "a"}',
            {"content-type": "application/x-www-form-urlencoded"},  # curl's own for --data
            "the body must be JSON, and the header says 'application/x-www-form-urlencoded'; send it with 'Content-Type: ",
        ),
        (
            b'{"model": "tiny", "prompt": "a"}',
            {"content-type": ""},
            "the body must be JSON, and no header says so; send",
        ),
    ],
)
def test_a_body_that_is_not_read_is_told(served: Served, body: bytes, headers: dict[str, str], message: str) -> None:
    status, _, answer = served.send("POST", "/v1/completions", body, headers)
    assert status == 400
    assert answer["error"]["message"].startswith(message)
    assert answer["error"]["param"] is None


def test_null_is_what_is_not_set(served: Served) -> None:
    body = {"model": "tiny", "prompt": "a"}
    unset = {"max_tokens": None, "n": None, "stream": None, "echo": None, "stop": None}
    answers = [served.send("POST", "/v1/completions", asked)[2] for asked in (body, body | unset)]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_the_client_raises_its_own_errors(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        served.client.completions.create(model="x", prompt="a")
    with pytest.raises(openai.BadRequestError, match="300 prompts with n=1 are more than the 256 answers"):
        served.client.completions.create(prompt=["a"] * 300, model="tiny")
    with pytest.raises(openai.BadRequestError, match="leaves no room"):
        served.client.completions.create(prompt=[5] * 160, model="tiny")
    with pytest.raises(openai.AuthenticationError, match="API key is wrong"):
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0).models.list()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/v1/models", None, {"authorization": ""}, 401),
        ("GET", "/v1/models", None, {"authorization": f"Basic {KEY}"}, 401),
        ("GET", "/metrics", None, {"authorization": "Bearer "}, 401),
        ("POST", "/v1/completions", {"model": "tiny", "prompt": "a"}, {"origin": "https://evil.example"}, 403),
        ("GET", "/health", None, {"host": "evil.example"}, 403),
        ("GET", "/health", None, {"host": "[x]"}, 403),
        ("GET", "/health", None, {"origin": "http://["}, 403),
        ("GET", "/health", None, {"origin": "null"}, 403),
        ("GET", "/../../etc/passwd", None, {}, 404),
        ("GET", "/page/%2e%2e/app.py", None, {}, 404),
        ("GET", "/v1/models/..%2f..%2fetc", None, {}, 404),
        ("GET", "/docs", None, {}, 404),
        ("GET", "/v1/completions", None, {}, 405),
        ("POST", "/v1/completions", b"{", {}, 400),
        ("POST", "/v1/completions", b"{", {"content-type": "text/plain"}, 400),
        ("POST", "/v1/completions", b"\xff\xfe", {}, 400),
        ("POST", "/v1/completions", b"[" * 9000, {}, 400),
        ("POST", "/v1/completions", b"[]", {}, 400),
        ("POST", "/v1/completions", b'{"model": "tiny", "prompt": []}', {}, 400),
        ("POST", "/v1/completions", b'{"model": "tiny", "prompt": "a", "temperature": 1e-320}', {}, 400),
        ("POST", "/v1/completions", b"x" * 20_001, {}, 413),
        ("POST", "/v1/embeddings", {"model": "tiny", "input": "a"}, {}, 404),
    ],
)
def test_strangers_and_nonsense_are_refused(
    served: Served, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    got, _, answer = served.send(method, path, body, headers)
    assert got == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_a_body_of_no_stated_length_is_cut_off_where_it_is_too_large(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.request("POST", "/v1/completions", iter([b"x" * 9_000] * 3), HEADERS, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_slow_sender_is_cut_off(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 9\r\n\r\n"
        connection.sendall(head.encode() + b"{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_client_that_hangs_up_frees_its_row_and_a_full_queue_is_429(artifact: Path) -> None:
    with serving(program(artifact, lanes=1, delay=0.01, ctx_len=2000), max_queue=1) as served:

        def number(name: str) -> float:
            lines = served.send("GET", "/metrics")[2].decode().splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

        def wait_for(name: str, value: float) -> None:
            end = time.monotonic() + 5
            while number(name) != value:
                assert time.monotonic() < end, f"{name} is {number(name)}"
                time.sleep(0.02)

        endless: Any = {"model": "tiny", "prompt": "a", "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
        stream = served.client.completions.create(stream=True, **endless)
        next(iter(stream))
        waiting = served.client.completions.create(stream=True, **endless)
        wait_for("qeff_answers_waiting", 1)
        with pytest.raises(openai.RateLimitError, match="max_queue=1"):
            served.client.completions.create(**endless)
        stream.close()
        next(iter(waiting))
        waiting.close()
        wait_for("qeff_answers_running", 0)
        # Not streamed: the connection is closed while the answer is computed.
        body = json.dumps({**endless, "ignore_eos": True, "extra_body": None}).replace(', "extra_body": null', "")
        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        connection.request("POST", "/v1/completions", body, HEADERS)
        wait_for("qeff_answers_running", 1)
        connection.close()
        wait_for("qeff_answers_running", 0)
        short = served.client.completions.create(
            model="tiny", prompt="a", max_tokens=900, timeout=5, extra_body={"timeout": 0.2, "ignore_eos": True}
        )
        assert short.choices[0].finish_reason == "length"
        assert short.usage is not None
        assert short.usage.completion_tokens < 100


def test_a_failing_program_is_an_error_without_details(artifact: Path) -> None:
    runner = program(artifact)
    session: Any = runner.session
    with serving(runner) as served:
        good = served.client.completions.create(prompt="The fox", **GREEDY).choices[0].text
        session.fail_at = (len(session.steps) + 3, RuntimeError("secret"))
        with pytest.raises(openai.APIError, match="log has the reason") as caught:
            list(served.client.completions.create(prompt="The fox", stream=True, **GREEDY))
        assert "secret" not in str(caught.value)
        session.fail_at = (len(session.steps) + 1, RuntimeError("secret"))
        with pytest.raises(openai.InternalServerError, match="log has the reason"):
            served.client.completions.create(prompt="The fox", **GREEDY)
        session.fail_at = None
        assert served.client.completions.create(prompt="The fox", **GREEDY).choices[0].text == good


def test_embeddings_and_rerank(artifact: Path) -> None:
    from dataclasses import replace

    session = FakeEncoder(seq_lens=(16,), pooled=True, vocab_size=1000)
    session.compiled = replace(session.compiled, directory=artifact)
    runner = CompiledEncoder(session)
    texts = ["The fox", "It's what"]
    expected = runner.generate(texts)
    with serving(runner) as served:
        for form in ("float", "base64"):
            answer = served.client.embeddings.create(model="tiny", input=texts, encoding_format=form)  # type: ignore[arg-type]
            np.testing.assert_array_equal(_vectors(answer, form), expected)
        default = served.client.embeddings.create(model="tiny", input=texts)
        np.testing.assert_array_equal([item.embedding for item in default.data], expected)
        ranked = served.send("POST", "/v1/rerank", {"model": "tiny", "query": texts[0], "documents": texts[::-1]})[2]
        assert ranked["results"][0] == {"index": 1, "relevance_score": pytest.approx(1)}
        assert ranked["results"][1]["relevance_score"] < 1
        long = served.send("POST", "/v1/embeddings", {"model": "tiny", "input": "fox " * 60})
        assert long[0] == 400
        assert served.send("POST", "/v1/classify", {"model": "tiny", "input": "a"})[0] == 404
    # A checkpoint of sentence-transformers has prompts for both, and may compare embeddings otherwise.
    stated = {"prompts": {"query": "It's ", "document": "The "}, "default_prompt": "fox ", "similarity": "dot"}
    session.compiled = replace(session.compiled, metadata={"texts": stated})
    runner = CompiledEncoder(session)
    query, document = runner.generate(["It's what", "The fox"], prompt="")
    with serving(runner) as served:
        ranked = served.send("POST", "/v1/rerank", {"model": "tiny", "query": "what", "documents": ["fox"]})[2]
    assert ranked["results"][0]["relevance_score"] == pytest.approx(float(query @ document), rel=1e-5)


def _vectors(answer: Any, form: str) -> Any:
    import base64

    vectors = [item.embedding for item in answer.data]
    return vectors if form == "float" else [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]


def test_classes(artifact: Path) -> None:
    from dataclasses import replace

    session = FakeEncoder(seq_lens=(16,), pooled=True, vocab_size=1000)
    outputs = (replace(session.compiled.outputs[0], shape=("batch_size", 3)),)
    session.compiled = replace(session.compiled, directory=artifact, task="sequence-classification", outputs=outputs)
    with serving(CompiledClassifier(session)) as served:
        answer = served.send("POST", "/v1/classify", {"model": "tiny", "input": ["The fox", "a"]})[2]
        assert [set(item["scores"]) for item in answer["data"]] == [{"LABEL_0", "LABEL_1", "LABEL_2"}] * 2
        assert sum(answer["data"][0]["scores"].values()) == pytest.approx(1)
        refused = served.send("POST", "/v1/rerank", {"model": "tiny", "query": "a", "documents": ["b"]})
        assert refused[0] == 400
        assert "one label" in refused[2]["error"]["message"]


def test_a_classifier_with_one_label_reads_query_and_document_together(artifact: Path) -> None:
    from dataclasses import replace

    session = FakeEncoder(
        seq_lens=(32,), pooled=True, inputs=("input_ids", "attention_mask", "token_type_ids"), vocab_size=1000
    )
    outputs = (replace(session.compiled.outputs[0], shape=("batch_size", 1)),)
    session.compiled = replace(session.compiled, directory=artifact, task="sequence-classification", outputs=outputs)
    run = session.run
    # One number for each pair: its tokens, of query and document together.
    session.run = lambda inputs: {"out": np.sqrt(run(inputs)["out"][:, 2:]) - 12}  # type: ignore[method-assign]
    documents = ["fox", "The quick brown fox jumps over", "The fox"]
    with serving(CompiledClassifier(session)) as served:
        body = {"model": "tiny", "query": "The fox", "documents": documents, "top_n": 2, "return_documents": True}
        results = served.send("POST", "/v1/rerank", body)[2]["results"]
    tokenizer = AutoTokenizer.from_pretrained(artifact / "tokenizer")
    counts = [len(tokenizer("The fox", document)["input_ids"]) for document in documents]
    scores = [1 / (1 + np.exp(12 - count)) for count in counts]
    order = sorted(range(3), key=lambda index: -scores[index])[:2]
    assert [result["index"] for result in results] == order == [1, 2]
    assert [result["relevance_score"] for result in results] == pytest.approx([scores[index] for index in order])
    assert results[0]["document"] == {"text": documents[1]}
    # A CrossEncoder of sentence-transformers may say that its scores are the logits.
    session.compiled = replace(session.compiled, metadata={"score_activation": "Identity"})
    with serving(CompiledClassifier(session)) as served:
        results = served.send("POST", "/v1/rerank", body)[2]["results"]
        assert [result["relevance_score"] for result in results] == pytest.approx(
            [counts[index] - 12 for index in order]
        )
    session.compiled = replace(session.compiled, metadata={"score_activation": "Tanh"})
    with serving(CompiledClassifier(session)) as served:
        refused = served.send("POST", "/v1/rerank", body)
    assert refused[0] == 400
    assert "ranks by the activation Tanh" in refused[2]["error"]["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("tiny"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({*CompletionRequest.model_fields, *ChatRequest.model_fields})


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    page=st.sampled_from(["completions", "chat/completions"]),
    changes=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3),
    raw=st.none() | st.binary(max_size=40),
)
def test_no_request_makes_the_server_fail(
    served: Served, page: str, changes: dict[str, Any], raw: bytes | None
) -> None:
    content: Any = {"prompt": "a"} if page == "completions" else {"messages": USER}
    body: Any = raw if raw is not None else {"model": "tiny", "max_tokens": 2, **content, **changes}
    status, _, answer = served.send("POST", f"/v1/{page}", body)
    assert status in (200, 400, 404, 413), answer
    assert isinstance(answer, bytes) or ("error" in answer) == (status != 200)
