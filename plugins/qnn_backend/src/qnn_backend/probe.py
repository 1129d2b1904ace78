"""What can be compiled and executed here, and what to do where it cannot."""

from __future__ import annotations

from qeff_framework.plugin_api import Probe, Status
from qnn_backend.aic.probe import abilities, check_aic
from qnn_backend.htp.probe import check_htp


def probe() -> Probe:
    """The chips with an NPU decide, because one of them is the default target; what target aic can do is said beside it."""
    found, aic = check_htp(), check_aic()
    able = abilities(aic)
    usable = all(check.status is not Status.FAILED for check in found.checks)
    return Probe(
        can_compile=usable,
        can_execute=usable,
        hardware=found.hardware,
        # Below ort_sim: a simulator of this detail is slow.
        rank=50,
        checks=(*found.checks, *aic),
        other_options=f"target=aic can {' and '.join(able)}" if able else "",
    )
