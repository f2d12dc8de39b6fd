"""How slabctl ends: one number for each way, the same for every command."""

from __future__ import annotations

import sys
from enum import IntEnum

from slabd.ctl.terminal import printable


class ExitCode(IntEnum):
    """What a script can tell from `$?`."""

    OK = 0
    WRONG = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    TIMED_OUT = 5
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """What `--help` says about it."""
        return _MEANING[self]


_MEANING = {
    ExitCode.OK: "done, and nothing is wrong",
    ExitCode.WRONG: "done, and something is wrong: check, health or demo says what",
    ExitCode.USAGE: "the command line makes no sense",
    ExitCode.UNREACHABLE: "no daemon answers",
    ExitCode.REFUSED: "the daemon refused, and said why",
    ExitCode.TIMED_OUT: "it did not happen in time",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}


def exit_table() -> str:
    """Return the lines that `--help` ends with."""
    return "exit codes:\n" + "\n".join(f"  {code.value:>3}  {code.meaning}" for code in ExitCode)


def complain(message: str, code: ExitCode) -> ExitCode:
    """Say in one line on standard error what is wrong, and return how to exit."""
    print(f"slabctl: {printable(message)}", file=sys.stderr)
    return code
