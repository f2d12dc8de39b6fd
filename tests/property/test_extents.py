"""`Extents` against a model that keeps a set of page numbers."""

from __future__ import annotations

from contextlib import ExitStack
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from slabd_server.core import extents, tags
from slabd_server.core.errors import Searching
from slabd_server.core.extents import Extents
from slabd_server.core.patience import Patience

PAGES = st.integers(1, 12)
ALIGNMENTS = st.sampled_from([2, 4, 8, 16])


class ExtentsMachine(RuleBasedStateMachine):
    """The model: the set of free pages, the pages taken, and searching through all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()

    @initialize(
        pages=st.integers(1, 48), phase=st.integers(0, 20), few=st.sampled_from([0, 2, 1000]), limit=st.integers(0, 2)
    )
    def make(self, pages: int, phase: int, few: int, limit: int) -> None:
        """Start with all pages free; with little at hand, and little patience."""
        self.patches.enter_context(patch.multiple(tags, AT_HAND=few, _AT_ONCE=2))
        self.patches.enter_context(patch.multiple(extents, SPILL=few + 2, _AT_ONCE=2, _A_LOOK=1))
        self.patience = Patience(limit or None)
        self.extents = Extents(pages, phase, self.patience)
        self.phase = phase
        self.free = set(range(pages))
        self.taken: list[tuple[int, int]] = []
        self.pages = pages

    def ranges(self) -> dict[int, int]:
        """Return the maximal free ranges of the model."""
        starts = [page for page in self.free if page - 1 not in self.free]
        return {s: next(n for n in range(1, self.pages + 1) if s + n not in self.free) for s in starts}

    def took(self, first: int, pages: int) -> None:
        """Move pages in the model; they must have been free."""
        wanted = set(range(first, first + pages))
        assert wanted <= self.free
        self.free -= wanted
        self.taken.append((first, pages))

    @rule(pages=PAGES)
    def take(self, pages: int) -> None:
        """The best fit is taken, a single page from its back; a request fails only when no range is as long."""
        fitting = [length for length in self.ranges().values() if length >= pages]
        first = self.extents.take(pages)
        if not fitting:
            assert first == -1
            return
        best = [start for start, length in self.ranges().items() if length == min(fitting)]
        assert first in ([start + min(fitting) - 1 for start in best] if pages == 1 else best)
        self.took(first, pages)

    @rule(pages=PAGES, at_least=st.integers(1, 4))
    def take_up_to(self, pages: int, at_least: int) -> None:
        """The longest range not too long or too short; else as many as asked for, or as the longest range has."""
        lengths = self.ranges().values()
        whole = [length for length in lengths if at_least <= length <= pages]
        first, got = self.extents.take_up_to(pages, at_least)
        assert got == max(whole, default=min(pages, max(lengths, default=0)))
        if got:
            self.took(first, got)

    @rule(pages=PAGES, alignment=ALIGNMENTS)
    def take_aligned(self, pages: int, alignment: int) -> None:
        """A request fails only when no aligned page has as many free pages from it on."""
        wanted = range(pages)
        places = [p for p in self.free if (p + self.phase) % alignment == 0 and all(p + i in self.free for i in wanted)]
        self.patience.renew(0)
        try:
            first = self.extents.take_aligned(pages, alignment)
        except Searching:
            return
        if not places:
            assert first == -1
            return
        assert first in places
        self.took(first, pages)

    @rule()
    def go_on(self) -> None:
        """Go on with a search for a step."""
        self.patience.go_on()

    @rule()
    def tidy(self) -> None:
        """Put tags away, and give up spare room."""
        self.extents.tidy()

    @rule(first=st.integers(0, 60), pages=PAGES)
    def take_at(self, first: int, pages: int) -> None:
        """Exactly these pages, if all are free."""
        free = set(range(first, first + pages)) <= self.free
        assert self.extents.take_at(first, pages) is free
        if free:
            self.took(first, pages)

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        """Give a taken range back, or a part of it."""
        if not self.taken:
            return
        first, pages = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        part = data.draw(st.integers(1, pages))
        if part < pages:
            self.taken.append((first + part, pages - part))
        self.extents.give(first, part)
        self.free |= set(range(first, first + part))

    @rule(pages=st.integers(0, 8))
    def grow(self, pages: int) -> None:
        """Add pages at the end."""
        self.extents.grow(pages)
        self.free |= set(range(self.pages, self.pages + pages))
        self.pages += pages

    def teardown(self) -> None:
        """Undo what was patched."""
        self.patches.close()

    @invariant()
    def same(self) -> None:
        """The ranges are the model's, and every answer about them is."""
        if not hasattr(self, "extents"):
            return
        self.extents.check()
        ranges = self.ranges()
        assert dict(self.extents) == ranges
        assert self.extents.free_pages == len(self.free)
        assert self.extents.longest == max(ranges.values(), default=0)
        assert self.extents.ranges == len(ranges)


ExtentsMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestExtents = ExtentsMachine.TestCase
