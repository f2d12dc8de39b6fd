"""File descriptors that may outlive what they were opened for: a forked child closes what its parent opened."""

from __future__ import annotations

import os
from contextlib import suppress


class Descriptor:
    """A file descriptor that is closed once, and only while it is still open on what it was.

    A daemonised child closes all its descriptors, and their numbers become other files'.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._file = _file_behind(number)

    def close(self) -> None:
        """Close it. Safe in the garbage collector, and in two threads at once."""
        number, self.number = self.number, -1
        if number >= 0 and _file_behind(number) == self._file:
            with suppress(OSError):
                os.close(number)


def _file_behind(number: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino
