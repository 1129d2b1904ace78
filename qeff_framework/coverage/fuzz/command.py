"""The command: draws cases of many families, runs each in a process of its own, and writes down what was found."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from qeff_framework.contracts import Task
from qeff_framework.coverage.families import FUZZED, types_of
from qeff_framework.coverage.fuzz.comparison import Outcome, replay
from qeff_framework.coverage.fuzz.examples import PLAIN_SIZES, Example
from qeff_framework.coverage.fuzz.findings import Finding, Results, report, write_findings
from qeff_framework.coverage.jsonl_results import Run
from qeff_framework.coverage.processes import Report, sweep
from qeff_framework.errors import OptionError, QEFFError
from qeff_framework.plugin_api import Backend

#: Cases of a family that are drawn at a time.
_CASES_PER_DRAW: Final = 32
#: Processes that shrinking a crash starts at most.
_MOST_CRASH_TRIALS: Final = 20
_FAILURE, _USAGE = 1, 2

Hunt = Callable[..., dict[str, Any]]


class Family(NamedTuple):
    """A model type as one of the tasks that generate text."""

    task: Task
    model_type: str

    def __str__(self) -> str:
        return self.model_type if self.task == "causal-lm" else f"{self.task}:{self.model_type}"


def families_of(names: str | None) -> list[Family]:
    """The families of a comma-separated list; by default two dozen that differ, with ``all`` every type.

    Raises:
        OptionError: the installed Transformers has no such type for a task that generates text.
    """
    tasks: tuple[Task, ...] = tuple(PLAIN_SIZES)
    if names == "all":
        return [Family(task, name) for task in tasks for name in types_of(task)]
    chosen: list[Family] = []
    for name in names.split(",") if names else FUZZED:
        prefix, _, model_type = name.strip().rpartition(":")
        fitting = [task for task in tasks if prefix in ("", task) and model_type in types_of(task)]
        if not fitting:
            raise OptionError(
                f"--families: Transformers has no {name.strip()!r} that generates text; give model types such as llama, or "
                f"with their task: {', '.join(f'{task}:TYPE' for task in tasks)}"
            )
        chosen.append(Family(fitting[0], model_type))
    return list(dict.fromkeys(chosen))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when nothing is left to explain, 1 when something is, 2 when the command could not run."""
    options = _parser().parse_args(arguments)
    try:
        if options.replay is not None:
            return _replay(options)
        if importlib.util.find_spec("hypothesis") is None:
            raise OptionError("the fuzz command needs Hypothesis: pip install 'qeff-framework[fuzz]'")
        return _fuzz(options)
    except QEFFError as error:
        sys.stderr.write(f"error: {error}\n")
        return _USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qeff_framework.coverage.fuzz",
        description="Random tiny models, programs and generation requests through a backend, held against Transformers' greedy "
        "decoding. Each model runs in a process of its own. What differs is shrunk, and written to a report with a file to run "
        "it again. The exit code is 0 when nothing is left to explain: everything was equal, a near tie, or refused with a "
        "reason; 1 when something is; 2 when the command could not run.",
    )
    parser.add_argument("--backend", metavar="NAME", help="an installed backend (default: as `qeff coverage`)")
    length = parser.add_argument_group("how much")
    length.add_argument("--minutes", type=_positive, metavar="M", help="start no model after this time (default 60)")
    length.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="models of each family, in place of --minutes; the same ones for the same seed",
    )
    length.add_argument(
        "--examples", type=int, default=40, metavar="N", help="requests for each compiled program (default 40)"
    )
    length.add_argument(
        "--families",
        metavar="TYPE,TYPE",
        help=f"model types, `seq2seq-lm:bart` for an encoder-decoder whose type is also a decoder, or `all` (default: "
        f"{', '.join(FUZZED)})",
    )
    length.add_argument("--seed", type=int, default=0, metavar="N", help="draws other examples (default 0)")
    length.add_argument("--jobs", type=int, default=2, metavar="N", help="models at a time (default 2)")
    length.add_argument(
        "--time-limit", type=_positive, default=600.0, metavar="SECONDS", help="for each model (default 600)"
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out",
        type=Path,
        default=Path("fuzz-results"),
        metavar="DIR",
        help="a new or empty directory for report.md, results.jsonl and finding-*.json (default fuzz-results)",
    )
    results.add_argument(
        "--replay", type=Path, metavar="FILE", help="run the example of a finding's file again, and nothing else"
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _descriptor(name: str | None) -> Backend:
    from qeff_framework.registry import get_backend

    descriptor = get_backend(name, extensions=()).descriptor
    if descriptor is None:
        raise OptionError("the fuzz command needs a backend; name it with --backend")
    return descriptor


# --- running an example again -------------------------------------------------------------------------------------------


def _replay(options: argparse.Namespace) -> int:
    example = Example.load(options.replay)
    backend = _descriptor(options.backend)
    outcome = run_apart(example, backend=backend, time_limit=options.time_limit)
    sys.stdout.write(json.dumps(outcome.facts()) + "\n")
    return _FAILURE if outcome.is_finding else 0


def run_apart(example: Example, *, backend: Backend, time_limit: float) -> Outcome:
    """Replays an example in a process of its own; one that ends or hangs it is a `crash`."""

    def check(_: str) -> dict[str, Any]:
        return replay(example, backend=backend.name).facts()

    (ended,) = sweep(check, ["replay"], time_limit=time_limit, jobs=1, packages=(_package(backend),))
    if ended.ok:
        return Outcome(**ended.facts)
    return Outcome(verdict="crash", detail=ended.error or "")


def _package(backend: Backend) -> str:
    return type(backend).__module__.partition(".")[0]


# --- a run --------------------------------------------------------------------------------------------------------------


def _fuzz(options: argparse.Namespace) -> int:
    from transformers.utils import logging

    set_verbosity: Any = logging.set_verbosity_error  # untyped
    set_verbosity()  # drawing looks at every family's configuration, and some of them warn about their own defaults
    families = families_of(options.families)
    backend = _descriptor(options.backend)
    directory = _new_directory(options.out)
    minutes = options.minutes or (None if options.count else 60.0)
    run = Run.here("causal-lm", backend)
    results = Results()
    started = time.monotonic()
    with _interrupted_by_sigterm(), (directory / "results.jsonl").open("w", encoding="utf-8") as lines:
        lines.write(json.dumps({**json.loads(run.to_json()), "seed": options.seed}) + "\n")
        fuzzing = Fuzzing(
            backend=backend,
            seed=options.seed,
            examples=options.examples,
            time_limit=options.time_limit,
            jobs=options.jobs,
            logs=directory / "running",
        )
        try:
            for case in fuzzing.run(families, count=options.count, minutes=minutes):
                _collect(case, results, lines)
                write_findings(results, directory)
                sys.stdout.write(case.told() + "\n")
                sys.stdout.flush()
            results.findings = _with_smaller_crashes(results, backend, options.time_limit)
        except KeyboardInterrupt:
            sys.stdout.write("interrupted; the report covers what has been compared\n")
    files = write_findings(results, directory)
    taken = (time.monotonic() - started) / 60
    page = report(results, run, seed=options.seed, minutes=taken, files=files)
    (directory / "report.md").write_text(page, encoding="utf-8")
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in results.verdicts.most_common())
    sys.stdout.write(f"{verdicts or 'no example'}; {len(files)} kinds of finding: {directory / 'report.md'}\n")
    return _FAILURE if files else 0


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM, which `timeout` and job queues send, ends the run as Ctrl-C does: with a report."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _new_directory(directory: Path) -> Path:
    try:
        (directory / "running").mkdir(parents=True, exist_ok=True)
        taken = [entry.name for entry in directory.iterdir() if entry.name != "running"]
    except OSError as error:
        raise OptionError(f"--out {directory} cannot be used: {error}") from error
    if taken:
        raise OptionError(f"--out {directory} holds {taken[0]} already; choose another directory, or empty this one")
    return directory.resolve()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseResult:
    """What became of one case: how its process ended, and the lines that it has logged.

    A case that was interrupted has ended well, with what it has logged until then.
    """

    family: Family
    content: Mapping[str, Any]
    report: Report
    lines: Sequence[Mapping[str, Any]]

    def outcomes(self) -> Iterator[tuple[Mapping[str, Any] | None, Outcome]]:
        """Each comparison that was not made to shrink another one; the last one may be a crash."""
        started: Mapping[str, Any] | None = None
        shrinking = False
        for line in self.lines:
            if line["event"] == "start":
                started, shrinking = line["example"], line["shrinking"]
            elif line["event"] == "outcome":
                if not line["shrinking"]:
                    yield started, _outcome(line)
                started, shrinking = None, False
        if not self.report.ok and not shrinking:
            yield started, self._ending(started)

    def _ending(self, started: Mapping[str, Any] | None) -> Outcome:
        told = self.report.error or ""
        if started is None:
            # Before the first example there is only Transformers.
            return Outcome(verdict="no reference", detail=told, stage="reference")
        return Outcome(verdict="crash", detail=told, stage="generate" if started.get("request") else "compile")

    def findings(self) -> list[Finding]:
        """Each finding in the form in which it was logged last."""
        logged = [line for line in self.lines if line["event"] == "finding"]
        shrunk = {line["index"]: line for line in logged if line["shrunk"]}
        unshrunk = [line for line in logged if not line["shrunk"]]
        found = [Finding.from_json(shrunk.get(index, line)) for index, line in enumerate(unshrunk)]
        # A crash has no such line, and neither has what an interrupted case had compared so far.
        missing = [
            Finding(example=Example.from_json(started or {}), outcome=outcome)
            for started, outcome in self.outcomes()
            if outcome.verdict == "crash" or (outcome.is_finding and not found)
        ]
        return found + missing

    def told(self) -> str:
        """The case in a line."""
        counts: dict[str, int] = {}
        for _, outcome in self.outcomes():
            counts[outcome.verdict] = counts.get(outcome.verdict, 0) + 1
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        details = "".join(f"\n  {each.outcome.verdict}: {each.outcome.detail}" for each in self.findings())
        return f"{self.report.model_type} ({self.report.seconds:g} s): {told}{details}"


