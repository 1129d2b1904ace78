"""A fake program with a tokenizer and a chat template, for tests of what stands above the scheduler."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from qeff_framework.artifacts import Manifest
from qeff_framework.runtime import CompiledCausalLM
from tests.generation.fakes import FakeCausalLM, FakeContinuous, FakeSpeculative, worse
from tests.tokenizer_folders import byte_level_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
VOCAB = 330


def write_artifact(directory: Path) -> Path:
    """What generation reads of an artifact beside the program."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), bos_token="<bos>", eos_token="<eos>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(directory / "tokenizer")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    Manifest.describe(directory, kind="compiled", key="fake", key_parts={}, label="fake").save(directory)
    return directory


def drafted(
    directory: Path, drafts: int | tuple[int, ...], *, lanes: int = 2, slots: int | None = None, share: int = 0
) -> CompiledCausalLM:
    """A program of a small vocabulary, without a tokenizer; `share` of ten of its tokens are not the model's."""
    session = FakeSpeculative(drafts, rows=lanes, slots=slots, model=worse(share), ctx_len=64)
    session.compiled = replace(session.compiled, directory=directory)
    return CompiledCausalLM(session)


def program(
    directory: Path, *, lanes: int = 2, slots: int | None = None, delay: float = 0.0, ctx_len: int = 160
) -> CompiledCausalLM:
    """`slots`: with continuous batching. `delay`: seconds that a step takes."""

    def slowed(session: FakeCausalLM) -> FakeCausalLM:
        run = session.run

        def slow(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            time.sleep(delay)
            return run(inputs)

        if delay:
            session.run = slow  # type: ignore[method-assign]
        return session

    session: FakeCausalLM = (
        FakeContinuous(lanes, slots, 8, ctx_len, vocab=VOCAB) if slots else FakeCausalLM(lanes, 8, ctx_len, vocab=VOCAB)
    )
    session.compiled = replace(session.compiled, directory=directory)
    return CompiledCausalLM(slowed(session))
