"""The last resort: any run of free bytes, wherever it lies.

Owns the search that is made when no class, no free page and no idle page has served a request. Free slots beside each
other, tails and gaps of slabs, what is free in patches, and the free pages between two of these are one run here.
Promises to find a run whenever there is one that is long enough at the alignment, and to look at no more slabs in one
step than there is `patience` for. Must be called when no slab has idle pages: then no slab or patch is wholly free, and
a run has bytes of two of them at most, with free pages between.

From the dearest to know to the cheapest:

- what is longer than the longest free range and two pages, less a quantum each, is nowhere: no index is asked;
- what no run has, wherever it may begin, is nowhere at any alignment: the index of every byte is asked (`crumbs`);
- a run that is longer by what an alignment can cost has room at that alignment: the same index is asked;
- only what lies between needs an index of its own alignment.

Runs that have bytes in neither slabs nor patches are the business of the free ranges, which have been asked before. All
numbers of quanta are counted from the begin of the heap.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from slabd_server.core.crumbs import WALKED, Crumbs
from slabd_server.core.errors import InvariantBroken, Searching
from slabd_server.core.patch import Patch
from slabd_server.core.runs import NONE, first, longest, multiples, stretches
from slabd_server.core.sizes import PAGE_QUANTA, QUANTUM, QUANTUM_SHIFT, natural_alignment
from slabd_server.core.slab import Slab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd_server.core.crumbs import RoomIndex
    from slabd_server.core.ground import Ground

# To pass over an owner that holds nothing costs a sixteenth of a look.
_PASSED: Final = 16


def find(ground: Ground, size: int, alignment: int, *, existing: bool = False) -> int:
    """Return the offset of `size` free bytes, a multiple of QUANTUM, at a multiple of the alignment, or -1.

    With `existing`, no free range counts that may have pages which have been given back to the system.

    Raises:
        Searching: there is no patience left in this step; the search is pending.
    """
    length = size >> QUANTUM_SHIFT
    if length > (ground.extents.longest + 2) * PAGE_QUANTA - 2:
        return NONE
    seeker = Seeker(ground, alignment, existing=existing)
    try:
        place = seeker.find(length)
    except Searching:
        ground.patience.suspend(BytesSearch(seeker, length))
        raise
    return place << QUANTUM_SHIFT if place >= 0 else NONE


class BytesSearch(NamedTuple):
    """A search for a run of quanta that has run out of patience. See `Search`."""

    seeker: Seeker
    length: int

    def backlog(self) -> int:
        """Return how many pages are written down that the seeker has not read."""
        return self.seeker.backlog()

    def step(self) -> None:
        """Go on. Raise `Searching` when that is not to the end."""
        self.seeker.ground.reclaim()
        self.seeker.find(self.length)


class Seeker:
    """The free bytes of a heap as seen from its slabs and patches, for one alignment."""

    def __init__(self, ground: Ground, alignment: int, *, existing: bool = False) -> None:
        self.ground = ground
        self._existing = existing
        self._patience = ground.patience
        self._stride = max(alignment, QUANTUM) >> QUANTUM_SHIFT
        self._base = ground.base >> QUANTUM_SHIFT
        # The indexes of what exists are beside the others, under the negative of their alignment.
        self._sign = -1 if existing else 1

    def find(self, length: int) -> int:
        """Return the first quantum of a run of this length at the alignment, or -1."""
        if self._stride == 1:
            return self._best(self.index(), length)
        anywhere = Seeker(self.ground, 1, existing=self._existing)
        place = anywhere.find(length)
        if place < 0 or place == self._aligned(place):
            return place
        if not self._is_made():
            place = anywhere.find(length + self._stride - 1)
            if place >= 0:
                return self._aligned(place)
        return self._best(self.index(), length)

    def _best(self, index: RoomIndex, length: int) -> int:
        """Return the place in the least room that is long enough, filing anew what turns out too high."""
        while (page := index.best(length)) >= 0:
            self._patience.require()
            holder = self.holder(page)
            place = self.place_in(holder, length) if holder else NONE
            if place >= 0:
                return place
            # Only what need not be done again is counted, so that every step brings the search nearer to its end.
            self._patience.left -= 1
            room = self.room_of(holder) if holder else 0
            if room >= length:
                raise InvariantBroken(f"{holder!r} has a room of {room} quanta, and no place for {length}")
            index.file(page, room)
        return NONE

    # -- the index

    def index(self) -> RoomIndex:
        """Return the index of this alignment, made or brought up to date.

        Raises:
            Searching: it is as far as there was patience.
        """
        ground = self.ground
        if ground.crumbs is None:
            ground.crumbs = Crumbs(ground.extents.pages)
        index = ground.crumbs.use(self._sign * self._stride) or ground.crumbs.make(self._sign * self._stride)
        if index.walked != WALKED:
            self._walk(index)
            ground.crumbs.made(index)
        while ground.crumbs.unread(index):
            self._patience.require()
            holders = self.holders(ground.crumbs.take(index, self._patience.left))
            self._patience.left -= max(len(holders), 1)
            for holder in holders:
                index.file(holder.start, self.room_of(holder))
        return index

    def backlog(self) -> int:
        """Return how many pages are written down that the indexes for this alignment have not read, all added up."""
        crumbs = self.ground.crumbs
        if crumbs is None:
            return 0
        keys = {self._sign, self._sign * self._stride}
        return sum(crumbs.unread(index) for key, index in crumbs.indexes.items() if key in keys)

    def _is_made(self) -> bool:
        crumbs = self.ground.crumbs
        return crumbs is not None and self._sign * self._stride in crumbs.indexes

    def _walk(self, index: RoomIndex) -> None:
        """File what there is from `index.walked` on, in the order of the pages."""
        passed = 0
        while index.walked < self.ground.extents.pages:
            owner = self.ground.owners.get(index.walked)
            holds = isinstance(owner, (Slab, Patch))
            passed += not holds
            if holds or passed % _PASSED == 0:
                self._patience.require()
                self._patience.left -= 1
                index.cost += 1
            if isinstance(owner, (Slab, Patch)):
                index.file(owner.start, self.room_of(owner))
                index.walked = owner.start
            index.walked += self._pages_at(index.walked)

    def _pages_at(self, page: int) -> int:
        """Return the length of what begins at this page."""
        owner = self.ground.owners.get(page)
        pages = self.ground.extents.range_from(page) if owner is None else owner
        pages = pages if isinstance(pages, int) else pages.pages
        if not pages:
            raise InvariantBroken(f"nothing begins at page {page}")
        return pages

    def holder(self, page: int) -> Slab | Patch | None:
        """Return the slab or the patch that begins at `page`."""
        owner = self.ground.owners.get(page)
        return owner if isinstance(owner, (Slab, Patch)) and owner.start == page else None

    def holders(self, pages: set[int]) -> set[Slab | Patch]:
        """Return the slabs and patches that have these pages."""
        owners = (self.ground.owners.get(page) for page in pages)
        return {owner for owner in owners if isinstance(owner, (Slab, Patch))}

    # -- one holder

    def room_of(self, holder: Slab | Patch) -> int:
        """Return the longest room, in quanta, of the runs that have bytes in this holder."""
        if isinstance(holder, Slab) and not natural_alignment(holder.cls.size >> QUANTUM_SHIFT) % self._stride:
            # Every slot has the alignment. Looking at each quantum of every slab would cost five times as much.
            inside = holder.longest_run()
        else:
            inside = longest(holder.free_quanta(), self._begins(holder))
        return max(inside, *(end - self._aligned(begin) for begin, end in self._runs_across(holder)), 0)

    def place_in(self, holder: Slab | Patch, length: int) -> int:
        """Return the first quantum of a room of this length in these runs, or -1."""
        inside = first(holder.free_quanta(), length, self._begins(holder))
        if inside >= 0:
            return holder.start * PAGE_QUANTA + inside
        for begin, end in self._runs_across(holder):
            place = self._aligned(begin)
            if place + length <= end:
                return place
        return NONE

    def _begins(self, holder: Slab | Patch) -> int:
        """Return the bitmap of the quanta of this holder at which a block may begin."""
        begin = self._base + holder.start * PAGE_QUANTA
        return multiples(self._stride, begin, begin + holder.pages * PAGE_QUANTA)

    def _aligned(self, quantum: int) -> int:
        return quantum + -(self._base + quantum) % self._stride

    def _runs_across(self, holder: Slab | Patch) -> Iterator[tuple[int, int]]:
        """Yield the runs [begin, end) that reach over the begin and over the end of this holder, where its bytes do."""
        begin, end = holder.start, holder.start + holder.pages
        head, tail = holder.free_ends()
        if head:
            yield begin * PAGE_QUANTA - self._free_before(begin), begin * PAGE_QUANTA + head
        if tail:
            yield end * PAGE_QUANTA - tail, end * PAGE_QUANTA + self._free_from(end)

    def _free_before(self, page: int) -> int:
        pages = self.ground.extents.range_until(page)
        if pages and self._existing and self.ground.extents.may_lack(page - pages):
            return 0
        owner = self.ground.owners.get(page - pages - 1)
        return pages * PAGE_QUANTA + (owner.free_ends()[1] if isinstance(owner, (Slab, Patch)) else 0)

    def _free_from(self, page: int) -> int:
        pages = self.ground.extents.range_from(page)
        if pages and self._existing and self.ground.extents.may_lack(page):
            return 0
        owner = self.ground.owners.get(page + pages)
        return pages * PAGE_QUANTA + (owner.free_ends()[0] if isinstance(owner, (Slab, Patch)) else 0)

    # -- checking

    def check(self, index: RoomIndex) -> None:
        """Raise `InvariantBroken` unless each run is known to a holder of its bytes, or one of them is to be read.

        Linear, and by adding up what is free, not by looking around holders as a search does.
        """
        crumbs = self.ground.crumbs
        due = self.holders(crumbs.pending(index)) if crumbs else set()
        for begin, end, holders in self._all_runs():
            room = end - self._aligned(begin)
            known = max(((index.rooms.get(holder.start) or 0) for holder in holders), default=room)
            if known < room and not due.intersection(holders) and all(each.start < index.walked for each in holders):
                raise InvariantBroken(f"a room of {room} quanta at {begin} is not known, {known} is: {holders}")

    def _all_runs(self) -> Iterator[tuple[int, int, list[Slab | Patch]]]:
        """Yield every maximal run [begin, end) of free quanta, with the slabs and patches that have some of them."""
        pieces: list[tuple[int, int, list[Slab | Patch]]] = [
            (start * PAGE_QUANTA, (start + pages) * PAGE_QUANTA, [])
            for start, pages in self.ground.extents
            if not (self._existing and self.ground.extents.may_lack(start))
        ]
        for holder in self.ground.holders():
            base = holder.start * PAGE_QUANTA
            pieces += [(base + begin, base + end, [holder]) for begin, end in stretches(holder.free_quanta())]
        begin, end, holders = 0, 0, list[Slab | Patch]()
        for start, stop, those in sorted(pieces, key=itemgetter(0)):
            if start > end:
                yield begin, end, holders
                begin, holders = start, []
            end, holders = stop, holders + those
        yield begin, end, holders


def check(ground: Ground) -> None:
    """Raise `InvariantBroken`, with the numbers, unless the indexes there are know every run they must. Linear."""
    if ground.crumbs is not None:
        ground.crumbs.check()
        for index in ground.crumbs.indexes.values():
            _check_walk(ground, index)
        for key, index in ground.crumbs.indexes.items():
            Seeker(ground, abs(key) << QUANTUM_SHIFT, existing=key < 0).check(index)


def _check_walk(ground: Ground, index: RoomIndex) -> None:
    """Raise `InvariantBroken` when a walk stands where it cannot go on. Linear."""
    inside = [(start, pages) for start, pages in ground.extents if start < index.walked < start + pages]
    if inside:
        raise InvariantBroken(f"a walk stands at page {index.walked}, inside of the free range {inside}")
    begins = index.walked in ground.owners or ground.extents.range_from(index.walked)
    if index.walked < ground.extents.pages and not begins:
        raise InvariantBroken(f"a walk stands at page {index.walked}, where nothing begins")
