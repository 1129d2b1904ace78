"""The small files that the QNN tools read beside the model. Each function returns the text of one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qeff_framework.plugin_api import CompileError, Specialization, StateSpec, TensorSpec
from qnn_backend.constants import QnnConstants

#: Inputs that get a shape for each graph even where both are the same, so that the converter makes two graphs.
_TELLING = ("input_ids", "position_ids")


def graph_names(specializations: Sequence[Specialization]) -> tuple[str, ...]:
    """Names of the graphs in the DLC, in the order of the specializations.

    Raises:
        CompileError: more than the converter supports.
    """
    known = (QnnConstants.GRAPH_NAMES_PREFILL_ONLY, QnnConstants.GRAPH_NAMES)
    found = next((names for names in known if len(names) == len(specializations)), None)
    if found is None:
        names = ", ".join(item.name for item in specializations) or "none"
        raise CompileError(
            f"qnn, target aic: {len(specializations)} specializations were asked for ({names}), the QAIRT converter supports "
            "one or two. Ask for fewer sizes, or use backend='qaic'"
        )
    return found


def sizes_of_outputs(
    inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], specializations: Sequence[Specialization]
) -> dict[str, int]:
    """Sizes that only outputs have, such as the number of a clip's frames: the graph must name them itself.

    Raises:
        CompileError: they differ between two graphs; `io_config` gives the converter the sizes of inputs alone.
    """
    known = {size for spec in inputs for size in spec.shape}
    found: dict[str, int] = {}
    for spec in outputs:
        for size in spec.shape:
            if not isinstance(size, str) or size in known:
                continue
            values = {item.dims[size] for item in specializations}
            if len(values) > 1:
                raise CompileError(
                    f"qnn, target aic: the output '{spec.name}' has the size {size}, which no input has, and the QAIRT tools are "
                    "told sizes of inputs alone; compile for one length, or for backend='qaic'"
                )
            found[size] = values.pop()
    return found


def io_config(
    inputs: Iterable[TensorSpec],
    outputs: Iterable[TensorSpec],
    states: Iterable[StateSpec],
    specializations: Sequence[Specialization],
    *,
    mxint8: bool,
) -> str:
    """YAML that gives every input its shapes, and every input and output its data type. Retained states are FP16 or bytes.

    MXINT8 is no data type of the converter: such a state is ``uint8`` here, and `data_formats` says the rest.
    """
    retained = _state_types(states, mxint8=mxint8)
    sections: dict[str, list[tuple[str, str, str | None]]] = {
        "Input Tensor Configuration": [
            (spec.name, _data_type(spec, retained), _shapes(spec, specializations)) for spec in inputs
        ],
        "Output Tensor Configuration": [(spec.name, _data_type(spec, retained), None) for spec in outputs],
    }
    lines = []
    for title, items in sections.items():
        lines.append(f"{title}:")
        for name, data_type, shapes in items:
            # A name in JSON's quotes is YAML whatever characters it has.
            lines += [f"- Name: {json.dumps(name)}", "  Desired Model Parameters:", f"    DataType: {data_type}"]
            if shapes is not None:
                lines.append(f"    Shape: {shapes}")
    return "\n".join(lines) + "\n"


def _state_types(states: Iterable[StateSpec], *, mxint8: bool) -> dict[str, str]:
    return {
        name: "uint8" if mxint8 and _is_cache(state) else "float16"
        for state in states
        for name in (state.input, state.output)
    }


def _data_type(spec: TensorSpec, retained: Mapping[str, str]) -> str:
    """A state that counts or marks something keeps its type."""
    return retained.get(spec.name, spec.dtype) if spec.dtype.startswith("float") else spec.dtype


def _is_cache(state: StateSpec) -> bool:
    """Convolution and recurrent states are small and sensitive; only caches are compressed."""
    return state.kind == "kv"


def _shapes(spec: TensorSpec, specializations: Sequence[Specialization]) -> str:
    shapes = [
        tuple(dim if isinstance(dim, int) else specialization.dims[dim] for dim in spec.shape)
        for specialization in specializations
    ]
    if len(set(shapes)) == 1 and spec.name not in _TELLING:
        shapes = shapes[:1]
    return ", ".join(f"({', '.join(map(str, shape))})" for shape in shapes)


def data_formats(states: Iterable[StateSpec], graphs: Iterable[str]) -> str:
    """JSON that stores the caches as MXINT8 in every graph."""
    tensors = [
        {"tensor_name": name, "dataFormat": QnnConstants.DATA_FORMAT_MX}
        for state in states
        if _is_cache(state)
        for name in (state.input, state.output)
    ]
    return to_json({"graphs": [{"graph_name": graph, "tensors": tensors} for graph in graphs]})


def tensor_slicing(num_devices: int) -> str:
    """One partition over all devices. Unlike in the QAIC SDK's form of this file, a device has no number of cores."""
    ids = list(range(num_devices))
    return to_json(
        {
            "connections": [{"devices": ids, "type": "p2p"}],
            "partitions": [{"name": "Partition0", "devices": [{"deviceId": number} for number in ids]}],
        }
    )


def compiler_config(extensions_library: str) -> str:
    """JSON that names the back end's extension and its options. Relative paths are relative to the working folder."""
    return to_json(
        {
            "backend_extensions": {
                "config_file_path": QnnConstants.QNN_COMPILE_BACKEND_NAME,
                "shared_library_path": extensions_library,
            }
        }
    )


def to_json(content: Any) -> str:
    """Indented, keys sorted."""
    return json.dumps(content, indent=4, sort_keys=True) + "\n"
