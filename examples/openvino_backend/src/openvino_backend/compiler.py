"""The part of compiling that runs in a child process. Arguments and results are JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def compile_file(
    source: str, target: str, shapes: dict[str, list[int]], states: dict[str, str], precision: str
) -> dict[str, Any]:
    """Compiles an ONNX file for the CPU.

    Args:
        source: the ONNX file.
        target: where the program is written.
        shapes: of the inputs, by name; -1 for a size that is not known.
        states: input -> output; they become variables, which stay in the program from step to step.
        precision: numbers that the program computes in.
    """
    import openvino as ov
    from openvino.passes import MakeStateful, Manager

    core = ov.Core()
    model = core.read_model(source)
    model.reshape({name: ov.PartialShape(shape) for name, shape in shapes.items()})
    if states:
        manager = Manager()
        manager.register_pass(MakeStateful(states))
        manager.run_passes(model)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    Path(target).write_bytes(compiled.export_model().getvalue())
    return {"version": ov.__version__}
