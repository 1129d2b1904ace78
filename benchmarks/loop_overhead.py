"""What the generation loop costs beside the step: ort_sim's bare IO binding, `session.run`, and `generate`, over one session.

    python benchmarks/loop_overhead.py CHECKPOINT [--precision w4] [--batch-size 1 8] [--tokens 64] [--rounds 5] [--threads 1]

The bare loop writes tokens and positions into the bound buffers, runs the binding and takes the best tokens of the bound logits:
nothing less decodes. All three run the same greedy steps. The rounds go through them in turn; times are processor time, medians,
and ratios are taken round by round, so that they can be used on a machine that does other work.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

PROMPT_TOKENS = 4


def main() -> int:
    """Compiles, measures, prints a line for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder, .gguf file or hub id of a causal language model")
    parser.add_argument("--precision", help="value of ort_sim's option precision")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8], help="rows of the programs")
    parser.add_argument("--tokens", type=int, default=64, help="decode steps in a round (default 64)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the program (default 1)")
    arguments = parser.parse_args()

    from qeff_framework import QEFFAutoModelForCausalLM
    from qeff_framework.generation import TextGenerator
    from qeff_framework.runtime import load_compiled

    model = QEFFAutoModelForCausalLM.from_pretrained(arguments.checkpoint)
    options: dict[str, Any] = {} if arguments.precision is None else {"precision": arguments.precision}
    context = PROMPT_TOKENS + arguments.tokens + 1
    print(f"{'rows':>4}{'bare, us':>12}{'run, us':>12}{'generate, us':>14}{'run / bare':>12}{'generate / bare':>17}")
    for rows in arguments.batch_size:
        compiled = model.compile(
            backend="ort_sim", prefill_seq_len=PROMPT_TOKENS, ctx_len=context, batch_size=rows, **options
        )
        session: Any = load_compiled(compiled.directory, num_threads=arguments.threads).session
        generator = TextGenerator(session, generation_defaults={"eos_token_id": None})
        loops: dict[str, Callable[[], float]] = {
            "bare": partial(bare, session, arguments.tokens),
            "run": partial(through_run, session, rows, arguments.tokens),
            "generate": partial(through_generate, generator, rows, arguments.tokens),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(arguments.rounds + 1):
            for name, loop in loops.items():
                took = loop()
                if number:  # the first round warms up
                    seconds[name].append(took)
        medians = {name: statistics.median(found) * 1e6 for name, found in seconds.items()}
        ratios = [
            statistics.median(a / b for a, b in zip(seconds[name], seconds["bare"], strict=True))
            for name in ("run", "generate")
        ]
        print(
            f"{rows:4}{medians['bare']:12.1f}{medians['run']:12.1f}{medians['generate']:14.1f}{ratios[0]:12.3f}"
            f"{ratios[1]:17.3f}"
        )
        session.close()
    return 0


def prompts(rows: int) -> list[list[int]]:
    """Token ids that any model has."""
    return [[5 + (row + place) % 30 for place in range(PROMPT_TOKENS)] for row in range(rows)]


def read_prompts(session: Any, rows: int) -> Any:
    """Runs the prompts; returns the first new tokens ``[B]``."""
    session.reset()
    ids = np.array(prompts(rows), np.int64)
    positions = np.tile(np.arange(PROMPT_TOKENS), (rows, 1))
    return session.run({"input_ids": ids, "position_ids": positions})["logits"][:, -1].argmax(-1)


def bare(session: Any, tokens: int) -> float:
    """Seconds of a step of the binding alone."""
    inner = session._session  # noqa: SLF001 - the backend's session behind the framework's guard
    step = inner._steps["decode"]  # noqa: SLF001 - its bound buffers
    ids, positions, logits = step.inputs["input_ids"], step.inputs["position_ids"], step.outputs["logits"]
    run, binding = inner._session.run_with_iobinding, step.binding  # noqa: SLF001
    ids[:, 0] = read_prompts(session, len(ids))
    begun = time.process_time()
    for number in range(tokens):
        positions.fill(PROMPT_TOKENS + number)
        run(binding)
        ids[:, 0] = logits[:, -1].argmax(-1)
    return (time.process_time() - begun) / tokens


def through_run(session: Any, rows: int, tokens: int) -> float:
    """Seconds of a step of `session.run` with its checks."""
    ids, positions = np.zeros((rows, 1), np.int64), np.zeros((rows, 1), np.int64)
    feed = {"input_ids": ids, "position_ids": positions}
    ids[:, 0] = read_prompts(session, rows)
    begun = time.process_time()
    for number in range(tokens):
        positions.fill(PROMPT_TOKENS + number)
        ids[:, 0] = session.run(feed)["logits"][:, -1].argmax(-1)
    return (time.process_time() - begun) / tokens


def through_generate(generator: Any, rows: int, tokens: int) -> float:
    """Seconds of a step of the generation loop, from the first tokens on."""
    begun: list[float] = []

    def on_token(row: int, token: int) -> None:  # noqa: ARG001 - the loop passes both
        if len(begun) < rows:
            begun.append(time.process_time())

    generator.generate_ids(prompts(rows), generator.settings(max_new_tokens=tokens + 1), on_token=on_token)
    return (time.process_time() - begun[-1]) / tokens


if __name__ == "__main__":
    raise SystemExit(main())