def _outcome(line: Mapping[str, Any]) -> Outcome:
    names = {field.name for field in dataclasses.fields(Outcome)}
    return Outcome(**{name: value for name, value in line.items() if name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fuzzing:
    """The settings of a run."""

    backend: Backend
    seed: int
    examples: int
    time_limit: float
    jobs: int
    #: A directory for the logs of cases that run.
    logs: Path

    def run(self, families: Sequence[Family], *, count: int | None, minutes: float | None) -> Iterator[CaseResult]:
        """One case of each family after the other, round by round: `count` rounds, or until the time is over."""
        from qeff_framework.coverage.fuzz.hunt import Case, hunt

        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        running: dict[str, tuple[Family, Case]] = {}

        def names() -> Iterator[str]:
            for number in itertools.count() if count is None else range(count):
                cases = [(family, self._case(family, number)) for family in families]
                if not any(case for _, case in cases):
                    return
                for family, case in cases:
                    if deadline is not None and time.monotonic() > deadline:
                        return
                    if case is not None:
                        name = f"{family} #{number}"
                        running[name] = family, case
                        yield name

        def check(name: str) -> dict[str, Any]:
            with self._log_of(name).open("w", encoding="utf-8") as log:

                def write(line: Mapping[str, Any]) -> None:
                    log.write(json.dumps(line) + "\n")
                    log.flush()

                return hunt(running[name][1], backend=self.backend.name, examples=self.examples, log=write)

        def result(ended: Report) -> CaseResult:
            family, case = running.pop(ended.model_type)
            lines = self._logged(ended.model_type)
            return CaseResult(family=family, content=case.to_json(), report=ended, lines=lines)

        packages = (_package(self.backend),)
        try:
            for ended in sweep(check, names(), time_limit=self.time_limit, jobs=self.jobs, packages=packages):
                yield result(ended)
        except KeyboardInterrupt:
            for name in list(running):
                yield result(Report(model_type=name, ok=True, seconds=0.0))
            raise

    def _case(self, family: Family, number: int) -> Any:
        round_, index = divmod(number, _CASES_PER_DRAW)
        drawn = _drawn(family, self.seed + 1_000_003 * round_)
        return drawn[index] if index < len(drawn) else None

    def _log_of(self, name: str) -> Path:
        return self.logs / f"{name.replace(':', '-').replace(' ', '')}.jsonl"

    def _logged(self, name: str) -> list[Mapping[str, Any]]:
        file = self._log_of(name)
        if not file.exists():
            return []
        *whole, _ = file.read_text(encoding="utf-8").split("\n")  # the last line of a killed process may be cut
        file.unlink()
        return [json.loads(line) for line in whole]


@functools.cache
def _drawn(family: Family, seed: int) -> list[Any]:
    from qeff_framework.coverage.fuzz.hunt import cases

    return list(cases(family.task, family.model_type, base_seed=seed, count=_CASES_PER_DRAW))


def _collect(case: CaseResult, results: Results, lines: TextIO) -> None:
    name = str(case.family)
    results.families[name] += 1
    header = {"case": case.report.model_type, "seconds": case.report.seconds, **case.content}
    lines.write(json.dumps(header) + "\n")
    for started, outcome in case.outcomes():
        results.add_outcome(name, outcome)
        example = {key: started[key] for key in ("sizes", "request", "before") if key in started} if started else {}
        lines.write(json.dumps({**outcome.facts(), **example}) + "\n")
    for finding in case.findings():
        results.add_finding(finding)
    lines.flush()


def _with_smaller_crashes(
    results: Results, backend: Backend, time_limit: float
) -> dict[tuple[str, ...], list[Finding]]:
    """The findings, those that end their process shrunk as well: each trial has a process of its own."""
    from qeff_framework.coverage.fuzz.hunt import shrunk

    def try_out(example: Example) -> Finding | None:
        outcome = run_apart(example, backend=backend, time_limit=time_limit)
        return Finding(example=example, outcome=outcome) if outcome.verdict == "crash" else None

    def candidates(example: Example) -> Iterator[Example]:
        yield from example.simpler()
        yield from example.shorter()

    kept: dict[tuple[str, ...], list[Finding]] = {}
    for kind, found in results.findings.items():
        first = found[0]
        if first.outcome.verdict == "crash":
            first = shrunk(first, try_out, candidates, trials=_MOST_CRASH_TRIALS)
        kept[kind] = [first, *found[1:]]
    return kept
