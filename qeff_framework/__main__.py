"""``python -m qeff_framework`` is the ``qeff`` command."""

from __future__ import annotations

import sys

from qeff_framework.cli import main

if __name__ == "__main__":
    sys.exit(main())
