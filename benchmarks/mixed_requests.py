"""Continuous batching beside static batches: 32 requests with prompts and answers of unequal length.

    python benchmarks/mixed_requests.py CHECKPOINT [--backend ort_sim] [--precision w8] [--batch-size 4 8 16] [--rounds 3]
        [--threads 2] [--prefill-seq-len 32]

Static batches take the requests in the order in which they came, as many at a time as the program has rows, and end with their
longest answer; what is counted are the tokens that were asked for. Continuous batching gives the place of an answer that has
ended to the next request. The rounds go through all programs in turn; the result is the ratio of the medians to that of the best
static batch size, by time and by processor time, which is what can be used on a machine that does other work.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

REQUESTS = 32
#: Shortest and longest: of prompts, and of answers.
PROMPT_TOKENS, NEW_TOKENS = (8, 96), (8, 128)
CONTEXT = 256


def main() -> int:
    """Compiles, measures, prints a line for each program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder, .gguf file or hub id of a causal language model with a tokenizer")
    parser.add_argument("--backend", default="ort_sim")
    parser.add_argument("--precision", help="an option of the backend, such as w8 of ort_sim")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4, 8, 16], help="rows of the programs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--prefill-seq-len", type=int, nargs="+", default=[32], help="tokens of the prefill steps of all programs"
    )
    arguments = parser.parse_args()

    from qeff_framework import QEFFAutoModelForCausalLM
    from qeff_framework.runtime import load_compiled

    model = QEFFAutoModelForCausalLM.from_pretrained(arguments.checkpoint)
    options: dict[str, Any] = {} if arguments.precision is None else {"precision": arguments.precision}
    requests = mixed_requests()
    contenders: dict[str, Callable[[], None]] = {}
    for rows in arguments.batch_size:
        for name, sizes in (("static", {"batch_size": rows}), ("continuous", {"full_batch_size": rows})):
            compiled = model.compile(
                backend=arguments.backend,
                prefill_seq_len=tuple(arguments.prefill_seq_len),
                ctx_len=CONTEXT,
                **sizes,
                **options,
            )
            program: Any = load_compiled(compiled.directory, num_threads=arguments.threads)
            # Reading the tokenizer takes seconds, once for a program.
            program.text_generator()
            run = continuous if name == "continuous" else static
            contenders[f"{name}, {rows} rows"] = partial(run, program, requests, rows)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, answer in contenders.items():
            begun, processor = time.perf_counter(), time.process_time()
            answer()
            seconds[name].append((time.perf_counter() - begun, time.process_time() - processor))
    medians = {name: [statistics.median(kind) for kind in zip(*found, strict=True)] for name, found in seconds.items()}
    statics = [median for name, median in medians.items() if name.startswith("static")]
    best = [min(kind) for kind in zip(*statics, strict=True)]
    tokens = sum(count for _, count in requests)
    for name, (elapsed, processor) in medians.items():
        print(
            f"{name:>20}: {tokens / elapsed:7.1f} tokens/s, {best[0] / elapsed:5.2f} of the best static batch size, "
            f"{best[1] / processor:5.2f} by processor time"
        )
    return 0


def mixed_requests() -> list[tuple[list[int], int]]:
    """Prompts of random token ids, and how many tokens each answer has."""
    rng = random.Random(0)
    return [
        ([rng.randrange(4, 1000) for _ in range(rng.randint(*PROMPT_TOKENS))], rng.randint(*NEW_TOKENS))
        for _ in range(REQUESTS)
    ]


def static(program: Any, requests: list[tuple[list[int], int]], rows: int) -> None:
    """All batches, one after the other."""
    for start in range(0, len(requests), rows):
        batch = requests[start : start + rows]
        program.generate(
            prompts=[prompt for prompt, _ in batch],
            generation_len=max(count for _, count in batch),
            ignore_eos=True,
        )


def continuous(program: Any, requests: list[tuple[list[int], int]], rows: int) -> None:
    """Until the last request of an engine has ended."""
    del rows
    from qeff_framework.serving import Engine

    engine = Engine(program)
    for prompt, count in requests:
        engine.add(prompt, max_new_tokens=count, ignore_eos=True)
    while engine.busy:
        engine.step()


if __name__ == "__main__":
    raise SystemExit(main())
