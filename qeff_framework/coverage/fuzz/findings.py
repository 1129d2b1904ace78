"""What a run has found: one finding for each kind, a file to run it again, and a report."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from qeff_framework.coverage.fuzz.comparison import NEAR_TIE, ROUNDING, SCORE_TOLERANCE, Outcome
from qeff_framework.coverage.fuzz.examples import PLAIN_SIZES, Example
from qeff_framework.coverage.jsonl_results import Run

_MOST_REASONS: Final = 40
_LONGEST: Final = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A difference, as small as it became."""

    example: Example
    outcome: Outcome

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {"outcome": self.outcome.facts(), "example": self.example.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Finding:
        """Reads what `to_json` wrote."""
        return cls(example=Example.from_json(content["example"]), outcome=Outcome(**content["outcome"]))

    @property
    def kind(self) -> tuple[str, ...]:
        """What findings of one cause have in common, as far as that can be told: everything but the numbers."""
        request, plain = self.example.request, PLAIN_SIZES[self.example.config.task]
        parts = [self.outcome.stage, self.outcome.verdict]
        if self.outcome.verdict in ("error", "crash"):
            # The message says more about the cause than the request does.
            return (*parts, _without_numbers(self.outcome.detail))
        parts += sorted(self.example.config.changes)
        parts += sorted(name for name in self.example.sizes if name not in plain)
        if request is not None:
            parts += sorted(name for name in request.settings if name not in ("max_new_tokens", "max_length"))
            parts += [
                text for text, default in ((request.form, "lists"), (request.place, "keywords")) if text != default
            ]
            parts += [name for name in ("stop_tokens", "lookup") if getattr(request, name)]
        return tuple(parts)


@dataclasses.dataclass
class Results:
    """Everything that a run counts."""

    #: By verdict.
    verdicts: Counter[str] = dataclasses.field(default_factory=Counter)
    #: Cases by family, ``task type``.
    families: Counter[str] = dataclasses.field(default_factory=Counter)
    #: Reasons of refusals and of configurations that Transformers rejects, without their numbers; and one example of each.
    refusals: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    near_ties: list[float] = dataclasses.field(default_factory=list)
    #: By kind; the first one has the smallest request.
    findings: dict[tuple[str, ...], list[Finding]] = dataclasses.field(default_factory=dict)
    score_error: float = 0.0
    #: Examples that are no finding because Transformers' own float32 is as far from its float64.
    rounded: int = 0

    def add_outcome(self, family: str, outcome: Outcome) -> None:
        """Counts one comparison."""
        self.verdicts[outcome.verdict] += 1
        if outcome.verdict in ("refused", "no reference"):
            reason = f"{outcome.verdict}: {_without_numbers(outcome.detail)}"
            self.refusals.setdefault(reason, Counter())[family] += 1
        if outcome.verdict == "near tie" and outcome.gap is not None:
            self.near_ties.append(outcome.gap)
        if not outcome.is_finding and outcome.rounding is not None:
            self.rounded += 1
        elif outcome.verdict == "equal":
            self.score_error = max(self.score_error, outcome.score_error or 0.0)

    def add_finding(self, finding: Finding) -> None:
        """Keeps a finding with the others of its kind, the smallest one first."""
        same = self.findings.setdefault(finding.kind, [])
        same.append(finding)
        same.sort(key=lambda each: len(json.dumps(each.example.to_json())))


def write_findings(results: Results, directory: Path) -> list[Path]:
    """Writes the smallest finding of each kind to a file of its own, for ``--replay``."""
    files = []
    for number, found in enumerate(results.findings.values(), 1):
        file = directory / f"finding-{number:03}.json"
        file.write_text(json.dumps(found[0].to_json(), indent=1) + "\n", encoding="utf-8")
        files.append(file)
    return files


def report(results: Results, run: Run, *, seed: int, minutes: float, files: Sequence[Path]) -> str:
    """The page about a run."""
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in results.verdicts.most_common())
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    lines = [
        f"""\
# Findings of the fuzz command

Backend {run.backend}; seed {seed}; {minutes:.1f} minutes; {versions}.

**{results.verdicts.total()} examples** of {results.families.total()} configurations of {len(results.families)} families:
{verdicts or "none"}. **{len(results.findings)} kinds of finding.**

- A difference is a *near tie* when Transformers scores the chosen token within {NEAR_TIE:g} standard deviations of the step's
  logits of its own choice. {_near_ties(results.near_ties)}
- Where scores are compared, they may differ by {SCORE_TOLERANCE:g} standard deviations; the largest difference of equal
  examples was {results.score_error:.1e}.
- Beyond both margins a difference is rounding where it is at most {ROUNDING:g} times the error that Transformers' own float32
  has against its float64: a penalty that grows exponentially magnifies rounding. This was so {results.rounded} times.
- *Refused*: the framework says why it does not do it. *No reference*: Transformers rejects the configuration or the settings,
  or its logits are not finite.

## Findings
"""
    ]
    for file, found in zip(files, results.findings.values(), strict=True):
        lines += _section(file, found, run.backend)
    if not results.findings:
        lines += ["None.", ""]
    lines += ["## Refusals and discarded configurations", "", "| Times | Reason | Families |", "|---:|---|---|"]
    by_count = sorted(results.refusals.items(), key=lambda item: -item[1].total())
    lines += [
        f"| {families.total()} | {_cell(reason)} | {_some(families)} |" for reason, families in by_count[:_MOST_REASONS]
    ]
    if len(by_count) > _MOST_REASONS:
        lines.append(f"| | and {len(by_count) - _MOST_REASONS} more reasons, in results.jsonl | |")
    families = ", ".join(f"{name} ({count})" for name, count in sorted(results.families.items()))
    return "\n".join([*lines, "", "## Families", "", f"Configurations of each: {families}.", ""])


def _near_ties(gaps: Sequence[float]) -> str:
    return f"There were {len(gaps)}, the widest by {max(gaps):.1e}." if gaps else "There was none."


def _section(file: Path, found: Sequence[Finding], backend: str) -> list[str]:
    finding = found[0]
    config = finding.example.config
    models = Counter(f"{each.example.config.task} {each.example.config.model_type}" for each in found)
    example = json.dumps(finding.example.to_json())
    return [
        f"### {file.stem}: {finding.outcome.verdict}, {config.model_type}",
        "",
        f"{finding.outcome.detail} (stage {finding.outcome.stage}). Found {len(found)} times: {_some(models)}.",
        "",
        f"    python -m qeff_framework.coverage.fuzz --backend {backend} --replay {file.name}",
        "",
        "```python",
        "from qeff_framework.coverage.fuzz import replay",
        "",
        f"example = {json.dumps(example)}",
        f"print(replay(example, backend={json.dumps(backend)}))",
        "```",
        "",
    ]


def _some(families: Counter[str], most: int = 6) -> str:
    shown = ", ".join(name for name, _ in families.most_common(most))
    return f"{shown} and {len(families) - most} more" if len(families) > most else shown


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "N", text)[:_LONGEST]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
