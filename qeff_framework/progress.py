"""Short messages about long steps: one logger, which the command line shows as a live line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from qeff_framework.parallel import check_stopped, part_name

logger = logging.getLogger(__name__)

#: Seconds between two messages of one step.
_PART_SECONDS = 0.2


def report(message: str) -> None:
    """Says that a long step starts. Passed to the hooks as `progress`.

    In a part of `run_parts` the part is named in front, and a part that was stopped ends here.
    """
    check_stopped()
    name = part_name()
    logger.info("%s", f"{name}: {message}" if name else message)


def reported_parts(message: str, total: int, *, announce: Callable[[str], None] = report) -> Callable[[int], None]:
    """Says by `announce` that a step of `total` parts starts; the result is called with the number of parts that are done.

    The records of the parts have the attribute ``part``, done and total. A terminal shows them as a bar; elsewhere only the
    first message is printed. There is one bar, so that steps of parts of `run_parts` have none.
    """
    announce(message)
    last = time.monotonic()

    def done(count: int) -> None:
        nonlocal last
        check_stopped()
        now = time.monotonic()
        if now - last >= _PART_SECONDS and not part_name():
            last = now
            logger.info(message, extra={"part": (count, total)})

    return done
