"""The compile stage: input files, command line, the compiler's process, and what its failures mean."""

from __future__ import annotations

from qaic_backend.compiler.stage import compile_model

__all__ = ["compile_model"]
