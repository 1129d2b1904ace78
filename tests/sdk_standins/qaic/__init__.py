"""A strict stand-in for the QAIC SDK, for tests on machines without a Cloud AI 100 card.

`install_standin(root)` creates a tree that looks like `/opt/qti-aic`. It is our own code: at least as strict as the
published behaviour of the real tools, and no evidence of speed or of device numerics.
"""

from .install import PROFILE_VARIABLE, install_standin
from .qaic_standin.devices import SCENARIOS, StandinDevice
from .qaic_standin.faults import (
    NEGATIVE_SCATTER_VARIABLE,
    NOISE_VARIABLE,
    ROUNDING_VARIABLE,
    CallFault,
    ProcessFault,
    fault_environment,
)
from .sdk import Invocation, StandinSdk

__all__ = [
    "NEGATIVE_SCATTER_VARIABLE",
    "NOISE_VARIABLE",
    "PROFILE_VARIABLE",
    "ROUNDING_VARIABLE",
    "SCENARIOS",
    "CallFault",
    "Invocation",
    "ProcessFault",
    "StandinDevice",
    "StandinSdk",
    "fault_environment",
    "install_standin",
]
