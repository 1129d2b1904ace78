"""``qeff coverage``: which of Transformers' model types come through a backend with Transformers' own results."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from qeff_framework.cli.arguments import add_subcommand
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.tables import table
from qeff_framework.errors import OptionError
from qeff_framework.tasks import task_specs
from qeff_framework.textfiles import read_text

if TYPE_CHECKING:
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.coverage.jsonl_results import Run
    from qeff_framework.coverage.processes import Report
    from qeff_framework.coverage.table import Section

logger = logging.getLogger(__name__)

_NAMED_IN_FAILURE = 10


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "coverage",
        run,
        summary="check model types against Transformers, on tiny random models",
        description="Takes a tiny random model of each type through export, compile and execute, and compares what it computes "
        "with Transformers' eager attention. A type that has no form as such a program is refused, with the reason, before "
        "anything is compiled; whatever else goes wrong fails. The exit code is 1 if a type fails that Transformers itself can "
        "run, or if a type is refused that was named.",
        examples=[
            "qeff coverage llama mixtral --backend ort_sim",
            "qeff coverage --task encoder --lines encoders.jsonl --table docs/coverage.md",
            "qeff coverage --from first.jsonl --from second.jsonl --table docs/coverage.md",
        ],
    )
    parser.add_argument("types", metavar="TYPE", nargs="*", help="model types (default: all of the task)")
    parser.add_argument(
        "--task",
        choices=[spec.name for spec in task_specs() if spec.coverage_path],
        default="causal-lm",
        help="default: causal-lm",
    )
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="an installed backend (default: QEFF_BACKEND, else the best one that works here)",
    )
    parser.add_argument("--jobs", metavar="N", type=_count, default=2, help="types at a time (default 2)")
    parser.add_argument(
        "--time-limit", metavar="SECONDS", type=_seconds, default=120.0, help="for each type (default 120)"
    )
    group = parser.add_argument_group("results")
    group.add_argument("--lines", metavar="FILE", type=Path, help="append a JSON line for each type as it finishes")
    group.add_argument(
        "--from",
        dest="files",
        metavar="FILE",
        type=Path,
        nargs="+",
        action="extend",
        help="take the results that --lines has written instead of running; later ones replace earlier ones",
    )
    group.add_argument(
        "--table", metavar="FILE", type=Path, help="write the section for this task of a Markdown page; others stay"
    )


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Checks the types, or collects what earlier runs have found."""
    from qeff_framework.coverage.families import chosen_types, types_of

    if args.files and args.lines:
        raise OptionError("--from runs nothing that --lines could write; leave one of them out")
    chosen = chosen_types(args.task, args.types)
    described, reports = _collected(args, chosen) if args.files else _checked(args, chosen)
    expected = types_of(args.task) if args.table else chosen
    found = {each.model_type for each in reports}

    from qeff_framework.coverage.table import Section

    section = Section(run=described, reports=reports, not_run=[name for name in expected if name not in found])
    if args.table:
        _write_page(args.table, section)
    return CommandResult(document=_document(section), text=_text(section), failure=_failure(section, args.types))


def _checked(args: argparse.Namespace, chosen: list[str]) -> tuple[Run, list[Report]]:
    from qeff_framework.coverage.jsonl_results import Run
    from qeff_framework.coverage.parity import ParityCheck
    from qeff_framework.coverage.processes import sweep
    from qeff_framework.registry import get_backend

    descriptor = get_backend(args.backend, extensions=()).descriptor
    if descriptor is None:
        raise OptionError("coverage needs a backend; name it with --backend")
    described = Run.here(args.task, descriptor)
    package = type(descriptor).__module__.partition(".")[0]
    reports = []
    with _appending(args.lines, described) as lines:
        check = ParityCheck(task=args.task, backend=descriptor.name)
        for report in sweep(check, chosen, time_limit=args.time_limit, jobs=args.jobs, packages=(package,)):
            reports.append(report)
            logger.info("%s", _progress_line(report, len(reports), len(chosen)))
            if lines is not None:
                lines.write(f"{report.to_json()}\n")
                lines.flush()
    return described, reports


