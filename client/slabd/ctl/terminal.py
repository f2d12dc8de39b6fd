"""What may be written to a terminal: colour only where it is welcome, and nothing that a client could smuggle in."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

_RESET: Final = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Style:
    """Colours, or none."""

    coloured: bool = False

    def bold(self, text: str) -> str:
        """Return it bold."""
        return self._wrap("1", text)

    def dim(self, text: str) -> str:
        """Return it in the background."""
        return self._wrap("2", text)

    def good(self, text: str) -> str:
        """Return it as good news."""
        return self._wrap("32", text)

    def warn(self, text: str) -> str:
        """Return it as something to look at."""
        return self._wrap("33", text)

    def bad(self, text: str) -> str:
        """Return it as bad news."""
        return self._wrap("31;1", text)

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}{_RESET}" if self.coloured and text else text


PLAIN: Final = Style()


def style_for(stream: TextIO, environ: Mapping[str, str]) -> Style:
    """Return colours for a terminal, unless `$NO_COLOR` is set (https://no-color.org) or it is a dumb one."""
    return Style(stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb")


def printable(text: str) -> str:
    r"""Return text with what is not printable escaped, as `\x1b`: names and labels come from clients."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def width(text: str) -> int:
    """Return how many columns printable text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(each) for each in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
