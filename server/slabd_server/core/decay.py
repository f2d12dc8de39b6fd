"""Giving free memory back to the system, when it has been free for a while.

Owns, beside the free ranges, how long each has been free and whether it may have holes: pages given back. Promises:

1. Only pages of free ranges are given back. Whoever gets pages gets pages that exist: a range that may have a hole is
   committed before it is taken, and when that fails nothing has changed.
2. A range that stays free is given back between one and two periods after it became free; `step` is called once a
   period, and again at once while it says so.
3. A step gives back at most STEP_BYTES, in at most STEP_RANGES ranges, so that nothing waits long behind it.

Every free range is in exactly one of `_young` (freed in this period), `_old` (before it; the value says how many of its
pages, never all, have been given back so far), or neither (given back whole). `_holed` has the ranges that may have
holes. A part of a range inherits from it; a range that is joined is as young as its youngest part and has the holes of
all.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import InvariantBroken
from slabd_server.core.extents import Extents
from slabd_server.core.sizes import PAGE_SHIFT

if TYPE_CHECKING:
    from slabd_server.core.memory import Memory

STEP_BYTES: Final = 64 << 20
STEP_RANGES: Final = 256


class DecayingExtents(Extents):
    """Free ranges that are given back to `memory` when they have been free for a while."""

    __slots__ = ("_holed", "_memory", "_old", "_young")

    def __init__(self, pages: int, phase: int, memory: Memory) -> None:
        self._memory = memory
        self._young: dict[int, None] = {}
        self._old: dict[int, int] = {}
        self._holed: set[int] = set()
        super().__init__(pages, phase)

    @property
    def decays(self) -> bool:
        """Whether there is anything that a later step may give back."""
        return bool(self._young or self._old)

    def step(self) -> bool:
        """Give back some of what has been free for a period; return whether there is more to do at once.

        When there is not, a new period begins: what became free in the last one is old now.
        """
        budget = STEP_BYTES >> PAGE_SHIFT
        for start, done in tuple(islice(self._old.items(), STEP_RANGES)):
            pages = min(self._pages[start] - done, budget)
            if not pages:
                return True
            self._memory.give_back((start + done) << PAGE_SHIFT, pages << PAGE_SHIFT)
            self._holed.add(start)
            budget -= pages
            if done + pages == self._pages[start]:
                del self._old[start]
            else:
                self._old[start] = done + pages
        if self._old:
            return True
        self._old = dict.fromkeys(self._young, 0)
        self._young.clear()
        return False

    def give(self, first: int, pages: int) -> int:
        """Make pages free again; see Extents. The range they join is young from now on."""
        before = self._starts.get(first, first)
        holed = self._forget(before) | self._forget(first + pages)
        super().give(first, pages)
        self._young[before] = None
        if holed:
            self._holed.add(before)
        return before

    def _cut_front(self, start: int, pages: int) -> None:
        self._cut(start, start, pages)

    def _cut(self, start: int, first: int, pages: int) -> None:
        if start in self._holed:
            self._memory.commit(first << PAGE_SHIFT, pages << PAGE_SHIFT)
        end = start + self._pages[start]
        young, old = start in self._young, start in self._old
        holed = self._forget(start)
        super()._cut(start, first, pages)
        for part in (start, first + pages):
            if not (part < first or first + pages <= part < end):
                continue
            if young:
                self._young[part] = None
            elif old:
                self._old[part] = 0
            if holed:
                self._holed.add(part)

    def _forget(self, start: int) -> bool:
        """Strike a range out; return whether it may have holes."""
        self._young.pop(start, None)
        self._old.pop(start, None)
        holed = start in self._holed
        self._holed.discard(start)
        return holed

    def check(self) -> None:
        """Raise `InvariantBroken` when a rule of the module's docstring does not hold. Linear."""
        super().check()
        starts = self._pages.keys()
        for what, known in (("young", self._young.keys()), ("old", self._old.keys()), ("holed", self._holed)):
            if strays := known - starts:
                raise InvariantBroken(f"{what} ranges that are not free: {sorted(strays)[:10]}")
        if both := self._young.keys() & self._old.keys():
            raise InvariantBroken(f"ranges both young and old: {sorted(both)[:10]}")
        if unseen := starts - self._young.keys() - self._old.keys() - self._holed:
            raise InvariantBroken(f"ranges given back that have no holes: {sorted(unseen)[:10]}")
        for start, done in self._old.items():
            if not 0 <= done < self._pages[start]:
                raise InvariantBroken(
                    f"of the {self._pages[start]} pages at {start} {done} are given back, and it is old"
                )
            if done and start not in self._holed:
                raise InvariantBroken(f"of the pages at {start} {done} are given back, and it has no holes")
