"""Many clients at once against `qeff serve`: errors, equal texts, times, memory; and the same load with one answer at a time.

    python benchmarks/serve_load.py CHECKPOINT [--backend ort_sim] [--precision w8] [--clients 64] [--lanes 8] [--seconds 300]
        [--one-seconds 60]

Compiles the checkpoint with continuous batching (`lanes` answers at once) and for one answer at a time, and serves each by a
process of its own: one answer at a time before and behind the load with many, half of the time each, so that a machine that
becomes slower or faster does not decide the ratio. Every client streams one answer after the other, prompts of random tokens
and lengths mixed; a third of the answers are given up by their reader. The others must be the texts that the same program
gives alone. The exit code is 1 when an answer failed or differed, when the server's memory grew by more than 5 % after the first
fifth of the time, or when its throughput is below 1.3 times that of one answer at a time. Needs the extra `serve`, and the
packages openai and psutil.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

LENGTHS = (8, 16, 32, 64)
PROMPTS = (3, 8, 20, 60)

#: Token ids of a prompt, and the length of its answer.
Case = tuple[tuple[int, ...], int]


@dataclass
class Result:
    """What the clients saw."""

    texts: list[tuple[Case, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    tokens: int = 0
    given_up: int = 0
    seconds: float = 0.0
    #: Seconds since the start, bytes.
    memory: list[tuple[float, int]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per second over all clients."""
        return self.tokens / self.seconds


def main() -> int:
    """Compiles, loads, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder, .gguf file or hub id of a causal language model with a tokenizer")
    parser.add_argument("--backend", default="ort_sim")
    parser.add_argument("--precision", help="an option of the backend, such as w8 of ort_sim")
    parser.add_argument("--clients", type=int, default=64, help="clients at once (default 64)")
    parser.add_argument("--lanes", type=int, default=8, help="answers that the program computes at once (default 8)")
    parser.add_argument("--seconds", type=float, default=300, help="length of the load (default 300)")
    parser.add_argument("--one-seconds", type=float, default=60, help="length with one answer at a time (default 60)")
    arguments = parser.parse_args()

    from qeff_framework import QEFFAutoModelForCausalLM

    model = QEFFAutoModelForCausalLM.from_pretrained(arguments.checkpoint)
    sizes: dict[str, Any] = {"backend": arguments.backend, "prefill_seq_len": 32, "ctx_len": 256}
    if arguments.precision is not None:
        sizes["precision"] = arguments.precision
    many = model.compile(**sizes, full_batch_size=arguments.lanes, kv_cache_batch_size=2 * arguments.lanes).directory
    one = model.compile(**sizes).directory

    rng = random.Random(0)
    tokens = range(4, model.module.config.get_text_config().vocab_size)
    cases = [(tuple(rng.choices(tokens, k=count)), length) for count, length in itertools.product(PROMPTS, LENGTHS)]
    with serving(one) as (url, process):
        expected = asyncio.run(alone(url, cases))
        before = asyncio.run(load(url, process, cases, arguments.clients, arguments.one_seconds / 2))
    with serving(many) as (url, process):
        expected_of_many = asyncio.run(alone(url, cases))
        batched = asyncio.run(load(url, process, cases, arguments.clients, arguments.seconds))
    with serving(one) as (url, process):
        behind = asyncio.run(load(url, process, cases, arguments.clients, arguments.one_seconds / 2))
    single = both(before, behind)

    report("one answer at a time", single)
    report(f"{arguments.lanes} lanes", batched)
    wrong = [case for case, text in single.texts if text != expected[case]]
    wrong += [case for case, text in batched.texts if text != expected_of_many[case]]
    growth = memory_growth(batched)
    ratio = batched.rate / single.rate
    print(f"throughput {ratio:.2f} times that of one answer at a time; memory {growth:+.1%} after the first fifth")
    print(f"{len(wrong)} texts differ from those of the program with one request alone")
    other = sum(expected[case] != expected_of_many[case] for case in cases)
    print(
        f"the two programs differ in {other} of {len(cases)} texts: their products have other numbers of rows, and other sums"
    )
    failed = bool(wrong or single.errors or batched.errors or growth > 0.05 or ratio < 1.3 or not batched.texts)
    return int(failed)


@contextmanager
def serving(artifact: os.PathLike[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, and its URL."""
    command = [sys.executable, "-m", "qeff_framework", "serve", str(artifact), "--port", "0", "--model-name", "model"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    url = None
    for line in process.stderr:
        found = re.search(r"serving .* at (http://\S+)", line)
        if found:
            url = found[1]
            break
    if url is None:
        raise SystemExit(f"the server of {artifact} did not start")
    stderr = process.stderr
    # Whoever does not read the log blocks the server.
    drain = threading.Thread(target=lambda: [None for _ in stderr], daemon=True)
    drain.start()
    try:
        yield url, process
    finally:
        process.terminate()
        process.wait(60)


async def alone(url: str, cases: list[Case]) -> dict[Case, str]:
    """The text of each case, one after the other."""
    import openai

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answers = {}
        for prompt, length in cases:
            answer = await client.completions.create(model="model", prompt=list(prompt), max_tokens=length)
            answers[prompt, length] = answer.choices[0].text
        return answers


async def load(url: str, process: subprocess.Popen[str], cases: list[Case], clients: int, seconds: float) -> Result:
    """All clients at once, until the time is over; the answers that are under way then are read to their ends."""
    import openai
    import psutil

    result = Result()
    started = time.perf_counter()

    async def client(number: int, connection: openai.AsyncOpenAI) -> None:
        rng = random.Random(number)
        while time.perf_counter() - started < seconds:
            case = rng.choice(cases)
            stop_after = rng.randrange(1, case[1]) if rng.random() < 1 / 3 else None
            try:
                await read(connection, case, stop_after, result)
            except openai.OpenAIError as error:
                result.errors.append(f"{type(error).__name__}: {error}")

    async def watch() -> None:
        server = psutil.Process(process.pid)
        while True:
            result.memory.append((time.perf_counter() - started, server.memory_info().rss))
            await asyncio.sleep(max(seconds / 100, 0.2))

    watcher = asyncio.create_task(watch())
    options: Any = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, "timeout": 600}
    async with openai.AsyncOpenAI(**options) as connection:
        await asyncio.gather(*(client(number, connection) for number in range(clients)))
    watcher.cancel()
    result.seconds = time.perf_counter() - started
    return result


