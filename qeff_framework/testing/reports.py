"""A report as text, as JSON, as JUnit's XML and as one HTML page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any, Final
from xml.etree import ElementTree as ET

from qeff_framework.plugin_metadata import printable, printable_lines
from qeff_framework.testing.checks import GROUPS
from qeff_framework.testing.results import BAD, CheckResult, Outcome, Report

#: Of the JSON document; a change that readers must not ignore gets a new number.
FORMAT: Final = 1
#: Longest message in a text report.
_LONGEST = 600


def to_document(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "format": FORMAT,
        "backend": report.backend,
        "origin": report.origin,
        "versions": dict(report.versions),
        "precision": report.precision,
        "options": {name: str(value) for name, value in report.options.items()},
        "conforms": report.conforms,
        "badge": report.badge,
        "counts": {str(outcome): count for outcome, count in report.counts.items()},
        "seconds": round(report.seconds, 3),
        "results": [
            {
                "id": each.id,
                "group": each.group,
                "promise": each.summary,
                "outcome": str(each.outcome),
                "message": each.message,
                "seconds": each.seconds,
            }
            for each in report.results
        ],
    }


def to_text(report: Report) -> str:
    """The groups with their counts, and what did not pass with its reason."""
    lines = []
    for group, results in _by_group(report):
        counts = ", ".join(
            f"{count} {outcome}" for outcome in Outcome if (count := sum(each.outcome is outcome for each in results))
        )
        lines.append(f"{group:<13}{counts}")
    for outcome in Outcome:
        found = [each for each in report.results if each.outcome is outcome]
        if outcome is Outcome.PASSED or not found:
            continue
        lines += ["", f"{outcome}:"]
        lines += [f"  {line}" for line in _reasons(found, verbose=outcome in BAD)]
    return "\n".join([*lines, "", report.badge])


def _reasons(results: list[CheckResult], *, verbose: bool) -> Iterator[str]:
    """One line a result; those with the same reason share one unless they are bad."""
    if verbose:
        for each in results:
            yield f"{each.id}: {each.summary}"
            yield f"    {printable(each.message, longest=_LONGEST)}"
        return
    by_reason: dict[str, list[str]] = {}
    for each in results:
        by_reason.setdefault(each.message, []).append(each.id)
    for reason, ids in by_reason.items():
        more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
        yield f"{', '.join(ids[:3])}{more}: {printable(reason, longest=_LONGEST)}"


def to_junit(report: Report) -> str:
    """The report in the XML that continuous integration servers read."""
    bad = len(report.bad)
    skipped = sum(report.counts[each] for each in (Outcome.NOT_CLAIMED, Outcome.UNAVAILABLE, Outcome.EXPECTED_FAILURE))
    totals = {
        "tests": str(len(report.results)),
        "failures": str(bad),
        "errors": "0",
        "skipped": str(skipped),
        "time": f"{report.seconds:.3f}",
    }
    suite = ET.Element("testsuite", {"name": f"qeff conformance of {report.backend}", **totals})
    properties = ET.SubElement(suite, "properties")
    for name, value in {"origin": report.origin, "precision": report.precision, **report.versions}.items():
        ET.SubElement(properties, "property", name=name, value=_xml(value))
    for each in report.results:
        case = ET.SubElement(
            suite,
            "testcase",
            classname=f"{report.backend}.{each.group}",
            name=each.id,
            time=f"{each.seconds:.3f}",
        )
        if each.outcome in BAD:
            failure = ET.SubElement(case, "failure", message=_xml(each.message), type=str(each.outcome))
            failure.text = _xml(f"{each.summary}\n{each.message}\n{each.traceback}")
        elif each.outcome is not Outcome.PASSED:
            ET.SubElement(case, "skipped", message=_xml(f"{each.outcome}: {each.message}"))
    suites = ET.Element("testsuites", {"name": "qeff conformance", **totals})
    suites.append(suite)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return printable_lines(text)


_COLOURS: Final = {
    Outcome.PASSED: "#1a7f37",
    Outcome.FAILED: "#cf222e",
    Outcome.EXPECTED_FAILURE: "#9a6700",
    Outcome.UNEXPECTED_PASS: "#cf222e",
    Outcome.NOT_CLAIMED: "#57606a",
    Outcome.UNAVAILABLE: "#57606a",
}
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }
table { border-collapse: collapse; width: 100%; margin-bottom: 2rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #d0d7de; }
.badge { display: inline-block; padding: .3rem .8rem; border-radius: .4rem; color: white; font-weight: 600; }
.outcome { white-space: nowrap; font-weight: 600; }
.message { color: #57606a; font-size: 90%; overflow-wrap: anywhere; }
"""


def to_html(report: Report) -> str:
    """One page without scripts and without references to other hosts."""
    colour = _COLOURS[Outcome.PASSED if report.conforms else Outcome.FAILED]
    facts = {
        "package": report.origin,
        "precision": report.precision,
        **report.versions,
        "time": f"{report.seconds:.1f} s",
    }
    parts = [
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{_h(report.badge)}</title>',
        f"<style>{_STYLE}</style>",
        f"<h1>Conformance of {_h(report.backend)}</h1>",
        f'<p class="badge" style="background: {colour}">{_h(report.badge)}</p>',
        "<table>",
        *(f"<tr><th>{_h(name)}</th><td>{_h(value)}</td></tr>" for name, value in facts.items()),
        "</table>",
    ]
    for group, results in _by_group(report):
        parts += [f"<h2>{_h(group)}</h2>", f"<p>{_h(GROUPS[group])}</p>", "<table>"]
        parts += [_row(each) for each in results]
        parts.append("</table>")
    return "\n".join([*parts, "</html>", ""])


def _row(result: CheckResult) -> str:
    message = f'<div class="message">{_h(result.message)}</div>' if result.message else ""
    return (
        f'<tr><td class="outcome" style="color: {_COLOURS[result.outcome]}">{result.outcome}</td>'
        f"<td>{_h(result.id)}</td><td>{_h(result.summary)}{message}</td><td>{result.seconds:.2f} s</td></tr>"
    )


def _h(text: str) -> str:
    return html.escape(printable_lines(text))


def _by_group(report: Report) -> Iterator[tuple[str, list[CheckResult]]]:
    for group in GROUPS:
        results = [each for each in report.results if each.group == group]
        if results:
            yield group, results
