"""Throughput of `qeff batch` in one process and by replicas of Ray, in rounds.

    python benchmarks/replicas.py ARTIFACT [--rows 200] [--tokens 32] [--replicas 1 2] [--rounds 3]

Every replica computes with one thread, and so does the process without Ray. Rows are prompts of 8 random tokens with `tokens` new
ones each. Two numbers are printed for each: tokens per second from the first answer to the last, when all programs are loaded,
and the time of the whole command. Rounds take turns, so that what else the machine does meets all of them. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 8


def main() -> int:
    """Runs the rounds, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="a compiled causal language model with a tokenizer")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    rng = random.Random(0)
    rows = [
        {"prompt": rng.choices(range(4, 60), k=8), "max_new_tokens": arguments.tokens, "ignore_eos": True}
        for _ in range(arguments.rows)
    ]
    contenders: dict[str, Callable[..., Any]] = {"local": local}
    contenders |= {f"ray, {count}": on_ray(count) for count in arguments.replicas}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.jsonl")
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        texts: set[str] = set()
        for number in range(arguments.rounds):
            for name, run in contenders.items():
                target = Path(folder, f"{number}-{name}.jsonl")
                arrivals: list[float] = []
                started = time.perf_counter()
                run(
                    arguments.artifact,
                    source,
                    target,
                    on_progress=lambda _, seen=arrivals: seen.append(time.perf_counter()),
                )
                seconds = time.perf_counter() - started
                later = sum(at > arrivals[0] + 0.5 for at in arrivals)
                found[name].append((later / (arrivals[-1] - arrivals[0]), seconds))
                texts.add("".join(sorted(target.read_text().splitlines())))
    print("| engine | tokens per second, programs loaded | whole command |\n|---|---|---|")
    for name, results in found.items():
        rates = [rate * arguments.tokens for rate, _ in results]
        whole = [seconds for _, seconds in results]
        told = f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"
        print(f"| {name} | {told} | {statistics.median(whole):.1f} s |")
    print(f"{len(texts)} different outputs")
    return int(len(texts) != 1)


def local(artifact: Path, source: Path, target: Path, **options: Any) -> None:
    """In this process."""
    from qeff_framework.serving import Engine
    from qeff_framework.serving.batch import run_batch

    engine = Engine(artifact, num_threads=1)
    try:
        run_batch(engine, source, target, **options)
    finally:
        engine.close()


def on_ray(replicas: int) -> Callable[..., None]:
    """By as many processes."""

    def run(artifact: Path, source: Path, target: Path, **options: Any) -> None:
        from qeff_framework.scale.batch import run_batch_on_ray

        run_batch_on_ray(artifact, source, target, replicas=replicas, batch_size=BATCH, num_threads=1, **options)

    return run


if __name__ == "__main__":
    raise SystemExit(main())