async def read(connection: Any, case: Case, stop_after: int | None, result: Result) -> None:
    """Streams one answer, or gives it up after some pieces."""
    prompt, length = case
    begun = time.perf_counter()
    pieces, text, usage = 0, "", None
    stream = await connection.completions.create(
        model="model", prompt=list(prompt), max_tokens=length, stream=True, stream_options={"include_usage": True}
    )
    async with stream:
        async for event in stream:
            usage = event.usage or usage
            if not event.choices:
                continue
            if not pieces:
                result.first_token.append(time.perf_counter() - begun)
            pieces += 1
            text += event.choices[0].text
            if stop_after is not None and pieces >= stop_after:
                result.given_up += 1
                # A piece is a token in most cases.
                result.tokens += pieces
                return
    result.tokens += usage.completion_tokens if usage is not None else pieces
    result.texts.append((case, text))


def both(first: Result, second: Result) -> Result:
    """Two loads of the same kind as one."""
    return Result(**{field.name: getattr(first, field.name) + getattr(second, field.name) for field in fields(Result)})


def memory_growth(result: Result) -> float:
    """How much the largest resident size after the first fifth of the time exceeds the largest one before."""
    end = result.memory[-1][0] / 5
    before = max(size for at, size in result.memory if at <= end)
    after = max(size for at, size in result.memory if at > end)
    return after / before - 1


def report(name: str, result: Result) -> None:
    """Prints what was measured."""
    first = sorted(result.first_token)
    told = f"median {statistics.median(first):.2f} s, 95 % {first[int(0.95 * len(first))]:.2f} s" if first else "none"
    print(
        f"{name}: {result.rate:.1f} tokens/s over {result.seconds:.0f} s; {len(result.texts)} answers, {result.given_up} given "
        f"up, {len(result.errors)} errors; time to first token {told}; {result.memory[-1][1] / 2**20:.0f} MiB"
    )
    for error, count in sorted({error: result.errors.count(error) for error in result.errors}.items())[:5]:
        print(f"  {count} times {error}")


if __name__ == "__main__":
    raise SystemExit(main())
