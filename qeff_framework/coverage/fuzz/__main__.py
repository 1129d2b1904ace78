"""``python -m qeff_framework.coverage.fuzz``."""

import sys

from qeff_framework.coverage.fuzz.command import main

if __name__ == "__main__":
    sys.exit(main())
