"""Crumbs: indexes of where free bytes are left in slabs and patches, made only when nothing else serves a request.

Owns, for an alignment, an upper bound on the room of every *holder*: a slab or a patch, known by its first page. The
room of a holder at an alignment is the longest stretch, from a multiple of the alignment on, of a run of free bytes
that has some of them in the holder. Promises that a search costs no more than the changes since the last one did, and
that changes cost one look while there is no index, and little more while there is. Must not know what a holder is: the
last resort measures them. Nor what an alignment is: below zero are its indexes of another kind.

An index is made by walking over the pages in their order, as far as there is patience in one step: `walked` is how far
that has come. The heap writes down the page (in `log`) of whatever may have grown: of a slot or a block freed, of a
slab or a patch that is new, and the pages just outside of a range of free pages that has become longer. What is taken
is not written down. So, for each index and each maximal run of free bytes with some of them in a holder:

    some holder of these bytes has an entry of at least the run's room, or is at a page the index has not read,
    or begins at `walked` or behind it

because the holder of whichever of these bytes became free last was written down then, or holders at both ends of the
free pages it lies in were; and whoever reads measures the whole run. An entry that turns out too high when it is looked
up is filed anew, which is paid for by the take that made it so.

Invariants:

    fits holds exactly the entries {page: room} of rooms;   every room > 0
    walked is no page inside of a free or a granted range, but the first of one, until it is WALKED
    0 <= read <= len(log);   log[read:] are the pages an index has not read
    an index is let go when it has not read more pages than it cost to make, and then MIN_IDLE; not while it is made
    there are at most INDEXES_MAX indexes, one more when there is one of what exists; the one used last at the end
"""

from __future__ import annotations

import sys
from typing import Final

from slabd_server.core.errors import InvariantBroken
from slabd_server.core.extents import FitIndex
from slabd_server.core.page_table import PageTable

MIN_IDLE: Final = 1024
# Each takes some 80 bytes a holder. One is that of every byte, which is asked first and so never the oldest. A request
# for which the system lacks memory needs four: two of all there is, and two of what exists (`last_resort`).
INDEXES_MAX: Final = 3
WALKED: Final = sys.maxsize
_PATIENT: Final = sys.maxsize


class RoomIndex:
    """Holders by room, for one alignment. `cost` is how many looks it took to make."""

    __slots__ = ("_fits", "cost", "limit", "read", "rooms", "walked")

    def __init__(self, pages: int = 0) -> None:
        self.cost = 0
        self.limit = _PATIENT
        self.read = 0
        self.rooms: PageTable[int] = PageTable(pages)
        self.walked = 0
        self._fits = FitIndex()

    def file(self, page: int, room: int) -> None:
        """Enter what room the holder at `page` has, in the place of what was known; none strikes it out."""
        before = self.rooms.get(page) or 0
        if before == room:
            return
        if before:
            self._fits.remove(page, before)
        if room > 0:
            self.rooms[page] = room
            self._fits.add(page, room)
        else:
            del self.rooms[page]

    def best(self, room: int) -> int:
        """Return a holder that may have `room`, of those with the least, or -1."""
        return self._fits.best(room)

    def check(self) -> None:
        """Raise `InvariantBroken` unless both sides hold the same, and no holder without room."""
        self._fits.check(dict(self.rooms.items()))
        if not all(room > 0 for room in self.rooms.values()):
            raise InvariantBroken(f"{len(self.rooms)} rooms are filed, {min(self.rooms.values())} is one of them")


class Crumbs:
    """The indexes there are of a heap of `pages` pages, by alignment, and the log they are kept up with."""

    __slots__ = ("_due", "_pages", "indexes", "log")

    def __init__(self, pages: int = 0) -> None:
        self._pages = pages
        self.indexes: dict[int, RoomIndex] = {}
        self.log: list[int] = []
        self._due = 0

    def note(self, page: int) -> bool:
        """Write down that something has grown at `page`; tell whether anybody is left to read it."""
        self.log.append(page)
        if len(self.log) > self._due:
            self._let_go()
        return bool(self.indexes)

    def join(self, start: int, end: int) -> None:
        """Let no walk stand inside of the pages [start, end), which have become one free range."""
        for index in self.indexes.values():
            if start < index.walked < end:
                index.walked = end

    def use(self, alignment: int) -> RoomIndex | None:
        """Return the index of an alignment, if there is one; the one used last is let go last."""
        index = self.indexes.pop(alignment, None)
        if index is not None:
            self.indexes[alignment] = index
        return index

    def make(self, alignment: int) -> RoomIndex:
        """Return a new index, in which everything is to be filed that there is now: it has walked nowhere yet."""
        most = INDEXES_MAX + any(key < 0 for key in (alignment, *self.indexes))
        while len(self.indexes) >= most:
            del self.indexes[next(iter(self.indexes))]
        index = self.indexes[alignment] = RoomIndex(self._pages)
        index.read = len(self.log)
        self._trim()
        return index

    def made(self, index: RoomIndex) -> None:
        """Note that an index has walked over everything; from now on it may idle."""
        index.walked = WALKED
        index.limit = index.cost + MIN_IDLE
        self._trim()

    def unread(self, index: RoomIndex) -> int:
        """Return how many pages an index has not read."""
        return len(self.log) - index.read

    def take(self, index: RoomIndex, most: int) -> set[int]:
        """Return the oldest pages that were written down and not read, up to so many; they are read now."""
        pages = set(self.log[index.read : index.read + most])
        index.read = min(index.read + most, len(self.log))
        self._trim()
        return pages

    def pending(self, index: RoomIndex) -> set[int]:
        """Return the pages an index has not read, without reading them."""
        return set(self.log[index.read :])

    def _let_go(self) -> None:
        end = len(self.log)
        for alignment, index in tuple(self.indexes.items()):
            if end - index.read > index.limit:
                del self.indexes[alignment]
        self._trim()

    def _trim(self) -> None:
        """Forget what everybody has read, once that is half of the log, and say when to look again."""
        indexes = self.indexes.values()
        done = min((index.read for index in indexes), default=len(self.log))
        if done * 2 >= len(self.log):
            del self.log[:done]
            for index in indexes:
                index.read -= done
        self._due = min((index.read + index.limit for index in indexes), default=0)

    def check(self) -> None:
        """Raise `InvariantBroken`, with the numbers, unless the invariants hold that can be seen from here."""
        for alignment, index in self.indexes.items():
            index.check()
            unread = len(self.log) - index.read
            if not 0 <= unread <= min(index.limit, len(self.log)):
                raise InvariantBroken(f"alignment {alignment}: {unread} of {len(self.log)} pages unread")
        due = min((index.read + index.limit for index in self.indexes.values()), default=0)
        if self._due != due:
            raise InvariantBroken(f"the log is looked at after {self._due} pages, not {due}")
