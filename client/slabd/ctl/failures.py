"""From slabd's errors to a line for people and an exit code for scripts. Pure."""

from __future__ import annotations

from typing import Final

from slabd import errors
from slabd.ctl.exits import ExitCode

_START: Final = "start one with `slabd serve`, or say where it is: --address DIR or $SLABD_ADDRESS"


def explain(error: errors.SlabdError) -> tuple[str, ExitCode]:
    """Return what to print, in one line with what to do, and how to exit."""
    message = " ".join(str(error).split())
    if error.reason is not None:
        return f"the daemon refused: {message}", ExitCode.REFUSED
    match error:
        case errors.InvalidArgument():
            return message, ExitCode.USAGE
        case errors.DaemonUnavailable():
            return f"{message}; {_START}", ExitCode.UNREACHABLE
        case errors.DeadlineExceeded():
            return f"the daemon is there but does not answer in time: {message}; is it stopped?", ExitCode.TIMED_OUT
        case errors.UnsupportedVersion():
            return f"{message}; the daemon is older or newer than this slabctl", ExitCode.REFUSED
    return message, ExitCode.REFUSED
