"""How a tool fails: the text on stderr and the exit code."""

from __future__ import annotations

EXIT_FAILURE = 1
EXIT_USAGE = 2
#: A missing shared library, as the dynamic loader ends a process.
EXIT_NOT_LOADED = 127


class ToolError(Exception):
    """A refusal."""

    def __init__(self, text: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(text)
        self.text = text
        self.exit_code = exit_code
