"""One program on many processes and machines, with Ray (extra ``ray``): rows of a data set, and Ray Serve behind HTTP."""

from __future__ import annotations

from qeff_framework.scale.dataset import map_dataset
from qeff_framework.scale.deploying import deployment

__all__ = ["deployment", "map_dataset"]
