"""Boundary tags: where free ranges begin and end, of which no operation is long.

Owns the two tags of each range. Those of the ranges that changed last are *at hand*, in two dictionaries, which whoever
changes ranges uses directly. When there are more than `AT_HAND` of them, those that have not changed for longest are
put away, some at a time, into tables in parts (`page_table`), and taken out again before they change. So no dictionary
ever has to grow to hundreds of thousands of items, which would stop everybody for tens of milliseconds; and where there
are fewer ranges, nobody pays for tables in parts, with which a pair takes a fifth longer. Must not know what a range is
for.

Invariants, for each range [s, s + n):

    it is at hand:    pages[s] = n  and  starts[s + n] = s
    or put away:      _away_pages[s] = n  and  _away_starts[s + n] = s
    away = how many are put away
"""

from __future__ import annotations

import sys
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import InvariantBroken
from slabd_server.core.page_table import PageTable
from slabd_server.core.spare import LOOSE, without_spare

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_HAND: Final = 32768
# So many are put away at a time: in between there may be that many more at hand.
_AT_ONCE: Final = 64


class Tags:
    """The tags of the free ranges of a heap of `pages` pages; none at first. `parts` is how many parts are away."""

    __slots__ = ("_away_pages", "_away_starts", "away", "mask", "pages", "parts", "starts")

    def __init__(self, pages: int) -> None:
        self.pages: dict[int, int] = {}
        self.starts: dict[int, int] = {}
        self.away = 0
        self._away_pages: PageTable[int] = PageTable(pages)
        self._away_starts: PageTable[int] = PageTable(pages)
        self.mask = self._away_pages.mask
        self.parts = len(self._away_pages.parts)

    def __len__(self) -> int:
        return len(self.pages) + self.away

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return chain(self.pages.items(), self._away_pages.items())

    def length(self, start: int) -> int:
        """Return the length of the range that begins at page `start`, 0 if none does."""
        return self.pages.get(start) or (self._away_pages.get(start) if self.away else None) or 0

    def start(self, end: int) -> int:
        """Return where the range begins that ends before page `end`, -1 if none does."""
        start = self.starts.get(end)
        if start is None and self.away:
            start = self._away_starts.get(end)
        return -1 if start is None else start

    def is_away(self, start: int) -> bool:
        """Tell whether the range that begins at page `start` is put away."""
        return start in self._away_pages

    def away_around(self, first: int, end: int) -> list[int]:
        """List where the ranges begin that are put away, of those that end before `first` or begin at `end`."""
        away, mask, shift = self._away_pages.parts, self.mask, self._away_pages.shift
        around = [end] if end >> shift in away[end & mask] else []
        start = self._away_starts.parts[first & mask].get(first >> shift)
        if start is not None:
            around.append(start)
        return around

    def in_part(self, part: int) -> set[int]:
        """Return where the ranges begin that are put away in one of the parts: start & mask = part."""
        return {high << self._away_pages.shift | part for high in self._away_pages.parts[part]}

    def take_out(self, start: int) -> None:
        """Have the range that begins at page `start` at hand, which is put away."""
        mask, shift = self.mask, self._away_pages.shift
        length = self.pages[start] = self._away_pages.parts[start & mask].pop(start >> shift)
        end = start + length
        self.starts[end] = self._away_starts.parts[end & mask].pop(end >> shift)
        self.away -= 1

    def oldest(self) -> list[int]:
        """List the ranges that are to be put away, because there are more at hand than should be."""
        return list(islice(self.pages, _AT_ONCE)) if len(self.pages) > AT_HAND else []

    def put_away(self, start: int) -> None:
        """Put the range away that begins at page `start`, which is at hand."""
        mask, shift = self.mask, self._away_pages.shift
        length = self._away_pages.parts[start & mask][start >> shift] = self.pages.pop(start)
        end = start + length
        self._away_starts.parts[end & mask][end >> shift] = self.starts.pop(end)
        self.away += 1

    def tidy(self) -> None:
        """Give up the room of ranges that are gone, in one table and in one part; the next time, in others.

        `pages` or `starts` may be another dictionary afterwards.
        """
        # One of the two in a step: they have as many items.
        if sys.getsizeof(self.pages) > sys.getsizeof(self.starts):
            self.pages = without_spare(self.pages, LOOSE)
        else:
            self.starts = without_spare(self.starts, LOOSE)
        if self.away:
            self._away_pages.tidy()
            self._away_starts.tidy()

    def check(self) -> None:
        """Raise `InvariantBroken`, with the numbers, unless every invariant at the top of this file holds. Linear."""
        for pages, starts in (
            (self.pages, self.starts),
            (dict(self._away_pages.items()), dict(self._away_starts.items())),
        ):
            if starts != {start + length: start for start, length in pages.items()}:
                raise InvariantBroken(f"{len(starts)} end tags do not match {len(pages)} start tags")
        if twice := self.pages.keys() & dict(self._away_pages.items()).keys():
            raise InvariantBroken(f"ranges {sorted(twice)[:10]} are at hand and put away")
        if self.away != len(self._away_pages):
            raise InvariantBroken(f"{self.away} ranges counted away, {len(self._away_pages)} are")
