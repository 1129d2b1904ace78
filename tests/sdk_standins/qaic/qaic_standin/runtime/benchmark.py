"""`InferenceBenchmarkSet`: repeated runs of one set of buffers, and `ProfilingHandle`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from .buffers import BufferDimensionsVecRef, QBuffer
from .context import Context, Qpc
from .exec_object import ExecObj, Queue
from .program import Program
from .properties import ProgramProperties
from .status import QStatus
from .strict_types import require


class InferenceBenchmarkSet:
    """Runs the same inputs again and again. Times are those of this host and mean nothing for the device."""

    def __init__(
        self,
        context: Context,
        qpc: Qpc,
        dev: int,
        setSize: int,
        numActivations: int,
        buffers: list[QBuffer],
        properties: ProgramProperties | None = None,
    ) -> None:
        self._context = require(context, Context, "InferenceBenchmarkSet")
        self._qpc = require(qpc, Qpc, "InferenceBenchmarkSet")
        self._dev = require(dev, int, "InferenceBenchmarkSet")
        require(setSize, int, "InferenceBenchmarkSet")
        self._activations = require(numActivations, int, "InferenceBenchmarkSet")
        self._buffers = require(buffers, list, "InferenceBenchmarkSet")
        self._properties = properties or ProgramProperties()
        self._programs: list[Program] = []
        self._exec_objects: list[ExecObj] = []
        self._stats = (0, 0.0, 0, 1)

    def enable(self) -> QStatus:
        """Activate the programs."""
        for _ in range(self._activations):
            program = Program(self._context, self._dev, self._qpc, self._properties)
            try:
                self._exec_objects.append(ExecObj(self._context, program))
            except RuntimeError:
                self.disable()
                return QStatus.QS_NOSPC
            self._programs.append(program)
        return QStatus.QS_SUCCESS

    def run(self, numInferences: int) -> QStatus:
        """Run a number of inferences, spread over the activations."""
        return self._measure(numInferences, None)

    def runForDuration(self, seconds: int) -> QStatus:
        """Run for a time."""
        return self._measure(None, seconds)

    def getLastRunStats(self) -> tuple[int, float, int, int]:
        """Count, inferences per second, microseconds, batch size of the last run."""
        return self._stats

    def disable(self) -> QStatus:
        """Deactivate the programs."""
        self._exec_objects.clear()
        statuses = [program.deactivate() for program in self._programs]
        self._programs.clear()
        return next((status for status in statuses if status is not QStatus.QS_SUCCESS), QStatus.QS_SUCCESS)

    def _measure(self, limit: int | None, seconds: float | None) -> QStatus:
        if not self._exec_objects:
            return QStatus.QS_INVAL
        description = self._qpc._description
        dims = BufferDimensionsVecRef(
            [
                (binding.element_size, list(description.largest_dims(index)))
                for index, binding in enumerate(description.bindings)
            ]
        )
        queue = Queue(self._context, self._dev)
        start, count = time.perf_counter(), 0
        while count != limit and (seconds is None or time.perf_counter() - start < seconds):
            exec_object = self._exec_objects[count % len(self._exec_objects)]
            for status in _run_once(exec_object, queue, self._buffers, dims):
                if status is not QStatus.QS_SUCCESS:
                    return status
            count += 1
        elapsed = time.perf_counter() - start
        self._stats = (count, count / elapsed, int(elapsed * 1e6), 1)
        return QStatus.QS_SUCCESS


def _run_once(
    exec_object: ExecObj, queue: Queue, buffers: list[QBuffer], dims: BufferDimensionsVecRef
) -> list[QStatus]:
    return [exec_object.setData(buffers, dims), queue.enqueue(exec_object), exec_object.waitForCompletion()]


class QAicProfilingTypeEnum(Enum):
    """Kinds of profile."""

    QAIC_PROFILING_INFERENCE_LATENCY_TYPE = 0
    QAIC_PROFILING_INFERENCE_TRACE_TYPE = 1
    QAIC_PROFILING_INFERENCE_RAW_DEVICE_STATS_TYPE = 2
    QAIC_PROFILING_INFERENCE_DEV_KPI_TYPE = 3


class ProfilingHandle:
    """Between `start` and `stop` a profile is taken; here a JSON file that names the programs' devices and the time."""

    def __init__(
        self, *, programs: Sequence[Program], type: QAicProfilingTypeEnum, fileNamePrefix: str, outputDirectory: str
    ) -> None:
        self._programs = [require(program, Program, "ProfilingHandle") for program in programs]
        self._type = require(type, QAicProfilingTypeEnum, "ProfilingHandle")
        self._file = Path(require(outputDirectory, str, "ProfilingHandle")) / f"{fileNamePrefix}_profile.json"
        self._started: float | None = None

    def start(self) -> QStatus:
        """Begin; QS_INVAL when already begun or the folder does not exist."""
        if self._started is not None or not self._file.parent.is_dir():
            return QStatus.QS_INVAL
        self._started = time.perf_counter()
        return QStatus.QS_SUCCESS

    def stop(self) -> QStatus:
        """End and write the file; QS_INVAL when not begun."""
        if self._started is None:
            return QStatus.QS_INVAL
        document = {
            "type": self._type.name,
            "devices": [list(program._qids) for program in self._programs],
            "seconds": time.perf_counter() - self._started,
        }
        self._file.write_text(json.dumps(document), encoding="utf-8")
        self._started = None
        return QStatus.QS_SUCCESS
