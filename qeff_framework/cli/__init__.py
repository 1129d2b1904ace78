"""The ``qeff`` command, one file per subcommand.

A subcommand computes a `CommandResult`; `main` prints it as text or JSON and turns errors into exit codes. Importing this
package loads nothing heavy: subcommands import what they need when they run.
"""

from __future__ import annotations

from qeff_framework.cli.app import main

__all__ = ["main"]
