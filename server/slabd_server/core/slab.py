"""Slabs: runs of pages cut into slots of one class.

Owns which slots of which slab are free, and which pages of a slab are *idle*: wholly free, so that they could go back.
A slab is a run of 1 to 16 pages; a class has slabs of several sizes. Promises that taking and giving a slot costs the
same whatever the number of slabs, that a class knows its idle pages at any time without looking for them, and that at
most `MAX_IDLE` of them stay. Must not know where pages come from: the heap brings them, and takes them back.

Invariants of a slab, with c the size of its class:

    slot i is the bytes [base + i * c, base + (i + 1) * c), and lies in the pages [start, end) whole
    start = base // PAGE,  end = start + pages,  slots = (end * PAGE - base) // c
    bit i of free is set  <=>  slot i is free;   0 <= free < 2 ** slots
    page p is idle  <=>  every slot that overlaps p is free
    idle = number of idle pages

Invariants of a class:

    slabs, pages, slots = how many slabs it has, and the sums of theirs;  used = slots that are not free
    {current} and the keys of partial, which are disjoint = its slabs with a free slot
    idlers = { slab : slab.idle > 0 };   idle = sum of slab.idle <= MAX_IDLE, as soon as the heap has shed what it must

Which slab serves: the current one till it is full, its lowest slot first; then the slab that became partial last. That
one is nearly full, while the slabs that empty sink to the bottom and are left alone to become idle.

A slab gives back its idle pages without waiting for the others: what remains is cut into smaller slabs. Where a class
does not divide a page (fine classes), slots that reach into a page given back are lost till their own page is idle too.
In the same way pages are cut out of a slab, with what is used in them, for a block that is placed across slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from slabd_server.core.errors import InvariantBroken, UnknownBlock
from slabd_server.core.runs import longest, lowest, ones, spread
from slabd_server.core.sizes import MAX_SLAB_PAGES, PAGE, PAGE_QUANTA, PAGE_SHIFT, QUANTUM_SHIFT, slab_unit

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_IDLE: Final = 16
FULL: Final = -1


@final
class Slab:
    """A run of pages cut into slots; all of them free at first."""

    __slots__ = ("base", "cls", "free", "idle", "pages", "slots")

    def __init__(self, cls: SlabClass, base: int, pages: int) -> None:
        self.cls = cls
        self.base = base
        self.pages = pages
        self.slots = ((self.end << PAGE_SHIFT) - base) // cls.size
        self.free = (1 << self.slots) - 1
        self.idle = pages

    @property
    def start(self) -> int:
        """The first page."""
        return self.base >> PAGE_SHIFT

    @property
    def end(self) -> int:
        """The page behind the last one."""
        return self.start + self.pages

    @property
    def used(self) -> int:
        """How many slots are not free."""
        return self.slots - self.free.bit_count()

    def free_quanta(self) -> int:
        """Return the bitmap of the quanta, from the first page's first on, that no slot in use has.

        What lies before the first slot and behind the last is free.
        """
        used = spread(self._taken, self.cls.size >> QUANTUM_SHIFT) << self._gap
        return used ^ ones(self.pages * PAGE_QUANTA)

    def free_ends(self) -> tuple[int, int]:
        """Return how many quanta are free from the first page's first on, and how many up to the last page's last."""
        total, width, taken = self.pages * PAGE_QUANTA, self.cls.size >> QUANTUM_SHIFT, self._taken
        if not taken:
            return total, total
        return self._gap + lowest(taken) * width, total - self._gap - taken.bit_length() * width

    def longest_run(self) -> int:
        """Return how many quanta the longest run of free slots has."""
        return longest(self.free, self.free) * (self.cls.size >> QUANTUM_SHIFT)

    @property
    def _taken(self) -> int:
        return self.free ^ ones(self.slots)

    @property
    def _gap(self) -> int:
        return (self.base & (PAGE - 1)) >> QUANTUM_SHIFT

    def used_offsets(self, first: int, behind: int) -> list[int]:
        """List where the slots in use begin that begin in the pages [first, behind)."""
        size = self.cls.size
        begin = max(-(-((first << PAGE_SHIFT) - self.base) // size), 0)
        end = min(-(-((behind << PAGE_SHIFT) - self.base) // size), self.slots)
        return [self.base + slot * size for slot in range(begin, end) if not self.free >> slot & 1]

    def widened(self, first: int, behind: int) -> tuple[int, int]:
        """Widen the pages [first, behind) until no slot in use lies across their edges."""
        while first > self.start and self._crossed(first):
            first -= 1
        while behind < self.end and self._crossed(behind):
            behind += 1
        return first, behind

    def _crossed(self, page: int) -> bool:
        slot, inside = divmod((page << PAGE_SHIFT) - self.base, self.cls.size)
        return inside > 0 and slot < self.slots and not self.free >> slot & 1

    def overlapping(self, page: int) -> int:
        """Return the bitmap of the slots that overlap `page`."""
        size = self.cls.size
        into = (page << PAGE_SHIFT) - self.base
        first = max(into // size, 0)
        behind = min(-(-(into + PAGE) // size), self.slots)
        return (1 << behind) - (1 << first)

    def idle_at(self, slot: int) -> int:
        """Count the pages slot `slot` overlaps that are idle."""
        offset = self.base + slot * self.cls.size
        pages = range(offset >> PAGE_SHIFT, ((offset + self.cls.size - 1) >> PAGE_SHIFT) + 1)
        return sum(self._is_idle(page) for page in pages)

    def idle_runs(self) -> list[tuple[int, int]]:
        """List the maximal runs [first, behind) of idle pages."""
        return self._runs(idle=True)

    def busy_runs(self) -> list[tuple[int, int]]:
        """List the maximal runs [first, behind) of pages that are not idle."""
        return self._runs(idle=False)

    def _is_idle(self, page: int) -> bool:
        slots = self.overlapping(page)
        return self.free & slots == slots

    def _runs(self, *, idle: bool) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for page in range(self.start, self.end):
            if self._is_idle(page) is not idle:
                continue
            if runs and runs[-1][1] == page:
                runs[-1] = (runs[-1][0], page + 1)
            else:
                runs.append((page, page + 1))
        return runs

    def __repr__(self) -> str:
        return (
            f"<Slab of {self.cls.size} at {self.base}, {self.used} of {self.slots} slots used, "
            f"pages {self.start}+{self.pages}>"
        )

    def check(self) -> None:
        """Raise `InvariantBroken`, with the numbers, unless the invariants of a slab hold."""
        slots = ((self.end << PAGE_SHIFT) - self.base) // self.cls.size
        if self.slots != slots or not slots:
            raise InvariantBroken(f"{self!r}: there is room for {slots} slots")
        if not 0 <= self.free < 1 << self.slots:
            raise InvariantBroken(f"{self!r}: bitmap {self.free:#x} has bits past slot {self.slots}")
        idle = sum(self._is_idle(page) for page in range(self.start, self.end))
        if self.idle != idle:
            raise InvariantBroken(f"{self!r}: {self.idle} pages counted idle, {idle} are")


class SlabClass:
    """The slabs of one size."""

    __slots__ = (
        "_page_mask",
        "_per_page",
        "current",
        "idle",
        "idlers",
        "pages",
        "partial",
        "size",
        "slabs",
        "slots",
        "unit",
        "used",
    )

    def __init__(self, size: int) -> None:
        self.size = size
        self.unit = slab_unit(size)
        self.slabs = 0
        self.pages = 0
        self.slots = 0
        self.used = 0
        self.idle = 0
        self.current: Slab | None = None
        self.partial: dict[Slab, None] = {}
        self.idlers: dict[Slab, None] = {}
        # 0 where slots cross pages; else a slot's page is found by arithmetic, which is four times as fast.
        self._per_page = PAGE // size if not PAGE % size else 0
        self._page_mask = (1 << self._per_page) - 1

    # -- slots

    def take(self) -> int:
        """Take a free slot and return its offset, or -1 (`FULL`) when the class has none."""
        slab = self.current
        if slab is None:
            if not self.partial:
                return FULL
            slab = self.current = self.partial.popitem()[0]
        free = slab.free
        lowest = free & -free
        slot = lowest.bit_length() - 1
        # A page can only cease to be idle with its first slot, because the lowest goes first.
        if not self._per_page:
            self._wake(slab, slab.idle_at(slot))
        elif not slot % self._per_page and (free >> slot) & self._page_mask == self._page_mask:
            self._wake(slab, 1)
        free ^= lowest
        slab.free = free
        if not free:
            self.current = None
        self.used += 1
        return slab.base + slot * self.size

    def give(self, slab: Slab, offset: int) -> bool:
        """Make the slot at `offset` free; tell whether the class now has more idle pages than it may keep.

        Raises:
            UnknownBlock: no slot that is in use begins there.
        """
        slot, inside = divmod(offset - slab.base, self.size)
        free = slab.free
        if inside or not 0 <= slot < slab.slots or (free >> slot) & 1:
            raise UnknownBlock(f"no block begins at {offset}: {slab!r}")
        if not free:
            self.partial[slab] = None
        free |= 1 << slot
        slab.free = free
        self.used -= 1
        per_page = self._per_page
        if not per_page:
            return self._rest(slab, slab.idle_at(slot))
        if (free >> (slot - slot % per_page)) & self._page_mask == self._page_mask:
            return self._rest(slab, 1)
        return False

    def mark(self, slab: Slab, offset: int) -> None:
        """Take exactly the slot at `offset`, which is free."""
        slot = (offset - slab.base) // self.size
        self._wake(slab, slab.idle_at(slot))
        slab.free ^= 1 << slot
        if not slab.free:
            self._unlist(slab)
        self.used += 1

    # -- slabs

    def preferred_pages(self) -> int:
        """Return how many pages the next slab should have: a sixteenth of what the class has, in whole units."""
        pages = min(self.pages >> 4, MAX_SLAB_PAGES)
        return max(pages - pages % self.unit, self.unit)

    def add(self, start: int, pages: int) -> Slab:
        """Make a slab of the pages [start, start + pages), all slots free."""
        return self._attach(Slab(self, start << PAGE_SHIFT, pages))

    def shed(self, slab: Slab) -> tuple[list[tuple[int, int]], list[Slab]]:
        """Part with the idle pages of a slab: (their runs [first, behind), the slabs made of the rest)."""
        return self.cut(slab, slab.end, slab.end)

    def cut(self, slab: Slab, first: int, behind: int) -> tuple[list[tuple[int, int]], list[Slab]]:
        """Part with the idle pages of a slab as in `shed`, and with the pages [first, behind), busy or not.

        No slot in use may lie across these pages' edges; those within leave the class.
        """
        self._detach(slab)
        busy = slab.busy_runs()
        kept = [(start, min(end, first)) for start, end in busy] + [(max(start, behind), end) for start, end in busy]
        pieces = [self._piece(slab, start, end) for start, end in kept if start < end]
        return slab.idle_runs(), [self._attach(piece) for piece in pieces]

    def gather(self, slabs: Iterable[Slab], base: int, pages: int) -> Slab:
        """Merge slabs of one phase, and free pages between them, into one slab of `pages` pages from `base` on."""
        whole = Slab(self, base, pages)
        for slab in slabs:
            self._detach(slab)
            taken = slab.free ^ ((1 << slab.slots) - 1)
            whole.free ^= taken << (slab.base - base) // self.size
        whole.idle = sum(behind - first for first, behind in whole.idle_runs())
        return self._attach(whole)

    def _piece(self, slab: Slab, first: int, behind: int) -> Slab:
        skipped = max(-(-((first << PAGE_SHIFT) - slab.base) // self.size), 0)
        piece = Slab(self, slab.base + skipped * self.size, behind - first)
        piece.free &= slab.free >> skipped
        piece.idle = 0
        return piece

    def _attach(self, slab: Slab) -> Slab:
        self.slabs += 1
        self.pages += slab.pages
        self.slots += slab.slots
        self.used += slab.used
        if slab.free:
            self.partial[slab] = None
        if slab.idle:
            self.idle += slab.idle
            self.idlers[slab] = None
        return slab

    def _detach(self, slab: Slab) -> None:
        self.slabs -= 1
        self.pages -= slab.pages
        self.slots -= slab.slots
        self.used -= slab.used
        if slab.free:
            self._unlist(slab)
        if slab.idle:
            self.idle -= slab.idle
            del self.idlers[slab]

    def _unlist(self, slab: Slab) -> None:
        if slab is self.current:
            self.current = None
        else:
            del self.partial[slab]

    def _wake(self, slab: Slab, pages: int) -> None:
        if pages:
            self.idle -= pages
            slab.idle -= pages
            if not slab.idle:
                del self.idlers[slab]

    def _rest(self, slab: Slab, pages: int) -> bool:
        if pages:
            self.idle += pages
            slab.idle += pages
            self.idlers[slab] = None
        return self.idle > MAX_IDLE

    # -- checking

    def __repr__(self) -> str:
        return (
            f"<SlabClass {self.size}: {self.slabs} slabs of {self.pages} pages, "
            f"{self.used} of {self.slots} slots used, {self.idle} pages idle>"
        )

    def check(self, slabs: Iterable[Slab]) -> None:
        """Raise `InvariantBroken`, with the numbers, unless these are the class's slabs and the invariants hold."""
        mine = set(slabs)
        for slab in mine:
            slab.check()
        self._check_counts(mine)
        listed = set(self.partial) | ({self.current} if self.current else set())
        if listed != {slab for slab in mine if slab.free} or self.current in self.partial:
            raise InvariantBroken(f"{self!r}: {len(listed)} slabs are listed as having a free slot")
        if set(self.idlers) != {slab for slab in mine if slab.idle}:
            raise InvariantBroken(f"{self!r}: {len(self.idlers)} slabs are listed as having idle pages")

    def _check_counts(self, slabs: set[Slab]) -> None:
        counted = {
            "slabs": (self.slabs, len(slabs)),
            "pages": (self.pages, sum(slab.pages for slab in slabs)),
            "slots": (self.slots, sum(slab.slots for slab in slabs)),
            "used": (self.used, sum(slab.used for slab in slabs)),
            "idle": (self.idle, sum(slab.idle for slab in slabs)),
        }
        for name, (counter, truth) in counted.items():
            if counter != truth:
                raise InvariantBroken(f"{self!r}: {name} counted {counter}, the slabs have {truth}")
        if self.idle > MAX_IDLE:
            raise InvariantBroken(f"{self!r}: more than {MAX_IDLE} pages idle")
