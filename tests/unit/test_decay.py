"""When free memory goes back, what stays, and what `check` sees."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.engines import World, make_heap

from slabd_server.core.decay import STEP_BYTES, STEP_RANGES, DecayingExtents
from slabd_server.core.decay_clock import PAUSE_SECONDS, DecayClock
from slabd_server.core.engine import Engine
from slabd_server.core.errors import InvariantBroken, OutOfMemory
from slabd_server.core.extents import _MIN_IDLE
from slabd_server.core.heap import Heap
from slabd_server.core.memory import FixedMemory
from slabd_server.core.sizes import PAGE, PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable


class Recorder(FixedMemory):
    """Memory that remembers what it was asked for, in pages; `broke` makes the system refuse, `most` what is more."""

    def __init__(self) -> None:
        self.given: list[tuple[int, int]] = []
        self.committed: list[tuple[int, int]] = []
        self.broke = False
        self.most = sys.maxsize

    def afford(self, offset: int, size: int) -> None:
        """Nothing is known before it is tried."""

    def commit(self, offset: int, size: int) -> None:
        """Remember, or refuse."""
        if self.broke or size > self.most:
            raise OutOfMemory("the system has no memory")
        self.committed.append((offset >> PAGE_SHIFT, size >> PAGE_SHIFT))

    def give_back(self, offset: int, size: int) -> None:
        """Remember."""
        self.given.append((offset >> PAGE_SHIFT, size >> PAGE_SHIFT))


def aged(pages: int = 64, *, periods: int = 0) -> tuple[DecayingExtents, Recorder]:
    """Return free ranges that have been free for some periods, and their memory."""
    memory = Recorder()
    extents = DecayingExtents(pages, 0, memory)
    for _ in range(periods):
        while extents.step():
            pass
    return extents, memory


def test_a_range_goes_back_after_its_first_period() -> None:
    """The first step only lets a period begin; the second gives the range back, and then there is nothing to do."""
    extents, memory = aged()
    assert (extents.decays, extents.step(), memory.given, extents.decays) == (True, False, [], True)
    assert (extents.step(), memory.given, extents.decays) == (False, [(0, 64)], False)
    assert (extents.step(), memory.given) == (False, [(0, 64)])


def test_what_has_no_holes_is_not_committed() -> None:
    """Only a range that may have holes costs a call of the system when it is taken, and only for what is taken."""
    extents, memory = aged(periods=1)
    extents.take(8)
    extents.take(8)
    assert memory.committed == []
    while extents.step():
        pass
    extents.take(8)
    assert memory.committed == [(16, 8)]


def test_a_range_given_back_in_part_has_holes() -> None:
    """A range is committed from the moment its first pages went back, and its parts after it was cut."""
    extents, memory = aged(2 * STEP_BYTES >> PAGE_SHIFT, periods=1)
    half = STEP_BYTES >> PAGE_SHIFT
    assert (extents.step(), memory.given) == (True, [(0, half)])
    first = extents.take(100)
    extents.take(100)
    assert memory.committed == [(first, 100), (first + 100, 100)]
    extents.check()


def test_a_step_gives_back_so_much() -> None:
    """A step stops at STEP_BYTES and goes on there, in the next range and then in another step."""
    step = STEP_BYTES >> PAGE_SHIFT
    extents, memory = aged(3 * step)
    lows = extents.take(step // 2), extents.take(1)
    extents.take(1)
    for first, pages in zip(lows, (step // 2, 1), strict=True):
        extents.give(first, pages)
    rest = 3 * step - step // 2 - 2
    extents.check()
    extents.step()
    sizes: list[int] = []
    while extents.step():
        extents.check()
        sizes.append(sum(pages for _, pages in memory.given) - sum(sizes))
    gone = {page for first, pages in memory.given for page in range(first, first + pages)}
    assert (sizes[:2], len(gone)) == ([step, step], rest + step // 2 + 1)


def test_a_step_looks_at_so_many_ranges() -> None:
    """However small they are, a step gives no more than STEP_RANGES pieces back."""
    extents, memory = aged(4 * STEP_RANGES, periods=2)
    memory.given.clear()
    taken = [extents.take(1) for _ in range(4 * STEP_RANGES)]
    for page in taken[::2]:
        extents.give(page, 1)
    assert extents.step() is False
    assert (extents.step(), len(memory.given)) == (True, STEP_RANGES)
    assert (extents.step(), len(memory.given)) == (False, 2 * STEP_RANGES)
    assert not extents.decays


def test_the_parts_of_a_range_are_as_old_as_it_was() -> None:
    """A young range's parts are young and an old one's old; nothing is given back before its time or forgotten."""
    young, memory = aged()
    young.take_at(30, 4)
    young.step()
    assert memory.given == []
    young.step()
    assert sorted(memory.given) == [(0, 30), (34, 30)]
    old, memory = aged(periods=1)
    old.take_at(30, 4)
    old.step()
    assert sorted(memory.given) == [(0, 30), (34, 30)]


def test_what_was_given_back_is_not_given_back_again() -> None:
    """A range given back whole stays so when a part of it is taken."""
    extents, memory = aged(periods=2)
    extents.take_at(30, 4)
    assert (extents.decays, memory.given, memory.committed) == (False, [(0, 64)], [(30, 4)])
    extents.check()
    assert extents._holed == {0, 34}


def test_what_joins_a_range_waits_alone() -> None:
    """What comes free is young by itself; the range it joins is as old as it was, and has the holes of all."""
    extents, memory = aged()
    extents.take_at(20, 4)
    for _ in range(2):
        extents.step()
    assert extents.give(20, 4) == 0  # the beginning of the range it joined
    extents.check()
    memory.given.clear()
    extents.step()
    assert (memory.given, extents._young, extents._old, extents._holed) == ([], {}, {20: 4}, {0})
    extents.take_at(20, 4)
    assert memory.committed == [(20, 4)]


def test_a_trickle_keeps_nothing_from_going_back() -> None:
    """However often a page is taken and freed beside it, what a burst left goes back, and once."""
    extents, memory = aged()
    burst = extents.take(60)
    extents.step()
    extents.step()
    memory.given.clear()
    extents.give(burst, 60)
    for _ in range(10):
        page = extents.take(1)
        extents.give(page, 1)
        while extents.step():
            pass
    assert (burst, 60) in memory.given
    assert sum(pages for _, pages in memory.given) <= 60 + 10
    extents.check()


def test_a_run_freed_again_is_as_old_as_its_last_freeing() -> None:
    """Of pages that were taken and freed again the longer run counts, and the rest of an old one stays old."""
    extents, memory = aged(periods=2)
    memory.given.clear()
    assert extents.take_at(0, 8)
    extents.give(0, 8)
    extents.take_at(0, 3)
    extents.give(0, 3)
    assert extents._young == {0: 8}
    extents.step()
    extents.take_at(0, 3)
    extents.give(0, 3)
    assert (extents._young, extents._old) == ({0: 3}, {3: 5})
    extents.step()
    assert memory.given == [(3, 5)]
    extents.step()
    assert memory.given == [(3, 5), (0, 3)]
    extents.check()


def test_pages_that_could_not_be_committed_are_committed_before_they_are_taken_again() -> None:
    """Whoever could not commit them says so (`lack`); what has been said of a page goes for the range it is in."""
    extents, memory = aged()
    extents.lack(5)
    assert extents.may_lack(0)
    assert extents.take(8) == 0
    assert (memory.committed, extents.may_lack(8)) == ([(0, 8)], True)
    extents.check()


def test_a_slab_takes_whole_short_ranges_first() -> None:
    """As it does where nothing is given back: a page that lies alone, before a part of thirty."""
    extents, _ = aged()
    extents.take(64)
    extents.give(10, 1)
    extents.give(20, 30)
    assert extents.take_up_to(16) == (10, 1)


def test_a_slab_makes_do_with_a_page_when_the_system_has_no_more() -> None:
    """Fewer than it wants at least: one page, and one page only is taken."""
    extents, memory = aged(periods=2)
    memory.most = PAGE
    assert extents.take_up_to(16, 3) == (63, 1)
    assert (extents.free_pages, memory.committed) == (63, [(63, 1)])
    extents.check()


def test_the_order_is_never_let_go() -> None:
    """A step may need it at any time, and to make it anew is linear."""
    extents, _ = aged()
    order = extents._order
    for _ in range(3 * _MIN_IDLE):
        extents.give(extents.take(1), 1)
    assert extents._order is order is not None


def test_a_refused_commit_changes_nothing() -> None:
    """When the system has no memory the range is as free, as young and as holed as before."""
    extents, memory = aged(periods=2)
    memory.broke = True
    with pytest.raises(OutOfMemory):
        extents.take(8)
    extents.check()
    assert (extents.free_pages, extents._holed) == (64, {0})


def stray_holed(extents: DecayingExtents) -> None:
    """Let a range have holes that is not free."""
    extents._holed.add(5)


def forgotten(extents: DecayingExtents) -> None:
    """Let pages that exist have no age."""
    extents._young.clear()


def forgotten_in_part(extents: DecayingExtents) -> None:
    """Let some of them have none."""
    extents._young = {0: 30}
    extents._old = {31: 33}


def empty_run(extents: DecayingExtents) -> None:
    """Let a run have no pages."""
    extents._old[9] = 0


def not_coalesced(extents: DecayingExtents) -> None:
    """Let the ranges below contradict themselves."""
    extents._pages[0] = 63


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (stray_holed, r"ranges with holes that are not free: \[5\]"),
        (forgotten, "pages from 0 to 64 exist, and not all of them age"),
        (forgotten_in_part, "pages from 0 to 64 exist, and not all of them age"),
        (empty_run, r"runs without a page: \[9\]"),
        (not_coalesced, "1 end tags do not match 1 start tags"),
    ],
)
def test_check_sees_what_is_wrong(spoil: Callable[[DecayingExtents], None], found: str) -> None:
    """Whichever rule of a range's age is broken, `check` says so."""
    extents, _ = aged()
    extents.check()
    spoil(extents)
    with pytest.raises(InvariantBroken, match=found):
        extents.check()


