"""Painting on a terminal: a region of lines painted over and over, with what stays above it; bars that fit."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from slabd.ctl.terminal import width

if TYPE_CHECKING:
    from typing import TextIO

WIDEST_BAR: Final = 32
_FULL: Final = "█"
_EMPTY: Final = "░"
_HIDE_CURSOR: Final = "\x1b[?25l"
_SHOW_CURSOR: Final = "\x1b[?25h"
_CLEAR_BELOW: Final = "\x1b[J"
_CLEAR_LINE: Final = "\x1b[K"


class Painter:
    """The lower end of a terminal. Lines that stay are never cut; lines of the region are, to the terminal's width."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._painted = 0
        self._shown: list[str] = []

    def stay(self, lines: list[str]) -> None:
        """Write lines that stay, above the region."""
        self._write(lines, self._shown)

    def paint(self, region: list[str]) -> None:
        """Paint the region anew."""
        self._shown = region
        self._write([], region)

    def close(self) -> None:
        """Take the region away and leave the terminal as it was."""
        if self._painted:
            self._write([], [])
            self._stream.write(_SHOW_CURSOR)
            self._stream.flush()
        self._shown = []

    def _write(self, staying: list[str], region: list[str]) -> None:
        columns = shutil.get_terminal_size().columns
        # One write for all of it, so that no half-painted region is ever seen.
        up = f"\x1b[{self._painted}A\r" if self._painted else ""
        # Line by line: some terminals keep a screen that is cleared as a whole in their history, every time.
        lines = [*staying, *(fit(line, columns) for line in region)]
        text = [f"{_HIDE_CURSOR if region else ''}{up}", *(f"{_CLEAR_LINE}{line}\n" for line in lines), _CLEAR_BELOW]
        self._painted = len(region)
        self._stream.write("".join(text))
        self._stream.flush()


def bar(part: int, whole: int, wide: int = WIDEST_BAR) -> str:
    """Return a bar; it is full only when all is done, and empty only when nothing is."""
    filled = wide * part // whole if whole else wide
    if part and not filled:
        filled = 1
    return _FULL * filled + _EMPTY * (wide - filled)


def fit(line: str, columns: int) -> str:
    """Return a line cut to a terminal's width, colours not counted: a line that wraps would spoil the region."""
    shown = 0
    at = 0
    while at < len(line):
        if line[at] == "\x1b":
            at = line.index("m", at) + 1
            continue
        shown += width(line[at])
        if shown >= columns:
            return line[:at] + ("\x1b[0m" if "\x1b" in line else "")
        at += 1
    return line