def _collected(args: argparse.Namespace, chosen: list[str]) -> tuple[Run, list[Report]]:
    from qeff_framework.coverage.jsonl_results import Run, read_lines
    from qeff_framework.registry import get_backend

    runs, reports = read_lines(args.files, args.task)
    if len(runs) > 1:
        told = "; ".join(dict.fromkeys(f"{run.backend} with {dict(run.versions)}" for run in runs))
        raise OptionError(f"these results are of different runs, which one table cannot show: {told}")
    if not runs:
        descriptor = get_backend(args.backend, extensions=()).descriptor
        if descriptor is None:
            raise OptionError("the files do not say which backend was used; name it with --backend")
        runs = [Run.here(args.task, descriptor)]
    return runs[0], [reports[name] for name in chosen if name in reports]


@contextmanager
def _appending(file: Path | None, described: Run) -> Iterator[TextIO | None]:
    if file is None:
        yield None
        return
    try:
        stream = file.open("a", encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot write results to {file}: {error}") from error
    with stream:
        stream.write(f"{described.to_json()}\n")
        yield stream


def _write_page(file: Path, section: Section) -> None:
    from qeff_framework.coverage.table import updated_page

    try:
        old = read_text(file) if file.exists() else ""
        file.write_text(updated_page(old, section), encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot write the page {file}: {error}") from error


def _progress_line(report: Report, number: int, total: int) -> str:
    from qeff_framework.coverage.table import reason

    told = f": {reason(report)}" if report.error else ""
    return f"{number} of {total}  {report.model_type}  {report.outcome}  {report.seconds:.1f} s{told}"


def _document(section: Section) -> dict[str, Any]:
    return {
        "task": section.run.task,
        "backend": section.run.backend,
        "versions": dict(section.run.versions),
        "counts": section.counts,
        "results": [
            {
                "model_type": each.model_type,
                "result": each.outcome,
                "seconds": each.seconds,
                "error": each.error,
                **each.facts,
            }
            for each in section.of("pass", "refused", "fail", "no reference")
        ],
        "not_run": sorted(section.not_run),
    }


def _text(section: Section) -> str:
    from qeff_framework.coverage.table import reason, row

    parts = []
    if rows := [row(each, section.run.task) for each in section.of("pass", "refused", "fail")]:
        parts.append(table(("TYPE", "HEAD CLASS", "RESULT", "DEVIATION", "STAGE", "REASON"), rows))
    if apart := section.of("no reference"):
        errors = table(("TYPE", "TRANSFORMERS' OWN ERROR"), [(each.model_type, reason(each)) for each in apart])
        parts.append(f"Without a reference:\n{errors}")
    counts = section.counts
    parts.append(
        f"{counts['types']} types: {counts['pass']} pass, {counts['refused']} refused, {counts['fail']} fail, "
        f"{counts['no reference']} without a reference, {counts['not run']} not run"
    )
    return "\n\n".join(parts)


def _failure(section: Section, named: Sequence[str]) -> str:
    """Whoever names a type wants to know whether it works; in a sweep over all of them a refusal is an answer like others."""
    failed = [each.model_type for each in section.of("fail")]
    refused = [each.model_type for each in section.of("refused") if each.model_type in named]
    counts = section.counts
    total = counts["pass"] + counts["refused"] + counts["fail"]
    told = [(failed, f"of {total} types with a reference fail"), (refused, f"of {len(named)} named types are refused")]
    return "; ".join(f"{len(types)} {what}: {_some_of(types)}" for types, what in told if types)


def _some_of(types: list[str]) -> str:
    return ", ".join(types[:_NAMED_IN_FAILURE]) + (", ..." if len(types) > _NAMED_IN_FAILURE else "")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive number of seconds")
    return number
