"""How the kit tells that numbers differ."""

from __future__ import annotations

import numpy as np
import pytest

from qeff_framework.testing.comparing import difference
from qeff_framework.testing.settings import Tolerance


@pytest.mark.parametrize(
    ("got", "told"),
    [
        ([200.3, 0.5, 1.0], "1 of 3 numbers differ, most at [1]: 0.5 instead of 0.4"),
        ([200.3, 0.4, np.nan], "1 of 3 numbers differ, most at [2]: nan instead of 1"),
    ],
)
def test_the_number_that_exceeds_the_tolerance_most_is_told(got: list[float], told: str) -> None:
    """A large number may differ by more than a small one."""
    found = difference(np.array(got), np.array([200.0, 0.4, 1.0]), Tolerance(rtol=2e-2, atol=2e-2))
    assert found == told
