"""Giving memory back, against a model that knows for every page whether it exists and who has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slabd_server.core import decay
from slabd_server.core.decay import DecayingExtents
from slabd_server.core.errors import OutOfMemory
from slabd_server.core.sizes import PAGE_SHIFT

if TYPE_CHECKING:
    import pytest

PAGES = 64


class Pages:
    """Memory as one flag a page. `broke` makes the system refuse more."""

    def __init__(self) -> None:
        self.exists = [True] * PAGES
        self.broke = False

    def afford(self, offset: int, size: int) -> None:
        """Nothing is known before it is tried."""

    def commit(self, offset: int, size: int) -> None:
        """Make pages exist."""
        pages = range(offset >> PAGE_SHIFT, (offset + size) >> PAGE_SHIFT)
        if self.broke and not all(self.exists[page] for page in pages):
            raise OutOfMemory("the system has no memory")
        for page in pages:
            self.exists[page] = True

    def give_back(self, offset: int, size: int) -> None:
        """Give pages back."""
        assert size > 0
        for page in range(offset >> PAGE_SHIFT, (offset + size) >> PAGE_SHIFT):
            self.exists[page] = False

    def clear(self, offset: int, size: int) -> None:
        """Nothing is cleared here."""


class DecayMachine(RuleBasedStateMachine):
    """Takes, gives, and lets periods pass."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Pages()
        self.extents = DecayingExtents(PAGES, 0, self.memory)
        self.taken: dict[int, int] = {}

    @initialize(step_pages=st.sampled_from([1, 3, PAGES]), step_ranges=st.sampled_from([1, 2, 100]))
    def size_of_steps(self, step_pages: int, step_ranges: int) -> None:
        """Let a step be small, so that ranges change between its pieces."""
        self.before = decay.STEP_BYTES, decay.STEP_RANGES
        decay.STEP_BYTES, decay.STEP_RANGES = step_pages << PAGE_SHIFT, step_ranges  # type: ignore[misc]

    def teardown(self) -> None:
        """Put the steps back."""
        if hasattr(self, "before"):
            decay.STEP_BYTES, decay.STEP_RANGES = self.before  # type: ignore[misc]

    @rule(pages=st.integers(1, 20), alignment=st.sampled_from([1, 1, 4]))
    def take(self, pages: int, alignment: int) -> None:
        """Take pages: they exist, or the system has none and nothing has changed."""
        before = (self.extents.free_pages, list(self.extents), list(self.memory.exists))
        try:
            first = self.extents.take(pages) if alignment == 1 else self.extents.take_aligned(pages, alignment)
        except OutOfMemory:
            assert self.memory.broke
            assert before == (self.extents.free_pages, list(self.extents), self.memory.exists)
            return
        if first >= 0:
            assert all(self.memory.exists[first : first + pages])
            self.taken[first] = pages

    @rule(pages=st.integers(1, 8))
    def take_up_to(self, pages: int) -> None:
        """Take pages as a slab does."""
        try:
            first, count = self.extents.take_up_to(pages)
        except OutOfMemory:
            assert self.memory.broke
            return
        if count:
            assert all(self.memory.exists[first : first + count])
            self.taken[first] = count

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        """Give pages back to the heap."""
        first = data.draw(st.sampled_from(sorted(self.taken)))
        pages = self.taken.pop(first)
        self.extents.give(first, pages)

    @rule(number=st.integers(1, 3))
    def pass_periods(self, number: int) -> None:
        """Let periods pass: each is a step and as many more as it asks for."""
        for _ in range(number):
            while self.extents.step():
                self.extents.check()

    @rule()
    def one_piece(self) -> None:
        """Let one piece of a step be done, and no more."""
        self.extents.step()

    @rule(broke=st.booleans())
    def the_system(self, broke: bool) -> None:  # noqa: FBT001 - hypothesis passes it
        """Let the system have memory, or none."""
        self.memory.broke = broke

    @invariant()
    def taken_pages_exist(self) -> None:
        """No page that somebody has was given back."""
        self.extents.check()
        for first, pages in self.taken.items():
            assert all(self.memory.exists[first : first + pages])

    @precondition(lambda self: not self.taken)
    @rule()
    def everything_goes_back(self) -> None:
        """What nobody takes for two periods is given back whole."""
        self.pass_periods(2)
        assert not any(self.memory.exists)
        assert not self.extents.decays


TestDecay = DecayMachine.TestCase
TestDecay.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_a_fresh_range_survives_the_first_step() -> None:
    """What has just become free is kept for at least a period."""
    memory = Pages()
    extents = DecayingExtents(PAGES, 0, memory)
    first = extents.take(10)
    while extents.step() or extents.decays:
        pass
    extents.give(first, 10)
    assert not extents.step()
    assert all(memory.exists[first : first + 10])
    extents.step()
    assert not any(memory.exists)


def test_a_step_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step gives back no more than it may, and says that there is more."""
    monkeypatch.setattr(decay, "STEP_BYTES", 10 << PAGE_SHIFT)
    memory = Pages()
    extents = DecayingExtents(PAGES, 0, memory)
    extents.step()
    assert extents.step()
    assert memory.exists.count(False) == 10
