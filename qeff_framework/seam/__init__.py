"""The seam into Transformers: its cache, attention, mask and expert interfaces, filled with dialect ops.

Nothing here knows an architecture. What a model needs is found out by running it once on tensors without data.
"""

from __future__ import annotations
