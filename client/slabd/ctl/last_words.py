"""What is left to say of a private daemon when what used it has failed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from slabd.errors import DaemonUnavailable

if TYPE_CHECKING:
    import slabd

_LOG_LINES: Final = 3
# One that is killed closes its sockets first, and is seen to have ended a moment later. The first is how long that is
# waited for when the error says that it is not there, the second when it says something else.
_DYING_SECONDS: Final = 10.0
_LIVING_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.01


def log_tail(daemon: slabd.PrivateDaemon) -> str:
    """Return the last lines of its log in one line."""
    return " | ".join(daemon.log().strip().splitlines()[-_LOG_LINES:])


def gone(daemon: slabd.PrivateDaemon, error: Exception) -> DaemonUnavailable | None:
    """Return the error that says so, with its log, if it has ended and `error` may come from that; else None."""
    missed = isinstance(error, OSError) or DaemonUnavailable.__name__ in str(error)
    until = time.monotonic() + (_DYING_SECONDS if missed else _LIVING_SECONDS)
    while daemon.running:
        if time.monotonic() > until:
            return None
        time.sleep(_POLL_SECONDS)
    return DaemonUnavailable(f"the private daemon has ended; its log ends with: {log_tail(daemon)}")
