"""What replicas and answers at a time cost on this machine, as tables for docs/sizing.md.

    python benchmarks/sizing.py CHECKPOINT [--backend ort_sim] [--precision w8] [--rounds 3] [--threads 1]
        [--write docs/sizing.md]

Compiles the checkpoint for 1, 4, 8 and 16 answers at a time with a context of 256. Programs take turns in rounds, and the tables
have the median, so that a machine that becomes slower or faster does not decide between them. Replicas are those of `map_dataset`
(extra `ray`), one and two, each with `--threads`; tokens and time are counted from the answers of the first rows on, when every
replica has loaded its program. With `--write` the tables take the place of those in the file.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured by benchmarks/sizing.py: begin -->", "<!-- measured by benchmarks/sizing.py: end -->"
LANES, REPLICAS = (1, 4, 8, 16), (1, 2)
#: Of each prompt, and of each answer.
PROMPT_TOKENS, NEW_TOKENS = 16, 32
#: Answers at a time of a replica, and the context of all programs. Steps read the slots in use, whatever the context.
USUAL_LANES, USUAL_CONTEXT = 8, 256
#: Rows that a replica gets at a time, and how many such blocks each one gets.
BLOCK, BLOCKS = 8, 6


def main() -> int:
    """Compiles, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder, .gguf file or hub id of a causal language model with a tokenizer")
    parser.add_argument("--backend", default="ort_sim")
    parser.add_argument("--precision", help="an option of the backend, such as w8 of ort_sim")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of each program (default 1)")
    parser.add_argument("--write", type=Path, help="the page to write the tables to")
    arguments = parser.parse_args()

    programs = compiled(arguments)
    steps: dict[int, list[float]] = {lanes: [] for lanes in programs}
    rates: dict[int, list[float]] = {count: [] for count in REPLICAS}
    for number in range(arguments.rounds):
        for lanes, directory in programs.items():
            steps[lanes].append(step_seconds(directory, lanes, arguments.threads))
        print(f"round {number + 1} of {arguments.rounds}: steps of all programs are measured", flush=True)
    usual = programs[USUAL_LANES]
    with ray_session():
        for number in range(arguments.rounds):
            for count in REPLICAS:
                rates[count].append(replica_rate(usual, count, arguments.threads))
            print(
                f"round {number + 1}: { ({count: round(found[-1], 1) for count, found in rates.items()}) }", flush=True
            )
    text = page(arguments, programs, {lanes: statistics.median(found) for lanes, found in steps.items()}, rates)
    print(text)
    if arguments.write is not None:
        old = arguments.write.read_text()
        before, _, rest = old.partition(BEGIN)
        _, found, behind = rest.partition(END)
        if not found:
            raise SystemExit(f"{arguments.write} has no lines {BEGIN} and {END}")
        arguments.write.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{behind}")
    return 0


def compiled(arguments: argparse.Namespace) -> dict[int, Path]:
    """A program for each number of answers at a time."""
    from qeff_framework import QEFFAutoModelForCausalLM

    model = QEFFAutoModelForCausalLM.from_pretrained(arguments.checkpoint)
    options: dict[str, Any] = {} if arguments.precision is None else {"precision": arguments.precision}
    return {
        lanes: model.compile(
            backend=arguments.backend, prefill_seq_len=32, ctx_len=USUAL_CONTEXT, full_batch_size=lanes, **options
        ).directory
        for lanes in LANES
    }


def prompts(count: int) -> list[list[int]]:
    """Random token ids: what they are does not change the time of a step."""
    rng = random.Random(0)
    return [[rng.randrange(4, 1000) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def step_seconds(directory: Path, lanes: int, threads: int) -> float:
    """The median time of a decode step with all rows at work."""
    from qeff_framework.serving import Engine

    engine = Engine(directory, num_threads=threads)
    for prompt in prompts(lanes):
        engine.add(prompt, max_new_tokens=NEW_TOKENS + 2 * lanes, ignore_eos=True)
    jobs = list(engine._jobs.values())  # noqa: SLF001 - whether a row has its first token is no public fact
    while any(job.completion_tokens == 0 for job in jobs):
        engine.step()
    times = []
    for _ in range(NEW_TOKENS):
        begun = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - begun)
    if any(job.ended for job in jobs):
        raise SystemExit("an answer ended before the measurement did")
    engine.close()
    return statistics.median(times)


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray on this machine, without its reports."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, num_cpus=max(REPLICAS) + 1)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def replica_rate(directory: Path, replicas: int, threads: int) -> float:
    """Tokens per second of all replicas, from the answers of each one's first rows on."""
    import ray

    from qeff_framework.scale import map_dataset

    rows = [{"prompt": prompt} for prompt in prompts(BLOCK * BLOCKS * replicas)]
    settings = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    dataset = ray.data.from_items(rows, override_num_blocks=BLOCKS * replicas)
    answered = map_dataset(
        dataset, directory, settings=settings, replicas=replicas, batch_size=BLOCK, num_threads=threads
    )
    arrived = [time.perf_counter() for batch in answered.iter_batches(batch_size=BLOCK, prefetch_batches=0)]
    first, last = arrived[replicas - 1], arrived[-1]
    return (len(arrived) - replicas) * BLOCK * NEW_TOKENS / (last - first)


def state_bytes(directory: Path) -> int:
    """Bytes of the keys and values that a program holds."""
    import numpy as np

    from qeff_framework.contracts import CompiledModel

    compiled_model = CompiledModel.load(directory)
    sizes: dict[str, int] = dict(max(compiled_model.specializations, key=lambda each: len(each.dims)).dims)
    names = {state.input for state in compiled_model.states}
    total = 0
    for spec in compiled_model.inputs:
        if spec.name in names:
            shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
            total += int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
    return total


def page(
    arguments: argparse.Namespace,
    programs: Mapping[int, Path],
    steps: Mapping[int, float],
    rates: Mapping[int, list[float]],
) -> str:
    """The tables."""
    command = f"python benchmarks/sizing.py {Path(arguments.checkpoint).name} --backend {arguments.backend}"
    command += f" --precision {arguments.precision}" if arguments.precision else ""
    threads = f"{arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
    usual = f"{USUAL_LANES} answers at a time"
    measured = (
        f"Measured with `{command} --rounds {arguments.rounds} --threads {arguments.threads}` on {processor()} with"
    )
    measured += (
        f" {os.cpu_count()} CPUs, medians of {arguments.rounds} rounds, while other processes used the machine too:"
    )
    told = [f"{measured} take the ratios, not the numbers alone.", ""]
    told += [f"Replicas of Ray, each with {usual}, a context of {USUAL_CONTEXT} and {threads}:", ""]
    told += ["| Replicas | Tokens per second | Against one |", "|---|---|---|"]
    ratios = {
        count: statistics.median(a / b for a, b in zip(found, rates[1], strict=True)) for count, found in rates.items()
    }
    told += [f"| {count} | {statistics.median(found):.1f} | {ratios[count]:.2f} |" for count, found in rates.items()]
    told += ["", f"Answers at a time in one process, with a context of {USUAL_CONTEXT}:", ""]
    told += ["| Answers at a time | Decode step | Tokens per second | Keys and values |", "|---|---|---|---|"]
    told += [row(lanes, programs[lanes], steps[lanes]) for lanes in LANES]
    return "\n".join(told) + "\n"


def row(lanes: int, directory: Path, seconds: float) -> str:
    """A line of a table."""
    size = state_bytes(directory) / 2**20
    return f"| {lanes} | {1000 * seconds:.0f} ms | {lanes / seconds:.1f} | {size:.1f} MiB |"


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