def clock(period: float | None) -> tuple[DecayClock, Heap, Recorder]:
    """Return the clock of a heap of three steps, that heap, and its memory."""
    memory = Recorder()
    heap = make_heap(size=3 * STEP_BYTES, give_back_seconds=period, memory=memory)
    return heap.decay, heap.books.allocator, memory


def test_the_clock_looks_once_a_period() -> None:
    """It is due a period after there was something to do, and after each look a period later; asking moves nothing."""
    decay, heap, memory = clock(10.0)
    assert (decay.next(100.0), decay.next(105.0)) == (110.0, 110.0)
    decay.tick(109.9)
    assert decay.next(109.9) == 110.0
    decay.tick(110.0)
    assert (decay.next(110.0), memory.given) == (120.0, [])
    decay.tick(121.0)
    assert decay.next(121.0) == 121.0 + PAUSE_SECONDS
    for _ in range(2):
        decay.tick(122.0)
        assert decay.next(122.0) == (122.0 + PAUSE_SECONDS if heap.decays else None)
        decay.tick(122.0)
        decay.tick(123.0)
    assert sum(pages for _, pages in memory.given) * PAGE == 3 * STEP_BYTES


def test_the_clock_stands_still_when_there_is_nothing_to_do() -> None:
    """When all went back it has no deadline; what comes free starts a new period from then."""
    decay, heap, _ = clock(10.0)
    now = 0.0
    while (due := decay.next(now)) is not None:
        now = due
        decay.tick(now)
    assert not heap.decays
    decay.tick(now + 1000)
    heap.free(heap.grant(PAGE).offset)
    assert (decay.next(500.0), decay.next(505.0)) == (510.0, 510.0)


