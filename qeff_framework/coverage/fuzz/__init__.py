"""Differential fuzzing: random tiny models, programs and generation requests, held against Transformers' greedy decoding.

`configs`, `programs` and `requests` draw what is tried (Hypothesis strategies), `comparison` runs one example both ways, `hunt`
takes one configuration through many examples and shrinks what differs, `findings` writes it down, `command` is the command:

    python -m qeff_framework.coverage.fuzz --backend ort_sim --minutes 60
"""

from qeff_framework.coverage.fuzz.comparison import replay
from qeff_framework.coverage.fuzz.examples import Example

__all__ = ["Example", "replay"]
