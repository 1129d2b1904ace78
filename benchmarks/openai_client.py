"""OpenAI's client against `qeff serve`: whether it gets the texts of `qeff generate` and the vectors of `load_compiled`.

    python benchmarks/openai_client.py [--text CHECKPOINT] [--chat CHECKPOINT] [--embeddings CHECKPOINT] [--backend ort_sim]

`--text` is for completions, `--chat` for a checkpoint with a chat template, `--embeddings` for an encoder with pooling. Each is
compiled and served by a process of its own, and each check prints a line. The exit code is 1 when one of them failed. Needs the
extras `serve` and `guided`, and the package openai.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
from serve_load import serving

PROMPTS = ["The capital of France is", "Once upon a time there was"]
MESSAGES: Any = [{"role": "user", "content": "Tell me a number."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "year": {"type": "integer", "maximum": 9999}},
    "required": ["name", "year"],
    "additionalProperties": False,
}
LENGTH = 40
FORM: Any = {"type": "json_schema", "json_schema": {"name": "fact", "schema": SCHEMA}}


class Checks:
    """What was compared."""

    def __init__(self) -> None:
        self.failed = 0

    def equal(self, name: str, found: object, expected: object) -> None:
        """Prints a line."""
        same = found == expected
        self.failed += not same
        print(f"{'equal ' if same else 'OTHER '} {name}: {str(found)[:90]!r}" + ("" if same else f", not {expected!r}"))


def main() -> int:
    """Compiles, serves, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds: dict[str, Callable[[str, Checks, Path], None]] = {"text": texts, "chat": chat, "embeddings": embeddings}
    for name in kinds:
        parser.add_argument(f"--{name}", metavar="CHECKPOINT")
    parser.add_argument("--backend", default="ort_sim")
    arguments = parser.parse_args()
    checks = Checks()
    for name, check in kinds.items():
        if (checkpoint := getattr(arguments, name)) is not None:
            sizes = ["--full-batch-size", "2", "--prefill-seq-len", "16", "--ctx-len", "128"]
            sizes = ["-O", "seq_len=64"] if name == "embeddings" else sizes
            told = command("compile", checkpoint, "--backend", arguments.backend, *sizes)
            with tempfile.TemporaryDirectory() as directory:
                schema = Path(directory) / "schema.json"
                schema.write_text(json.dumps(SCHEMA))
                check(told["directory"], checks, schema)
    print(f"{checks.failed} checks failed")
    return int(checks.failed > 0)


def command(*words: str) -> Any:
    """What a subcommand of `qeff` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "qeff_framework", "-q", *words, "--json"], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def generated(artifact: str, *words: str) -> list[str]:
    """The texts of `qeff generate`."""
    told = command("generate", artifact, "--max-new-tokens", str(LENGTH), *words)
    return [result["text"] for result in told["results"]]


def texts(artifact: str, checks: Checks, schema: Path) -> None:
    """Completions: whole, streamed, with stop strings and a schema."""
    expected = generated(artifact, "--prompt", *PROMPTS)
    with serving(artifact) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        asked: Any = {"model": client.models.list().data[0].id, "max_tokens": LENGTH}
        answer = client.completions.create(prompt=PROMPTS, **asked)
        checks.equal("completions", [choice.text for choice in answer.choices], expected)
        pieces = client.completions.create(prompt=PROMPTS[0], stream=True, **asked)
        checks.equal("completion, streamed", "".join(piece.choices[0].text for piece in pieces), expected[0])
        stop = expected[0][4:7]
        cut = client.completions.create(prompt=PROMPTS[0], stop=[stop], **asked).choices[0]
        checks.equal(
            f"completion, stop={stop!r}", (cut.text, cut.finish_reason), (expected[0].partition(stop)[0], "stop")
        )
        form = client.completions.create(prompt="JSON: ", extra_body={"response_format": FORM}, **asked).choices[0].text
        checks.equal(
            "completion by a JSON schema",
            form,
            generated(artifact, "--prompt", "JSON: ", "--json-schema", str(schema))[0],
        )


def chat(artifact: str, checks: Checks, schema: Path) -> None:
    """Conversations: whole, streamed, with a schema."""
    prompt = ["--chat", "--prompt", MESSAGES[0]["content"]]
    expected = generated(artifact, *prompt)[0]
    with serving(artifact) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        asked: Any = {"model": client.models.list().data[0].id, "messages": MESSAGES, "max_tokens": LENGTH}
        checks.equal("chat", client.chat.completions.create(**asked).choices[0].message.content, expected)
        pieces = client.chat.completions.create(stream=True, **asked)
        checks.equal("chat, streamed", "".join(piece.choices[0].delta.content or "" for piece in pieces), expected)
        form = client.chat.completions.create(response_format=FORM, **asked).choices[0].message.content
        checks.equal("chat by a JSON schema", form, generated(artifact, *prompt, "--json-schema", str(schema))[0])


def embeddings(artifact: str, checks: Checks, _: Path) -> None:
    """Vectors as numbers and in base64."""
    from qeff_framework import load_compiled

    with load_compiled(artifact) as program:
        expected = [[float(value) for value in row] for row in program.generate(PROMPTS)]
    with serving(artifact) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        for form in ("float", "base64"):
            answer = client.embeddings.create(model="model", input=PROMPTS, encoding_format=form)  # type: ignore[arg-type]
            vectors: Any = [item.embedding for item in answer.data]
            checks.equal(f"embeddings, {form}", [decoded(vector) for vector in vectors], expected)


def decoded(vector: Any) -> list[float]:
    """The numbers of a vector, also of one in base64."""
    import base64

    import numpy as np

    return vector if isinstance(vector, list) else np.frombuffer(base64.b64decode(vector), "<f4").tolist()


if __name__ == "__main__":
    raise SystemExit(main())
