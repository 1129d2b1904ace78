"""16-bit activations and 8-bit weights, calibrated. Part of the child process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qnn_backend.htp.golden import Arrays, Interface, calibration_steps
from qnn_backend.htp.host_tables import HostTables
from qnn_backend.htp.provider import cpu_session, run_reference


def quantise(
    portable: str,
    graphs: Mapping[str, str],
    interface: Mapping[str, Any],
    prompts: Sequence[Sequence[int]],
    folder: str,
    host_tables: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Writes ``<graph>_a16w8.onnx`` beside each graph, with quantisation nodes from ONNX Runtime's QNN configuration.

    Weights of matrix products get one scale for each column: with one for all of them MiniLM loses a percent of the cosine. Norms
    cannot have that, the compiler refuses it.
    """
    from onnxruntime.quantization import QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    described = Interface(**interface)
    reference = cpu_session(Path(portable))

    def run(feeds: Mapping[str, Any]) -> Arrays:
        return run_reference(reference, feeds)

    tables = HostTables(Path(folder), host_tables)
    steps = list(calibration_steps(described, run, prompts))
    results = {}
    for name, path in graphs.items():
        source = Path(path)
        inputs = _inputs(source)
        reader = _reader([tables.feeds_of(inputs, step.feeds) for step in steps if step.graph == name])
        target = source.with_name(f"{source.stem}_a16w8.onnx")
        config = get_qnn_qdq_config(
            str(source),
            reader,
            activation_type=QuantType.QUInt16,
            weight_type=QuantType.QUInt8,
            init_overrides={
                weight: [{"quant_type": QuantType.QInt8, "axis": 1, "symmetric": True}] for weight in _weights(source)
            },
        )
        config.use_external_data_format = True
        quantize(str(source), str(target), config)
        results[name] = str(target)
    return {"graphs": results}


def _reader(feeds: Sequence[Arrays]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Arrays] = iter(feeds)

        def get_next(self) -> Arrays | None:
            return next(self._left, None)

        def rewind(self) -> None:
            self._left = iter(feeds)

    return Reader()


def _inputs(source: Path) -> list[str]:
    import onnx

    return [value.name for value in onnx.load(str(source), load_external_data=False).graph.input]


def _weights(source: Path) -> list[str]:
    """Names of the matrices that products have on their right side."""
    import onnx

    graph = onnx.load(str(source), load_external_data=False).graph
    matrices = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    used = [node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in matrices]
    return sorted(set(used))
