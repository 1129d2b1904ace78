"""A strict stand-in for the QAIRT/QNN SDK's tools for Cloud AI 100, for tests on machines without the SDK and without a card.

`install_standin(root)` creates a tree that looks like the folder that `QNN_SDK_ROOT` names. It is our own code. The program
that it makes is loaded by the runtime of the stand-in QAIC SDK (`tests.sdk_standins.qaic`).
"""

from .install import install_standin
from .qairt_standin.faults import NOISE_VARIABLE, SUFFIX_VARIABLE, ProcessFault, fault_environment
from .sdk import StandinQairt

__all__ = [
    "NOISE_VARIABLE",
    "SUFFIX_VARIABLE",
    "ProcessFault",
    "StandinQairt",
    "fault_environment",
    "install_standin",
]
