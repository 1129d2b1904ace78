"""The public names of `qaicrt` under a profile (row R15: callers must look for the newer ones)."""

from __future__ import annotations

from typing import Any

from ..profiles import Profile
from .benchmark import InferenceBenchmarkSet, ProfilingHandle, QAicProfilingTypeEnum
from .buffers import BufferDimensionsVecRef, QBuffer, QIDList
from .context import Context, Qpc
from .exec_object import ExecObj, Queue
from .newer_calls import NewerExecObj, NewerProgram
from .program import Program
from .properties import ProgramProperties, QueueProperties
from .status import QLogLevel, QStatus
from .util import Util


def runtime_names(profile: Profile) -> dict[str, Any]:
    """Names and objects of the module. `Any`: classes and enums have no common type."""
    names: dict[str, Any] = {
        "BufferDimensionsVecRef": BufferDimensionsVecRef,
        "Context": Context,
        "ExecObj": ExecObj,
        "InferenceBenchmarkSet": InferenceBenchmarkSet,
        "Program": Program,
        "QAicProgramProperties": ProgramProperties,
        "QBuffer": QBuffer,
        "QIDList": QIDList,
        "QLogLevel": QLogLevel,
        "QStatus": QStatus,
        "Qpc": Qpc,
        "Queue": Queue,
        "Util": Util,
    }
    if profile.has_newer_runtime_calls:
        names |= {
            "ExecObj": NewerExecObj,
            "ProfilingHandle": ProfilingHandle,
            "Program": NewerProgram,
            "QAicProfilingTypeEnum": QAicProfilingTypeEnum,
            "QAicQueueProperties": QueueProperties,
        }
    return names
