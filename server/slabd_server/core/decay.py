"""Giving free memory back to the system, when it has been free for a while.

Owns, beside the free ranges, when which pages became free and which ranges may have holes: pages given back. Promises:

1. Only pages of free ranges are given back. Whoever gets pages gets pages that exist: a range that may have a hole is
   committed before it is taken. When that fails, a range without holes serves; when there is none, nothing has changed.
2. Pages that stay free are given back between one and two periods after they became free, whatever becomes free beside
   them meanwhile; `step` is called once a period, and again at once while it says so. (Pages that are taken in part and
   freed again at once may go with the run they were part of.)
3. A step gives back at most STEP_BYTES, in at most STEP_RANGES pieces, so that nothing waits long behind it.

What has an age is a *run*: the pages that were freed together. `_young` has the runs {first: pages} of this period,
`_old` those of before it that are still to be given back. A run may have been taken again since, in part or whole: only
what is free of it is given back.

Invariants:

    a free page that exists is in a run, or in a range of `_holed`
    _holed = starts of free ranges; a free range in which a page does not exist is one of them
    _solid has each s under the length n that is not in _holed
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import InvariantBroken, OutOfMemory, Searching
from slabd_server.core.extents import Extents, FitIndex
from slabd_server.core.sizes import PAGE_SHIFT

if TYPE_CHECKING:
    from slabd_server.core.extents import IntSet
    from slabd_server.core.memory import Memory
    from slabd_server.core.patience import Patience

STEP_BYTES: Final = 64 << 20
STEP_RANGES: Final = 256
TRIES_MAX: Final = 1024


class DecayingExtents(Extents):
    """Free ranges that are given back to `memory` when they have been free for a while."""

    __slots__ = ("_holed", "_memory", "_old", "_solid", "_young")

    def __init__(self, pages: int, phase: int, memory: Memory, patience: Patience | None = None) -> None:
        self._memory = memory
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._holed: set[int] = set()
        self._solid = FitIndex()
        super().__init__(pages, phase, patience)
        self._ordered()

    @property
    def decays(self) -> bool:
        """Whether there is anything that a later step may give back."""
        return bool(self._young or self._old)

    def step(self) -> bool:
        """Give back some of what has been free for a period; return whether there is more to do at once.

        When there is not, a new period begins: what became free in the last one is old now.
        """
        pages, pieces = STEP_BYTES >> PAGE_SHIFT, STEP_RANGES
        while self._old:
            if not pages or not pieces:
                return True
            # Not the first one: next(iter()) walks over all that was taken out before, each time anew.
            first, length = self._old.popitem()
            start, end = self._next_free(first, first + length)
            if start < end:
                end = min(end, start + pages)
                self._memory.give_back(start << PAGE_SHIFT, (end - start) << PAGE_SHIFT)
                self._dig(self._ordered().at_most(start))
                pages -= end - start
            pieces -= 1
            if end < first + length:
                self._old[end] = max(first + length - end, self._old.get(end, 0))
        self._old, self._young = self._young, {}
        return False

    def _next_free(self, first: int, behind: int) -> tuple[int, int]:
        """Return the first free pages [start, end) in [first, behind); two times `behind` when there are none."""
        order = self._ordered()
        start = order.at_most(first)
        if start < 0 or start + self._tags.length(start) <= first:
            start = order.at_least(first)
            if not first <= start < behind:
                return behind, behind
        return max(start, first), min(start + self._tags.length(start), behind)

    def _ordered(self) -> IntSet:
        """Return the order of the ranges, which is always there: a run may lie in the middle of a range."""
        order = super()._ordered()
        self._order_idle = sys.maxsize
        return order

    # -- taking: what exists already, when the system has no more

    def take(self, pages: int) -> int:
        """Take pages; see Extents. When those of the best fit cannot be had, from a range of which all exist."""
        try:
            return super().take(pages)
        except OutOfMemory:
            start = self._solid.best(pages)
            if start < 0:
                raise
            return self._cut_from(start, pages)

    def take_up_to(self, pages: int, at_least: int = 1) -> tuple[int, int]:
        """Take some pages; see Extents. When as many cannot be had, those that exist, or fewer: one at the least."""
        try:
            return super().take_up_to(pages, at_least)
        except OutOfMemory:
            if self._solid.longest():
                return self._take_up_to(self._solid, pages, at_least)
        with suppress(OutOfMemory):
            if (start := super().take(at_least)) >= 0:
                return start, at_least
        return super().take(1), 1

    def take_aligned(self, pages: int, alignment: int) -> int:
        """Take pages at an alignment; see Extents. When they cannot be had, from a range of which all exist.

        Of those that may or may not have the alignment, depending on where they begin, TRIES_MAX are tried.
        """
        try:
            return super().take_aligned(pages, alignment)
        except Searching:
            raise
        except OutOfMemory:
            for start in islice(self._solid.at_least(pages), TRIES_MAX):
                first = start + self._gap(start, alignment)
                if first + pages <= start + self._tags.length(start):
                    self._cut(start, first, pages)
                    return first
            start = self._solid.best(pages + alignment - 1)
            if start < 0:
                raise
            first = start + self._gap(start, alignment)
            self._cut(start, first, pages)
            return first

    def may_lack(self, start: int) -> bool:
        """Tell whether the free range that begins at page `start` may have holes."""
        return start in self._holed

    def lack(self, page: int) -> None:
        """Note that the free range with this page may have holes."""
        self._dig(self._ordered().at_most(page))

    # -- how ranges change

    def give(self, first: int, pages: int) -> int:
        """Make pages free again; see Extents. They are young, and what they join is as old as it was."""
        before = first - self.range_until(first)
        holed = before in self._holed or first + pages in self._holed
        super().give(first, pages)
        older = self._old.pop(first, 0)
        if older > pages:
            self._old[first + pages] = max(older - pages, self._old.get(first + pages, 0))
        self._young[first] = max(pages, self._young.get(first, 0))
        if holed:
            self._dig(before)
        return before

    def _cut(self, start: int, first: int, pages: int) -> None:
        holed = start in self._holed
        if holed:
            self._memory.commit(first << PAGE_SHIFT, pages << PAGE_SHIFT)
        end = start + self._tags.length(start)
        super()._cut(start, first, pages)
        if holed:
            for part in (start, first + pages):
                if part < first or first + pages <= part < end:
                    self._dig(part)

    def _index(self, start: int, length: int) -> None:
        super()._index(start, length)
        self._solid.add(start, length)

    def _unindex(self, start: int, length: int) -> None:
        super()._unindex(start, length)
        if start in self._holed:
            self._holed.remove(start)
        else:
            self._solid.remove(start, length)

    def _dig(self, start: int) -> None:
        """Note that the free range that begins at `start` may have a hole."""
        if start not in self._holed:
            self._holed.add(start)
            self._solid.remove(start, self._tags.length(start))

    def tidy(self) -> None:
        """Give up the room of ranges that are gone; see Extents."""
        super().tidy()
        self._solid.tidy()

    def check(self) -> None:
        """Raise `InvariantBroken` when a rule of the module's docstring does not hold. Linear."""
        super().check()
        if strays := self._holed - dict(self).keys():
            raise InvariantBroken(f"ranges with holes that are not free: {sorted(strays)[:10]}")
        self._solid.check({start: pages for start, pages in self if start not in self._holed})
        runs = [*self._young.items(), *self._old.items()]
        if empty := [first for first, pages in runs if pages <= 0]:
            raise InvariantBroken(f"runs without a page: {sorted(empty)[:10]}")
        aging = _joined(runs)
        for start, length in self:
            if start not in self._holed and not _covers(aging, start, start + length):
                raise InvariantBroken(f"pages from {start} to {start + length} exist, and not all of them age")


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the union of runs (first, pages) as ranges [first, behind) in order, none of which meet."""
    joined: list[tuple[int, int]] = []
    for first, pages in sorted(runs):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], first + pages))
        else:
            joined.append((first, first + pages))
    return joined


def _covers(ranges: list[tuple[int, int]], first: int, behind: int) -> bool:
    """Tell whether one of these ranges, which are in order and do not meet, has all of [first, behind)."""
    index = bisect_right(ranges, (first, sys.maxsize)) - 1
    return index >= 0 and behind <= ranges[index][1]
