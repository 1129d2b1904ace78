"""What the process of a contender does: reads a job, loads, warms up, runs the cases, writes the result.

Python's standard library alone, so that an environment without the framework can import it for a contender of its own.

The job is one JSON object: ``contender`` (what the process is to load), ``cases`` (each with ``prompts``, a list of rows of token
ids, and ``new_tokens``) and ``warmups``. The result is one line of JSON on standard output; whatever libraries print goes to
standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

#: New tokens of a row in a warm-up: the prompt's step and some of one token.
_WARMUP_TOKENS = 4

Rows = Sequence[Sequence[int]]


class OnFirst(Protocol):
    """What a contender calls once, when each row has its first token."""

    def __call__(self, early_tokens: int = 0) -> None:
        """`early_tokens`: tokens behind their first one that rows have got while others had none, of all rows together."""


class Running(Protocol):
    """A contender that has loaded its model."""

    #: Versions, threads, device: what a reader of the figures asks for.
    info: dict[str, str]

    def generate(self, prompts: Rows, new_tokens: int, on_first: OnFirst) -> Sequence[Sequence[int]]:
        """Exactly `new_tokens` greedy tokens for each row of `prompts`; calls `on_first` when each row has its first one."""


def serve(load: Callable[[Mapping[str, Any]], Running]) -> None:
    """Does the job of standard input with what `load` makes of its ``contender``."""
    result_stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print
    job = json.load(sys.stdin)
    started = time.perf_counter()
    running = load(job["contender"])
    loaded = time.perf_counter() - started
    for case in job["cases"]:
        for _ in range(job["warmups"]):
            running.generate(case["prompts"], min(_WARMUP_TOKENS, case["new_tokens"]), lambda early_tokens=0: None)
    result = {
        "load": loaded,
        "cases": [_timed(running, case) for case in job["cases"]],
        "peak_bytes": peak_bytes(),
        "info": dict(running.info),
    }
    print(json.dumps(result), file=result_stream, flush=True)


def _timed(running: Running, case: Mapping[str, Any]) -> dict[str, Any]:
    prompts, new_tokens = case["prompts"], case["new_tokens"]
    first: list[tuple[float, int]] = []
    started = time.perf_counter()
    rows = running.generate(
        prompts, new_tokens, lambda early_tokens=0: first.append((time.perf_counter(), early_tokens))
    )
    total = time.perf_counter() - started
    wrong = [len(row) for row in rows if len(row) != new_tokens]
    if wrong or len(rows) != len(prompts) or not first:
        raise RuntimeError(f"asked for {len(prompts)} rows of {new_tokens} tokens, got {list(map(len, rows))}")
    to_first, early = first[0][0] - started, first[0][1]
    return {
        "first_token": to_first,
        "decode": (len(prompts) * (new_tokens - 1) - early) / (total - to_first) if new_tokens > 1 else None,
        "throughput": len(prompts) * new_tokens / total,
        "tokens": [list(map(int, row)) for row in rows],
    }


def peak_bytes() -> int:
    """Most memory that this process has held at a time.

    Linux counts the parent's memory into ``ru_maxrss`` of a process that was forked from it, but not into ``VmHWM``.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
