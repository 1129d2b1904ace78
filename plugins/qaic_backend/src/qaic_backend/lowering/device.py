"""What the compiler and the device ask of a graph."""

from __future__ import annotations

from qeff_framework.lowering import FLOAT16_MIN

#: Domains of the functions that the compiler knows by name.
CACHE_FUNCTIONS = "com.qualcomm.cloud"
NATIVE_FUNCTIONS = "com.qti.aisw.onnx"
#: Largest finite number of the device's FP16.
FLOAT16_MAX = -FLOAT16_MIN
#: An index that the device drops when it writes, and for which it reads zeros: the largest int32, the type of its indices.
BEYOND_CACHE = 2**31 - 1
