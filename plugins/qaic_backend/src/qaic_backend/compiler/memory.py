"""Whether a program can fit into the devices' memory: an estimate from below, so that what it refuses would fail for sure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from qaic_backend.devices import query_devices
from qaic_backend.options import QaicCompileOptions
from qaic_backend.sdk import Sdk
from qeff_framework.plugin_api import CompileError, ExportedModel, Specialization
from qeff_framework.sessions import resolve_shape
from qeff_framework.toolchains import ProbeError

GIB = 1024**3
#: The largest memory of one AI 100 device; that of ai200 is not published per device.
_LARGEST_AI100_GB = 32.0
#: Less than any device has.
_SMALLEST_GB = 4.0
#: MXFP6: 6 bits and a shared exponent of 8 bits for 32 values; MXINT8 likewise with 8 bits.
_MXFP6_BYTES, _MXINT8_BYTES = 6.25 / 8, 33 / 32
_BOOL_BYTES, _HALF_BYTES, _FLOAT_BYTES = 1, 2, 4


def check_memory(
    model: ir.Model,
    exported: ExportedModel,
    specializations: Sequence[Specialization],
    options: QaicCompileOptions,
    sdk: Sdk,
) -> None:
    """Raises `CompileError` when weights and retained state alone are more than the devices hold."""
    _check_bytes(weight_bytes(model, options), state_bytes(exported, specializations, options), options, sdk)


def check_least(numbers: int, options: QaicCompileOptions, sdk: Sdk) -> None:
    """As `check_memory`, of the weights alone, in the smallest form that the options ask for: before there is a graph."""
    plain = _HALF_BYTES if options.convert_to_fp16 else _FLOAT_BYTES
    _check_bytes(numbers * (_MXFP6_BYTES if options.mxfp6_matmul else plain), 0, options, sdk)


def _check_bytes(weights: float, state: float, options: QaicCompileOptions, sdk: Sdk) -> None:
    needed = (weights + state) / options.num_devices / GIB
    if options.device_memory_gb is None and needed <= _SMALLEST_GB:
        return  # It fits anywhere: no need to ask the tool.
    limit = device_memory_gb(options, sdk)
    of_state = f" and retained state of {state / GIB:.2f} GiB" if state else ""
    if limit is not None and needed > limit:
        raise CompileError(
            f"qaic: the program cannot fit: weights of {weights / GIB:.2f} GiB{of_state} make "
            f"{needed:.2f} GiB on each of {options.num_devices} devices, which have {limit:g} GiB. Use more num_devices, "
            "mxfp6_matmul, mxint8_kv_cache, or a smaller ctx_len or batch; if the devices have more, say device_memory_gb"
        )


def device_memory_gb(options: QaicCompileOptions, sdk: Sdk) -> float | None:
    """What one device holds: as told, as reported on this host, or the most that the generation has. `None`: not known."""
    if options.device_memory_gb is not None:
        return options.device_memory_gb
    try:
        devices = query_devices(sdk.util) if sdk.util is not None else ()
    except ProbeError:
        devices = ()  # The probe reports it; compiling does not need a device.
    known = [d.dram_mb for d in devices if d.dram_mb is not None and (d.generation or "ai100") == options.hw_version]
    if known:
        return max(known) / 1024
    return _LARGEST_AI100_GB if options.hw_version == "ai100" else None


def weight_bytes(model: ir.Model, options: QaicCompileOptions) -> float:
    """Bytes of the constants as the device keeps them."""
    packed = _matmul_weights(model) if options.mxfp6_matmul else set()
    total = 0.0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        if value in packed:
            total += tensor.size * _MXFP6_BYTES
        elif tensor.dtype == ir.DataType.FLOAT:
            total += tensor.size * (_HALF_BYTES if options.convert_to_fp16 else _FLOAT_BYTES)
        else:
            total += tensor.nbytes
    return total


def _matmul_weights(model: ir.Model) -> set[ir.Value]:
    """Constants on the right side of a product, also through a transposition of their own."""
    found = set()
    for node in model.graph.all_nodes():
        if node.op_type not in ("MatMul", "Gemm") or node.domain or node.inputs[1] is None:
            continue
        weight = node.inputs[1]
        producer = weight.producer()
        if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
            weight = producer.inputs[0]
        found.add(weight)
    return found


def state_bytes(
    exported: ExportedModel, specializations: Sequence[Specialization], options: QaicCompileOptions
) -> float:
    """Bytes of the retained state; all specializations share it."""
    inputs = {spec.name: spec for spec in exported.inputs}
    per_number = _MXINT8_BYTES if options.mxint8_kv_cache else _HALF_BYTES
    return sum(
        (_BOOL_BYTES if inputs[state.input].dtype == "bool" else per_number)
        * math.prod(resolve_shape(inputs[state.input], specializations[0].dims))
        for state in exported.states
    )
