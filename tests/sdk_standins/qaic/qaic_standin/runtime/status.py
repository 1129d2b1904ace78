"""Status codes and log levels. Like the real bindings' enums, they do not compare equal to integers."""

from __future__ import annotations

from enum import Enum


class QStatus(Enum):
    """Result of a runtime call."""

    QS_SUCCESS = 0
    QS_PERM = 1
    QS_AGAIN = 2
    QS_NOMEM = 3
    QS_BUSY = 4
    QS_NODEV = 5
    QS_INVAL = 6
    QS_NOSPC = 7
    QS_BADFD = 8
    QS_TIMEDOUT = 9
    QS_PROTOCOL = 10
    QS_UNSUPPORTED = 11
    QS_DATA_CRC_ERROR = 12
    QS_DEV_ERROR = 300
    QS_ERROR = 500

    def __int__(self) -> int:
        return int(self.value)


class QLogLevel(Enum):
    """Verbosity of a context."""

    QL_DEBUG = 0
    QL_INFO = 1
    QL_WARN = 2
    QL_ERROR = 3
