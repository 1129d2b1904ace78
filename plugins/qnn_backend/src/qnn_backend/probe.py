"""What can be compiled and executed here, and what to do where it cannot."""

from __future__ import annotations

from qeff_framework.plugin_api import Probe, Status
from qnn_backend.aic.probe import check_aic
from qnn_backend.htp.probe import check_htp


def probe() -> Probe:
    """The htp targets decide what the backend can do when no target is named."""
    found = check_htp()
    usable = all(check.status is not Status.FAILED for check in found.checks)
    return Probe(
        can_compile=usable,
        can_execute=usable,
        hardware=found.hardware,
        # Below ort_sim: a simulator of this detail is slow.
        rank=50,
        checks=(*found.checks, *check_aic()),
    )
