"""A small host program over `qaicrt`, written the way users of the SDK write it. Independent of the stand-in's code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

RETAINED_PREFIX = "past_"


class HostSession:
    """Buffers by name; retained state is skipped. Fails loudly on any status that is not success."""

    def __init__(
        self,
        modules: tuple[ModuleType, ModuleType],
        qpc: Path,
        device_ids: Sequence[int] = (0,),
        *,
        activate: bool = True,
    ) -> None:
        self.rt, api = modules
        self.dtypes: dict[int, np.dtype[Any]] = {
            api.FLOAT_TYPE: np.dtype(np.float32),
            api.FLOAT_16_TYPE: np.dtype(np.float16),
            api.INT8_Q_TYPE: np.dtype(np.int8),
            api.UINT8_Q_TYPE: np.dtype(np.uint8),
            api.INT16_Q_TYPE: np.dtype(np.int16),
            api.INT32_I_TYPE: np.dtype(np.int32),
            api.INT64_I_TYPE: np.dtype(np.int64),
            api.INT8_TYPE: np.dtype(np.int8),
            getattr(api, "BFLOAT16_TYPE", 11): np.dtype(np.float16),
        }
        self.context = self.rt.Context(self.rt.QIDList(list(device_ids)))
        self.queue = self.rt.Queue(self.context, device_ids[0])
        self.qpc = self.rt.Qpc(str(qpc))
        status, data = self.qpc.getIoDescriptor()
        self.check(status)
        self.description = api.IoDesc()
        self.description.ParseFromString(bytes(data))
        self.bindings = list(self.description.selected_set.bindings)
        self.index = {binding.name: binding.index for binding in self.bindings}
        properties = self.rt.QAicProgramProperties()
        if len(device_ids) > 1:
            properties.devMapping = ":".join(map(str, device_ids))
        device = None if len(device_ids) > 1 else device_ids[0]
        self.program = self.rt.Program(self.context, device, self.qpc, properties)
        self.check(self.program.load())
        self.buffers = [self.rt.QBuffer(bytes(binding.size)) for binding in self.bindings]
        self.dims = self.rt.BufferDimensionsVecRef(
            [(self.dtypes[binding.type].itemsize, list(binding.dims)) for binding in self.bindings]
        )
        self.skip(*(name for name in self.index if name.startswith(RETAINED_PREFIX)))
        self.exec_object: Any = None
        if activate:
            self.activate()

    def check(self, status: Any) -> None:
        assert status == self.rt.QStatus.QS_SUCCESS, status

    def activate(self) -> None:
        self.check(self.program.activate())
        self.exec_object = self.rt.ExecObj(self.context, self.program)

    def deactivate(self) -> None:
        self.exec_object = None
        self.check(self.program.deactivate())

    def set(self, values: Mapping[str, np.ndarray]) -> None:
        for name, value in values.items():
            self.buffers[self.index[name]] = self.rt.QBuffer(value.tobytes())
            self.dims[self.index[name]] = (value.itemsize, value.shape or (1,))

    def skip(self, *names: str) -> None:
        self.set(dict.fromkeys(names, np.array([])))

    def submit(self) -> None:
        self.check(self.exec_object.setData(self.buffers, self.dims))
        self.check(self.queue.enqueue(self.exec_object))

    def try_run(self, values: Mapping[str, np.ndarray]) -> Any:
        """Run and return the status of `waitForCompletion`."""
        self.set(values)
        self.submit()
        return self.exec_object.waitForCompletion()

    def run(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.check(self.try_run(values))
        status, blocks = self.exec_object.getData()
        self.check(status)
        return {
            binding.name: np.frombuffer(bytes(block), self.dtypes[binding.type]).reshape(self.dims[binding.index][1])
            for binding, block in zip(self.bindings, blocks, strict=True)
            if block.size
        }

    def step(self, tokens: Sequence[int], start: int, *, width: int = 0) -> np.ndarray:
        """Logits [vocab] after feeding `tokens` from position `start`, padded on the right to `width` with position -1."""
        width = width or len(tokens)
        pad = width - len(tokens)
        ids = np.array([[*tokens, *[0] * pad]], np.int64)
        positions = np.array([[*range(start, start + len(tokens)), *[-1] * pad]], np.int64)
        logits = self.bindings[self.index["logits"]]
        placeholder = np.zeros((1, *logits.dims[1:]), self.dtypes[logits.type])
        outputs = self.run({"input_ids": ids, "position_ids": positions, "logits": placeholder})
        return np.asarray(outputs["logits"][0, 0])
