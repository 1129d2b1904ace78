"""``qeff serve`` as a process of its own, with ort_sim."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.cli.conftest import command

PROMPTS = ["my name is", "one two three four five six", "ten"]


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """Its URL, the process, and what it has written."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QEFF_")}
    process = subprocess.Popen(
        command("serve", artifact, "--port", 0, "--api-key-env", "KEY", "--drain-seconds", 20),
        env={**environment, "KEY": "sesame"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
    reader.start()
    try:
        yield _url(process, lines), process, lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def _url(process: subprocess.Popen[str], lines: list[str]) -> str:
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        for line in list(lines):
            if "serving" in line and (found := re.findall(r"http://[^ ]+", line)):
                return str(found[0])
        time.sleep(0.02)
    raise AssertionError(lines)


def test_the_client_gets_what_generate_prints_and_sigterm_drains(server: Any, model_qeff: Any, artifact: Path) -> None:
    url, process, lines = server
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0)
    model = client.models.list().data[0].id
    answer = client.completions.create(model=model, prompt=PROMPTS, max_tokens=6)
    printed = model_qeff("generate", artifact, "--prompt", *PROMPTS[:2], "--max-new-tokens", 6, "--json").json
    assert [choice.text for choice in answer.choices][:2] == [result["text"] for result in printed["results"]]

    stream = client.completions.create(
        model=model, prompt=PROMPTS[0], max_tokens=20, stream=True, extra_body={"ignore_eos": True}
    )
    pieces = [next(iter(stream))]
    process.send_signal(signal.SIGTERM)
    pieces += list(stream)
    assert pieces[-1].choices[0].finish_reason == "length"
    assert process.wait(30) == 0, lines
    told = "".join(lines)
    assert '"path": "/v1/completions", "status": 200' in told
    assert '"completion_tokens": 20' in told
    assert "Traceback" not in told
    assert "sesame" not in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--api-key-env", "NO_SUCH_KEY"), "--api-key-env NO_SUCH_KEY: the key is missing"),
        (("--api-key-file", "/nowhere/key"), "the file cannot be read"),
        (("--max-queue", "0"), "--max-queue=0 must be above 0"),
        (("--port", "70000"), "--port 70000 must be from 0 to 65535"),
        (("--host", "203.0.113.7"), "the address cannot be used"),
        (("--max-model-len", "-1", "--port", "0"), "max_model_len=-1 must be at least 1"),
    ],
)
def test_wrong_usage(model_qeff: Any, artifact: Path, options: tuple[str, ...], message: str) -> None:
    result = model_qeff("serve", artifact, *options)
    assert result.code == 2
    assert message in result.err


def test_without_the_extra_the_command_says_what_to_install(
    model_qeff: Any, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("qeff_framework.cli.serve._PACKAGES", ("no_such_package",))
    result = model_qeff("serve", artifact)
    assert result.code == 2
    assert "qeff serve needs no_such_package, not installed here: pip install 'qeff-framework[serve]'" in result.err


def test_nothing_of_the_server_is_imported_by_the_engines() -> None:
    code = "import sys, qeff_framework.serving; print([n for n in ('fastapi', 'uvicorn', 'torch', 'onnx') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