def test_a_heap_without_a_period_gives_nothing_back() -> None:
    """The clock of such a heap is never due, and does nothing when it is asked to."""
    decay, _, memory = clock(None)
    assert decay.next(100.0) is None
    decay.tick(1e9)
    assert memory.given == []


def test_the_engine_gives_memory_back() -> None:
    """The engine's deadline is the clock's, and its ticks give back what has been free for a period."""
    memory = Recorder()
    world = World(Engine([make_heap(give_back_seconds=10.0, memory=memory)]))
    for _ in range(2):
        assert world.engine.next_deadline(now=world.now) == world.now + 10.0
        world.advance(10.0)
    assert (memory.given, world.engine.next_deadline(now=world.now)) == ([(0, 256)], None)


def test_idle_pages_of_slabs_go_back_though_nothing_else_became_free() -> None:
    """A page that its class keeps for later is free too, and the clock does not stop while there is one."""
    memory = Recorder()
    heap = Heap(64 * PAGE, memory=memory)
    clock = DecayClock(heap, 10.0)
    block = heap.grant(100)
    now = 0.0
    while (due := clock.next(now)) is not None:
        now = due
        clock.tick(now)
    memory.given.clear()
    heap.free(block.offset)
    assert heap.slab_free_bytes == PAGE
    while (due := clock.next(now)) is not None:
        now = due
        clock.tick(now)
    assert heap.slab_free_bytes == 0
    assert sum(pages for _, pages in memory.given) == 1
