"""How the `slabd` command ends, and the one kind of error that means it could not begin.

StartError                        could not start; exit status 3
├── segments.SegmentError         no memory for a heap or a ledger
└── daemon.StartError             a socket, a lock or a certificate is not to be had

Unusable options are `options.ConfigError`, exit status 2. Neither is a defect: each says in one line what is wrong and
what to do, and is shown without a traceback.
"""

from __future__ import annotations

import enum
from typing import Self


class ExitCode(enum.IntEnum):
    """What the exit status of `slabd` means."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """Make a member of a number and the line that explains it in `slabd --help`."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    OK = 0, "done, or stopped when asked to"
    USAGE = 2, "unusable options or configuration"
    NO_START = 3, "could not start: not enough memory, another daemon is running, a port is in use"
    INTERNAL = 70, "a defect of slabd"
    INTERRUPTED = 130, "interrupted before it could stop in order"


class StartError(Exception):
    """The daemon cannot start; the message says why and what to do about it."""
