"""What went wrong in a compiler, from its exit code and its output.

The literal texts are those that users of the compiler have published; the rest of its vocabulary is not known. So the first line
that looks like an error is always shown as it is, and the advice comes after it.
"""

from __future__ import annotations

import re
import signal

NAMED_FORM_REFUSED = "[json.exception.type_error.302]"

_KILLED = 128 + signal.SIGKILL

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

_ERROR_LINE = re.compile(
    r"^\W*Operator-|QAIC_ERROR|Error message:|Unable to Compile|Compilation failed|Non-constant|not supported|Invalid option"
    r"|json\.exception|\berror\b|QAICException",
    re.IGNORECASE,
)
#: Announces an error whose text is in the lines that follow.
_BARE_HEADER = re.compile(r"^\W*QAIC_ERROR:?\s*$")


def explain(exit_code: int, output: str) -> str:
    """One or two sentences: how the compiler ended, its own first useful line, and what to do."""
    ended = _ending(exit_code)
    line = first_error_line(output)
    if line is None:
        return f"{ended} without naming an error"
    advice = next((text for pattern, text in _ADVICE if re.search(pattern, output)), None)
    return f"{ended}: {line}" + (f". {advice[0].upper()}{advice[1:]}" if advice else "")


def first_error_line(output: str) -> str | None:
    """The first line that names an error; else the last line of the output, if there is any."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    found = next((line for line in lines if _ERROR_LINE.search(line) and not _BARE_HEADER.match(line)), None)
    return found or (lines[-1] if lines else None)


def _ending(exit_code: int) -> str:
    if exit_code in (-signal.SIGKILL, _KILLED):
        return (
            "the compiler was killed, probably because the host ran out of memory (compile on a host with more, or with "
            "fewer compile_threads)"
        )
    if exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = str(-exit_code)
        return f"the compiler was ended by signal {name}"
    if exit_code == 0:
        return "the compiler ended with exit code 0, but left no program"
    return f"the compiler ended with exit code {exit_code}"
