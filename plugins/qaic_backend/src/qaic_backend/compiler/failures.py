"""What the compiler's messages mean.

The literal texts are those that users of the compiler have published; the rest of its vocabulary is not known. So the first line
that looks like an error is always shown as it is, and the advice comes after it.
"""

from __future__ import annotations

import re

from qeff_framework.toolchains import Diagnosis

NAMED_FORM_REFUSED = "[json.exception.type_error.302]"

#: Text in the output -> what to do about it.
_ADVICE = (
    (
        r"Invalid option",
        "this SDK does not know the flag: leave the option out, or set target_sdk to the SDK's version",
    ),
    (
        re.escape(NAMED_FORM_REFUSED),
        "this SDK reads the flat form of the specializations: compile with specialization_format='flat'",
    ),
    (
        r"No input that uniquely identifies specialization",
        "two specializations give the inputs the same shapes: choose other lengths",
    ),
    (r"[Nn]on-constant", "a shape in the graph is not constant for the compiler: please report the model"),
    (
        r"Unsupported cast from quantized type",
        "the KV cache cannot be stored in this type: compile without mxint8_kv_cache",
    ),
    (
        r"[Oo]ut of memory|[Nn]ot enough .*memory|does not fit|exceeds .*memory",
        "the program needs more device memory: use num_devices, mxfp6_matmul, mxint8_kv_cache or a smaller ctx_len",
    ),
    (r"AddNodesToGraphFromModel|Operator-", "the compiler cannot import an operator of the model: see the named node"),
)

DIAGNOSIS = Diagnosis(
    error_line=re.compile(
        r"^\W*Operator-|QAIC_ERROR|Error message:|Unable to Compile|Compilation failed|Non-constant|not supported|Invalid option"
        r"|json\.exception|\berror\b|QAICException",
        re.IGNORECASE,
    ),
    # Announces an error whose text is in the lines that follow, behind a tool's own prefix.
    skipped_line=re.compile(r"^\W*(?:ERROR\W*)?QAIC_ERROR:?\s*$"),
    advice=_ADVICE,
    advice_when_killed="compile on a host with more memory, or with fewer compile_threads",
)
