"""Tests about tables that follow the newest Transformers."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version

#: The tables of the coverage name types and fields that older versions do not have; see `make coverage-range` for these.
needs_tested_transformers = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"), reason="about model types of Transformers 5.24"
)
