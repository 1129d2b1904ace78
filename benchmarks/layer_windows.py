"""Compares models that are cut between their layers with the same models uncut, on tiny random models of each family.

    python benchmarks/layer_windows.py [TYPE ...] [--backend ort_sim] [-O NAME=VALUE ...] [--layers 1] [--jobs 2]

Without a TYPE all causal language models of Transformers are compared. Each is exported once and compiled twice, and both
programs read the same steps: chunks of prompts of unequal length, padding, single tokens, in a batch and with continuous
batching. A line tells for each type how many programs it became, how many tensors one hands on to the next, and the largest
difference of a logit or of a retained state in standard deviations. A type that differs by more than ``--tolerance``, or that has
a program uncut and none cut, is a failure, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qeff_framework import QEFFAutoModelForCausalLM, load_compiled
from qeff_framework.coverage.families import causal_lm_types
from qeff_framework.coverage.processes import CheckError, sweep
from qeff_framework.coverage.tiny import tiny_model
from qeff_framework.sessions import host_outputs

CHUNK, CONTEXT, ROWS = 4, 24, 3
#: Lengths of the prompts; the last row has none.
LENGTHS = (9, 6, 0)
DECODED = 4


def main() -> int:
    """Compares the types that were named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--backend", default="ort_sim")
    parser.add_argument(
        "-O", dest="options", action="append", default=[], metavar="NAME=VALUE", help="of both programs"
    )
    parser.add_argument("--layers", type=int, default=1, help="layers of each program")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=600)
    given = parser.parse_args()
    options = {name: _value(text) for name, text in (option.split("=", 1) for option in given.options)}
    comparison = Comparison(given.backend, given.layers, given.tolerance, options)
    failed = 0
    for report in sweep(comparison, given.types or causal_lm_types(), time_limit=given.time_limit, jobs=given.jobs):
        skipped = report.facts.get("stage") == "uncut"
        outcome = "same" if report.ok else "skipped" if skipped else "FAILED"
        failed += outcome == "FAILED"
        facts = " ".join(f"{name}={value}" for name, value in report.facts.items() if name not in ("stage", "where"))
        print(f"{outcome:8}{report.model_type:28}{facts} {(report.error or '')[:300]}", flush=True)
    return 1 if failed else 0


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class Comparison:
    """Compares one type; the facts are what a line tells."""

    backend: str
    layers: int
    tolerance: float
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, model_type: str) -> dict[str, Any]:
        """The facts of one type. Raises `CheckError` where the programs differ, or where there is none to compare with."""
        facts: dict[str, Any] = {}
        for rows in ("batch_size", "full_batch_size"):
            sizes = {"prefill_seq_len": CHUNK, "ctx_len": CONTEXT, rows: ROWS, "num_cores": 2, **self.options}
            try:
                model = QEFFAutoModelForCausalLM(tiny_model(model_type, "causal-lm"))
                whole = model.compile(self.backend, **sizes).directory
            except Exception as error:
                if facts:  # Recurrent states have no form for continuous batching.
                    break
                raise CheckError(f"{type(error).__name__}: {error}", {**facts, "stage": "uncut"}) from error
            cut = model.compile(self.backend, num_layers_per_program=self.layers, **sizes)
            facts["programs"] = len(cut.windows()) or 1
            facts["carried"] = max(
                (
                    sum(spec.name.startswith("carried_") for spec in host_outputs(part))
                    for part in cut.windows().values()
                ),
                default=0,
            )
            facts[rows] = difference = float(f"{_difference(whole, cut.directory):.1e}")
            if not difference <= self.tolerance:
                raise CheckError(f"logits differ by {difference} standard deviations", facts)
        return facts


def _difference(whole: Any, cut: Any) -> float:
    worst = 0.0
    with load_compiled(whole) as one, load_compiled(cut) as several:
        for feeds, is_read in _steps({spec.name for spec in one.compiled.inputs}):
            expected, found = (each.session.run(feeds)["logits"].copy() for each in (one, several))
            expected, found = expected[is_read], found[is_read]
            if not np.isfinite(expected).all():
                raise ValueError("the uncut program's logits are not finite")
            worst = max(worst, float(np.abs(expected - found).max() / expected.std()))
        expected, found = (each.session.read_states() for each in (one, several))
        if expected.keys() != found.keys():
            raise ValueError(f"the programs have unequal states: {expected.keys() ^ found.keys()}")
        for name, held in expected.items():
            gap = np.abs(held.astype(np.float32) - found[name].astype(np.float32)).max(initial=0)
            worst = max(worst, float(gap / max(held.std(), 1e-6)))
    return worst


def _steps(names: set[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Inputs of each step, and the rows that have a token in it."""
    random = np.random.default_rng(0)
    chunks = [np.arange(start, start + CHUNK) for start in range(0, max(LENGTHS), CHUNK)]
    read = [np.stack([np.where(places < length, places, -1) for length in LENGTHS]) for places in chunks]
    made = [np.array([[length + step] if length else [-1] for length in LENGTHS]) for step in range(DECODED)]
    for positions in (*read, *made):
        feeds = {"input_ids": random.integers(5, 100, positions.shape), "position_ids": positions}
        if "batch_index" in names and positions.shape[1] > 1:
            # Continuous batching reads one prompt at a time.
            for row in range(ROWS):
                if (positions[row] >= 0).any():
                    yield (
                        {name: value[[row]] for name, value in feeds.items()} | {"batch_index": np.array([[row]])},
                        [0],
                    )
            continue
        if "batch_index" in names:
            feeds["batch_index"] = np.arange(ROWS)[:, None]
        yield feeds, (positions >= 0).any(axis=1)


if __name__ == "__main__":
    sys.exit(main())
