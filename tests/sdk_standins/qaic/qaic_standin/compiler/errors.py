"""The failures of the stand-in compiler and the text that the real one is known to print for them."""

from __future__ import annotations

EXIT_FAILURE = 1
EXIT_ABORT = 255


class CompileError(Exception):
    """A failed compilation: the text for stderr and the exit code."""

    def __init__(self, text: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(text)
        self.text = text
        self.exit_code = exit_code


def invalid_option(as_given: str) -> CompileError:
    """An argument that the option table does not know."""
    return CompileError(f"Invalid option {as_given}. Use -h, -help, or --help for list of options.")


def wrong_value(option: str, value: str, expected: str) -> CompileError:
    """A known option with a value that it cannot take."""
    return CompileError(f"Invalid value '{value}' for option {option}: expected {expected}.")


def compile_failed(reason: str) -> CompileError:
    """A model or side file that cannot be compiled."""
    return CompileError(f"QAIC_ERROR:\nError message: {reason}\nUnable to Compile")


def operator_failed(node: str, opset_version: int, ir_version: int, reason: str) -> CompileError:
    """An operator that the ONNX importer refuses."""
    return CompileError(
        "QAIC_ERROR:\n"
        f"Error message:  [Operator-'{node}', opset_version-{opset_version}, ir_version-{ir_version}] : {reason}\n"
        "QAICException:Unable to AddNodesToGraphFromModel"
    )


def json_exception(number: int, kind: str, text: str) -> CompileError:
    """An uncaught exception of the JSON reader; the process aborts."""
    return CompileError(
        f"terminating: [json.exception.{kind}.{number}] {text}",
        exit_code=EXIT_ABORT,
    )
