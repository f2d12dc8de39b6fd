"""A table from page numbers to anything, of which no operation is long.

Owns a dictionary that is cut into parts, by the low bits of the page number: neighbours are in different parts, and a
heap's pages spread evenly whatever uses them. Promises that no operation but those that go through everything takes
longer than one on a part: a plain dictionary of a million pages takes 50 ms when it grows, and again when it is made
anew because pages have gone (`spare`). What is left of the page number is the key within a part: as it is small, most
often CPython has it already, which saves the 32 bytes that a number takes.

Must not be told pages that are no integers, and not decide what is worth making anew.

Invariants, with p a page in the table and v what it maps to:

    parts[p & mask][p >> shift] = v;   mask = len(parts) - 1 = 2 ** shift - 1
    no part's spare places take more than TIGHT bytes an item and SPARE_BYTES, when it has just been tidied

Where every operation counts, the first invariant is written out by those who use the table.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from slabd_server.core.spare import TIGHT, without_spare

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# So many pages to a part, as far as there are parts: then a key is below 256 as often as not.
_PAGES_EACH: Final = 64
PARTS_MAX: Final = 4096
SPARE_BYTES: Final = 192

V = TypeVar("V")


class PageTable(Generic[V]):
    """What each page of a heap of `pages` pages maps to; it may have more pages later."""

    __slots__ = ("_next", "mask", "parts", "shift")

    def __init__(self, pages: int) -> None:
        self.shift = min(max(pages // _PAGES_EACH, 1), PARTS_MAX).bit_length() - 1
        self.mask = (1 << self.shift) - 1
        self.parts: list[dict[int, V]] = [{} for _ in range(1 << self.shift)]
        self._next = 0

    def get(self, page: int) -> V | None:
        """Return what a page maps to, None when it is not in the table."""
        return self.parts[page & self.mask].get(page >> self.shift)

    def __getitem__(self, page: int) -> V:
        return self.parts[page & self.mask][page >> self.shift]

    def __setitem__(self, page: int, value: V) -> None:
        self.parts[page & self.mask][page >> self.shift] = value

    def __delitem__(self, page: int) -> None:
        del self.parts[page & self.mask][page >> self.shift]

    def __contains__(self, page: int) -> bool:
        return page >> self.shift in self.parts[page & self.mask]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def items(self) -> Iterator[tuple[int, V]]:
        """Walk over the pages in no order, and what they map to. Linear."""
        shift = self.shift
        return ((key << shift | low, value) for low, part in enumerate(self.parts) for key, value in part.items())

    def values(self) -> Iterable[V]:
        """Walk over what the pages map to. Linear."""
        return chain.from_iterable(part.values() for part in self.parts)

    def tidy(self) -> None:
        """Give up the room of pages that are gone, in one part; the next time, in the next."""
        part = self._next
        self.parts[part] = without_spare(self.parts[part], TIGHT, SPARE_BYTES)
        self._next = part + 1 & self.mask
