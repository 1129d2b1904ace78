"""How large the numbers of a model get on calibration prompts. Part of the child process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qnn_backend.htp.golden import Interface, golden_steps
from qnn_backend.htp.provider import cpu_session, run_reference


def measure(
    graph: str, values: Sequence[str], interface: Mapping[str, Any], prompts: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The largest absolute number of each of `values` over the first chunk of every prompt, in float32 on the CPU.

    The first chunk has the first token of a text, where the residual stream of many models is largest.
    """
    import onnx

    source = Path(graph)
    model = onnx.load(str(source), load_external_data=False)
    present = {output.name for output in model.graph.output}
    for name in values:
        if name not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    exposed = source.with_name(f"{source.stem}_measured.onnx")
    onnx.save(model, str(exposed))
    session = cpu_session(exposed)
    exposed.unlink()
    described = Interface(**interface)
    largest = dict.fromkeys(values, 0.0)

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        for name, content in run_reference(session, feeds, values).items():
            if content.size:
                largest[name] = max(largest[name], float(np.abs(content).max()))
        return {}

    for variant in range(len(prompts)):
        next(iter(golden_steps(described, run, prompts, variant)))
    return {"largest": largest}
