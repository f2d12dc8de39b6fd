"""The last resort: any run of free bytes, wherever it lies.

Owns the search that is made when no class, no free page and no idle page has served a request. Free slots beside each
other, tails and gaps of slabs, what is free in patches, and the free pages between two of these are one run here.
Promises to find a run whenever there is one that is long enough at the alignment, and no linear scan but to make the
index, see `crumbs`. Must be called when no slab has idle pages: then no slab or patch is wholly free, and a run has
bytes of two of them at most, with free pages between.

Runs that have bytes in neither are the business of the free ranges, which have been asked before. All numbers of
quanta are counted from the begin of the heap.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

from slabd_server.core.crumbs import Crumbs
from slabd_server.core.errors import InvariantBroken
from slabd_server.core.patch import Patch
from slabd_server.core.runs import NONE, first, longest, multiples, stretches
from slabd_server.core.sizes import PAGE_QUANTA, QUANTUM, QUANTUM_SHIFT, natural_alignment
from slabd_server.core.slab import Slab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd_server.core.crumbs import RoomIndex
    from slabd_server.core.ground import Ground


def find(ground: Ground, size: int, alignment: int) -> int:
    """Return the offset of `size` free bytes, a multiple of QUANTUM, at a multiple of the alignment, or -1."""
    seeker = Seeker(ground, alignment)
    length = size >> QUANTUM_SHIFT
    index = seeker.index()
    while (page := index.best(length)) >= 0:
        holder = seeker.holder(page)
        place = seeker.place_in(holder, length) if holder else NONE
        if place >= 0:
            return place << QUANTUM_SHIFT
        index.file(page, seeker.room_of(holder) if holder else 0)
    return NONE


class Seeker:
    """The free bytes of a heap as seen from its slabs and patches, for one alignment."""

    def __init__(self, ground: Ground, alignment: int) -> None:
        self._ground = ground
        self._stride = max(alignment, QUANTUM) >> QUANTUM_SHIFT
        self._base = ground.base >> QUANTUM_SHIFT

    def index(self) -> RoomIndex:
        """Return the index of this alignment, made or brought up to date."""
        ground = self._ground
        if ground.crumbs is None:
            ground.crumbs = Crumbs()
        index = ground.crumbs.use(self._stride)
        if index is None:
            due = set(ground.holders())
            # To pass over an owner that holds nothing costs a sixteenth of writing a page down.
            index = ground.crumbs.make(self._stride, len(due) + len(ground.owners) // 16)
        else:
            due = self.holders(ground.crumbs.unread(index))
        for holder in due:
            index.file(holder.start, self.room_of(holder))
        return index

    def holder(self, page: int) -> Slab | Patch | None:
        """Return the slab or the patch that begins at `page`."""
        owner = self._ground.owners.get(page)
        return owner if isinstance(owner, (Slab, Patch)) and owner.start == page else None

    def holders(self, pages: set[int]) -> set[Slab | Patch]:
        """Return the slabs and patches that have these pages."""
        owners = (self._ground.owners.get(page) for page in pages)
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
        pages = self._ground.extents.range_until(page)
        owner = self._ground.owners.get(page - pages - 1)
        return pages * PAGE_QUANTA + (owner.free_ends()[1] if isinstance(owner, (Slab, Patch)) else 0)

    def _free_from(self, page: int) -> int:
        pages = self._ground.extents.range_from(page)
        owner = self._ground.owners.get(page + pages)
        return pages * PAGE_QUANTA + (owner.free_ends()[0] if isinstance(owner, (Slab, Patch)) else 0)

    # -- checking

    def check(self, index: RoomIndex) -> None:
        """Raise `InvariantBroken` unless each run is known to a holder of its bytes, or one of them is to be read.

        Linear, and by adding up what is free, not by looking around holders as a search does.
        """
        crumbs = self._ground.crumbs
        due = self.holders(crumbs.pending(index)) if crumbs else set()
        for begin, end, holders in self._all_runs():
            room = end - self._aligned(begin)
            known = max((index.rooms.get(holder.start, 0) for holder in holders), default=room)
            if known < room and not due.intersection(holders):
                raise InvariantBroken(f"a room of {room} quanta at {begin} is not known, {known} is: {holders}")

    def _all_runs(self) -> Iterator[tuple[int, int, list[Slab | Patch]]]:
        """Yield every maximal run [begin, end) of free quanta, with the slabs and patches that have some of them."""
        pieces: list[tuple[int, int, list[Slab | Patch]]] = [
            (start * PAGE_QUANTA, (start + pages) * PAGE_QUANTA, []) for start, pages in self._ground.extents
        ]
        for holder in self._ground.holders():
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
        for stride, index in ground.crumbs.indexes.items():
            Seeker(ground, stride << QUANTUM_SHIFT).check(index)
