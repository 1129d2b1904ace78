"""Rounds that go through the contenders in turn."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qeff_framework.errors import ExecutionError

#: Lines of a failed process that a message shows.
_SHOWN_LINES = 4
#: With it every process compiles the framework's Python files anew, which an installation has compiled: a fifth of the loading.
_WITHOUT_BYTECODE = "PYTHONDONTWRITEBYTECODE"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows of so many tokens, and so many new tokens for each."""

    prompt_len: int
    new_tokens: int
    batch_size: int

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Tokens by chance, the same ones for every contender and in every round."""
        chance = random.Random(self.prompt_len)  # noqa: S311 - no secret
        return [[chance.randrange(vocab_size) for _ in range(self.prompt_len)] for _ in range(self.batch_size)]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Who runs the cases: a command whose process does `job.serve`, and what it is to load."""

    name: str
    described: Mapping[str, Any]
    command: Sequence[str] = (sys.executable, "-m", "qeff_framework.bench.contender")
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the rounds of one contender have measured; lists have one entry for each round."""

    name: str
    info: Mapping[str, str]
    #: Seconds.
    load: list[float]
    peak_bytes: list[float]
    #: By case: seconds to the first token, tokens per second of the steps after it, tokens per second of all.
    first_token: list[list[float]]
    decode: list[list[float]]
    throughput: list[list[float]]
    #: By case: the tokens of the first round.
    tokens: list[list[list[int]]]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A contender that could not do its job, and why."""

    name: str
    reason: str


def measure(
    contenders: Sequence[Contender],
    cases: Sequence[Case],
    *,
    vocab_size: int,
    rounds: int,
    warmups: int,
    time_limit: float,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Measured | Failed]:
    """Runs all cases of one contender after the other, `rounds` times. One that fails takes no part in later rounds.

    Args:
        contenders: who runs; names must differ.
        cases: what is run; at least one.
        vocab_size: tokens are drawn from so many.
        rounds: how often; at least 1.
        warmups: short runs of each case before it is measured, in each process.
        time_limit: seconds for one contender in one round.
        tell: gets a line when a contender starts.
    """
    jobs = [
        {"prompts": case.prompts(vocab_size), "new_tokens": case.new_tokens, "batch_size": case.batch_size}
        for case in cases
    ]
    results: dict[str, list[dict[str, Any]]] = {each.name: [] for each in contenders}
    failed: dict[str, Failed] = {}
    for number in range(rounds):
        for contender in contenders:
            if contender.name in failed:
                continue
            tell(f"round {number + 1} of {rounds}: {contender.name}")
            job = {"contender": dict(contender.described), "cases": jobs, "warmups": warmups}
            try:
                results[contender.name].append(_run(contender, job, time_limit))
            except ExecutionError as error:
                failed[contender.name] = Failed(name=contender.name, reason=str(error))
    return [failed.get(each.name) or _measured(each.name, results[each.name], len(cases)) for each in contenders]


def _run(contender: Contender, job: Mapping[str, Any], time_limit: float) -> dict[str, Any]:
    """One process. Raises `ExecutionError` with what it said last when it ends without a result."""
    try:
        done = subprocess.run(
            list(contender.command),
            input=json.dumps(job),
            env={name: value for name, value in os.environ.items() if name != _WITHOUT_BYTECODE}
            | dict(contender.environment),
            capture_output=True,
            text=True,
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ExecutionError(f"it took longer than {time_limit:g} s") from error
    except OSError as error:
        raise ExecutionError(f"it cannot be started: {error}") from error
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        lines = [line for line in done.stderr.splitlines() if line.strip()][-_SHOWN_LINES:]
        told = " / ".join(lines) or "it said nothing"
        raise ExecutionError(f"its process ended with {done.returncode} and no result: {told}") from None
    return result


def _measured(name: str, results: Sequence[Mapping[str, Any]], cases: int) -> Measured:
    def by_case(figure: str) -> list[list[float]]:
        return [
            [each["cases"][number][figure] for each in results if each["cases"][number][figure] is not None]
            for number in range(cases)
        ]

    return Measured(
        name=name,
        info=results[0]["info"],
        load=[each["load"] for each in results],
        peak_bytes=[each["peak_bytes"] for each in results],
        first_token=by_case("first_token"),
        decode=by_case("decode"),
        throughput=by_case("throughput"),
        tokens=[case["tokens"] for case in results[0]["cases"]],
    )
