"""Rounds in which contenders take turns, each in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qeff_framework.bench import Case, Contender, Failed, Measured, Spread, measure, ratio

REPOSITORY = Path(__file__).parents[2]

COUNTING = """
import sys
from pathlib import Path
from qeff_framework.bench.job import serve

class Counting:
    info = {"device": "fingers"}
    def __init__(self, described):
        self.described = described
    def generate(self, prompts, new_tokens, on_first):
        on_first(*([1] if self.described["name"] == "early" else []))
        print("noise on standard output")
        with Path(self.described["log"]).open("a") as log:
            log.write(f"{self.described['name']} {len(prompts)}x{len(prompts[0])}+{new_tokens}\\n")
        if self.described["name"] == "short" and new_tokens > 4:
            new_tokens -= 1
        return [[row[0]] * new_tokens for row in prompts]

assert not {"torch", "numpy", "onnx"} & set(sys.modules)
serve(Counting)
"""


@pytest.fixture
def contender(tmp_path):
    def make(name: str) -> Contender:
        return Contender(
            name=name,
            described={"name": name, "log": str(tmp_path / "log")},
            # Without site-packages: a contender's environment need not have what the framework depends on.
            command=(sys.executable, "-S", "-c", COUNTING),
            environment={"PYTHONPATH": str(REPOSITORY)},
        )

    return make


def test_contenders_take_turns_and_do_the_same_work(contender, tmp_path):
    cases = [Case(prompt_len=3, new_tokens=6, batch_size=2), Case(prompt_len=5, new_tokens=1, batch_size=1)]
    told: list[str] = []

    one, two = measure(
        [contender("one"), contender("two")],
        cases,
        vocab_size=10,
        rounds=2,
        warmups=1,
        time_limit=60,
        tell=told.append,
    )

    assert told == [f"round {number} of 2: {name}" for number in (1, 2) for name in ("one", "two")]
    of_one = ["one 2x3+4", "one 1x5+1", "one 2x3+6", "one 1x5+1"]  # the warm-ups first
    of_two = [line.replace("one", "two") for line in of_one]
    assert (tmp_path / "log").read_text().splitlines() == (of_one + of_two) * 2
    assert isinstance(one, Measured)
    assert isinstance(two, Measured)
    assert one.tokens == two.tokens == [[[row[0]] * 6 for row in cases[0].prompts(10)], [[cases[1].prompts(10)[0][0]]]]
    assert one.info == {"device": "fingers"}
    assert [len(figures) for figures in (one.load, one.peak_bytes, one.first_token[0], one.throughput[1])] == [2] * 4
    assert one.decode[1] == []  # there is no step after the first token
    assert all(peak > 1e6 for peak in one.peak_bytes)


def test_the_decode_rate_counts_the_tokens_behind_the_first_ones_alone(contender):
    (early,) = measure(
        [contender("early")],
        [Case(prompt_len=3, new_tokens=6, batch_size=2)],
        vocab_size=10,
        rounds=1,
        warmups=0,
        time_limit=60,
    )

    assert isinstance(early, Measured)
    (first,), (decode,), (rate,) = early.first_token[0], early.decode[0], early.throughput[0]
    assert first + 9 / decode == pytest.approx(12 / rate)  # 2 rows of 5 tokens, of which 1 came early


def test_who_fails_is_named_and_the_others_go_on(contender):
    cases = [Case(prompt_len=3, new_tokens=6, batch_size=1)]
    broken = Contender(name="broken", described={}, command=(sys.executable, "-c", "raise SystemExit('no engine')"))
    slow = Contender(name="slow", described={}, command=(sys.executable, "-c", "import time; time.sleep(60)"))

    results = measure(
        [broken, contender("short"), slow, contender("one")],
        cases,
        vocab_size=10,
        rounds=1,
        warmups=0,
        time_limit=1.5,
    )

    assert [type(each) for each in results] == [Failed, Failed, Failed, Measured]
    reasons = [each.reason for each in results if isinstance(each, Failed)]
    assert reasons[0] == "its process ended with 1 and no result: no engine"
    assert "asked for 1 rows of 6 tokens, got [5]" in reasons[1]
    assert reasons[2] == "it took longer than 1.5 s"


def test_a_ratio_is_taken_round_by_round():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, lowest=1.0, highest=3.0)
    assert ratio([2.0, 40.0], [1.0, 20.0]) == Spread(median=2.0, lowest=2.0, highest=2.0)
