"""Slabs: slots, idle pages, shedding, and what `check()` sees."""

from __future__ import annotations

import random
from itertools import chain
from typing import TYPE_CHECKING

import pytest

from slabd_server.core.errors import InvariantBroken, UnknownBlock
from slabd_server.core.runs import high_run, low_run, ones
from slabd_server.core.sizes import PAGE, PAGE_QUANTA, QUANTUM
from slabd_server.core.slab import MAX_IDLE, Slab, SlabClass

if TYPE_CHECKING:
    from collections.abc import Callable


def test_the_lowest_free_slot_of_a_slab_goes_first() -> None:
    """Slots are taken in ascending order, and one given back is taken next."""
    cls = SlabClass(1024)
    slab = cls.add(2, 1)
    assert [cls.take() for _ in range(5)] == [8192, 9216, 10240, 11264, -1]
    cls.give(slab, 9216)
    assert cls.take() == 9216
    cls.check([slab])


def test_a_class_without_slabs_has_nothing() -> None:
    """An empty class says so, and stays consistent."""
    cls = SlabClass(64)
    assert cls.take() == -1
    cls.check([])


@pytest.mark.parametrize("offset", [0, 8191, 8193, 8192 + 1024, 8192 + 512, 12288, -1024])
def test_what_is_no_block_is_refused_and_changes_nothing(offset: int) -> None:
    """Outside, inside of a block, free already: `UnknownBlock`, and the bitmap stays."""
    cls = SlabClass(1024)
    slab = cls.add(2, 1)
    cls.take()
    before = (slab.free, slab.idle, cls.used, cls.idle)
    with pytest.raises(UnknownBlock, match="no block begins at"):
        cls.give(slab, offset)
    assert (slab.free, slab.idle, cls.used, cls.idle) == before
    cls.check([slab])


def test_the_slab_that_became_partial_last_serves_first() -> None:
    """Slabs that empty sink to the bottom, so that they can become idle."""
    cls = SlabClass(2048)
    slabs = [cls.add(page, 1) for page in (0, 1, 2)]
    taken = [cls.take() for _ in range(6)]
    assert cls.take() == -1
    cls.give(slabs[0], 0)
    cls.give(slabs[2], 8192)
    assert sorted(taken) == [0, 2048, 4096, 6144, 8192, 10240]
    assert [cls.take(), cls.take()] == [8192, 0]
    cls.check(slabs)


def test_a_class_counts_its_idle_pages() -> None:
    """A page is idle while all slots that overlap it are free; taking its first slot ends that."""
    cls = SlabClass(1024)
    slab = cls.add(0, 3)
    assert (slab.idle, cls.idle) == (3, 3)
    offsets = [cls.take() for _ in range(9)]
    assert cls.idle == 0
    cls.give(slab, offsets[8])
    assert cls.idle == 1
    for offset in offsets[:3]:
        cls.give(slab, offset)
    assert cls.idle == 1
    cls.give(slab, offsets[3])
    assert (slab.idle, cls.idle) == (2, 2)
    assert cls.idlers == {slab: None}
    cls.check([slab])


def test_slots_across_pages_keep_both_busy() -> None:
    """In a slab of three pages with four slots of 3072 bytes, the second slot keeps pages 0 and 1 from being idle."""
    cls = SlabClass(3072)
    slab = cls.add(0, 3)
    first, second = cls.take(), cls.take()
    assert (first, second, cls.idle) == (0, 3072, 1)
    cls.give(slab, first)
    assert slab.idle_runs() == [(2, 3)]
    cls.give(slab, second)
    assert slab.idle_runs() == [(0, 3)]
    cls.check([slab])


def test_a_class_says_when_it_keeps_too_many_idle_pages() -> None:
    """`give` is true from the page on that exceeds the limit: that is the hysteresis."""
    cls = SlabClass(4096)
    slabs = [cls.add(0, MAX_IDLE)]
    offsets = [cls.take() for _ in range(MAX_IDLE)]
    slabs.append(cls.add(100, 1))
    last = cls.take()
    assert [cls.give(slabs[0], offset) for offset in offsets] == [False] * MAX_IDLE
    assert cls.give(slabs[1], last)


def test_an_empty_slab_is_shed_whole() -> None:
    """Of a slab without blocks nothing remains."""
    cls = SlabClass(64)
    slab = cls.add(5, 4)
    assert cls.shed(slab) == ([(5, 9)], [])
    assert (cls.slabs, cls.pages, cls.slots, cls.idle) == (0, 0, 0, 0)
    cls.check([])


def test_a_slab_sheds_its_idle_pages_and_keeps_its_blocks() -> None:
    """The rest is cut into slabs around the pages given back, and every block can still be freed."""
    cls = SlabClass(2048)
    slab = cls.add(0, 5)
    offsets = [cls.take() for _ in range(10)]
    for offset in [*offsets[2:4], *offsets[6:8], offsets[9]]:
        cls.give(slab, offset)
    runs, pieces = cls.shed(slab)
    assert runs == [(1, 2), (3, 4)]
    assert [(piece.start, piece.pages, piece.used) for piece in pieces] == [(0, 1, 2), (2, 1, 2), (4, 1, 1)]
    cls.check(pieces)
    cls.give(pieces[1], offsets[4])
    with pytest.raises(UnknownBlock):
        cls.give(pieces[2], offsets[9])
    cls.check(pieces)


def test_slots_that_reach_into_a_page_given_back_are_lost() -> None:
    """Fine classes: a piece begins at the first slot that lies in it whole, and ends with the last."""
    cls = SlabClass(3072)
    slab = cls.add(0, 6)
    offsets = [cls.take() for _ in range(8)]
    for offset in [*offsets[:1], *offsets[2:7]]:
        cls.give(slab, offset)
    runs, pieces = cls.shed(slab)
    assert runs == [(2, 5)]
    assert [(piece.start, piece.pages, piece.base, piece.slots) for piece in pieces] == [(0, 2, 0, 2), (5, 1, 21504, 1)]
    cls.check(pieces)


def test_the_current_slab_can_be_shed() -> None:
    """A class whose current slab goes has no current slab, and goes on with another."""
    cls = SlabClass(4096)
    first, second = cls.add(0, 2), cls.add(9, 1)
    assert cls.take() == 36864
    assert cls.take() == 0
    assert first not in cls.partial
    runs, pieces = cls.shed(first)
    assert runs == [(1, 2)]
    assert len(pieces) == 1
    cls.check([second, *pieces])
    assert cls.take() == -1


def test_slabs_of_one_phase_are_gathered() -> None:
    """Two slabs and the free page between them become one slab with the slots of both, as rebuilding needs."""
    cls = SlabClass(3072)
    left, right = cls.add(0, 1), Slab(cls, 9216, 1)
    cls._attach(right)
    cls.mark(left, 0)
    cls.mark(right, 9216)
    whole = cls.gather([left, right], 0, 3)
    assert (whole.slots, whole.free, whole.idle) == (4, 0b0110, 1)
    cls.check([whole])


def test_marking_takes_exactly_one_slot() -> None:
    """`mark` works on any free slot, and a slab whose last slot is marked is no longer listed."""
    cls = SlabClass(2048)
    slab = cls.add(0, 1)
    cls.mark(slab, 2048)
    cls.check([slab])
    cls.mark(slab, 0)
    cls.check([slab])
    assert cls.take() == -1


def test_slabs_grow_with_their_class() -> None:
    """The first slab of a class is its smallest sensible one, later ones a sixteenth of the class, at most 16 pages."""
    cls = SlabClass(64)
    sizes = []
    for _ in range(120):
        sizes.append(cls.preferred_pages())
        cls.add(100 * len(sizes), sizes[-1])
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert sizes[-1] == 16
    assert SlabClass(3072).preferred_pages() == 3


@pytest.mark.parametrize("size", [64, 80, 1024, 1792, 2560, 3072, 3584, 4096])
@pytest.mark.parametrize("pages", [1, 2, 3, 7, 16])
def test_every_page_of_every_slab_has_a_slot(size: int, pages: int) -> None:
    """No page of a slab is idle for want of slots, or it could never be seen to be in use."""
    slab = SlabClass(size).add(3, pages)
    assert all(slab.overlapping(page) for page in range(3, 3 + pages))
    for page in range(3, 3 + pages):
        for slot in range(slab.slots):
            begin = slab.base + slot * size
            overlaps = begin < (page + 1) * PAGE and begin + size > page * PAGE
            assert bool(slab.overlapping(page) >> slot & 1) is overlaps


def some_slabs() -> list[Slab]:
    """Slabs of several classes, with and without a gap before the first slot, in which some slots are in use."""
    rng = random.Random(7)
    slabs = []
    for size in (64, 80, 1024, 2560, 3072):
        for gap in (0, size // 2):
            for used in (0, 1, 3, 1000):
                cls = SlabClass(size)
                slab = Slab(cls, 3 * PAGE + gap, 5)
                cls._attach(slab)
                for slot in rng.sample(range(slab.slots), min(used, slab.slots)):
                    cls.mark(slab, slab.base + slot * size)
                slabs.append(slab)
    return slabs


def test_each_quantum_that_no_slot_in_use_has_is_free() -> None:
    """Gap and tail included; as bitmap, as what is free at both ends, and as the longest run of slots."""
    for slab in some_slabs():
        total, size = slab.pages * PAGE_QUANTA, slab.cls.size
        free = ones(total)
        for offset in slab.used_offsets(slab.start, slab.end):
            free ^= ones(size // QUANTUM) << (offset - slab.start * PAGE) // QUANTUM
        assert slab.free_quanta() == free
        assert slab.free_ends() == (low_run(free), high_run(free, total))
        slots = f"{slab.free:b}".split("0")
        assert slab.longest_run() == max(map(len, slots)) * size // QUANTUM


def test_the_slots_in_use_are_listed_by_the_page_they_begin_in() -> None:
    """For any pages of the slab, each slot once."""
    for slab in some_slabs():
        pages = [slab.used_offsets(page, page + 1) for page in range(slab.start, slab.end)]
        assert [offset // PAGE for offsets in pages for offset in offsets] == [
            page for page, offsets in zip(range(slab.start, slab.end), pages, strict=True) for _ in offsets
        ]
        assert [*chain(*pages)] == slab.used_offsets(slab.start, slab.end)
        assert sum(map(len, pages)) == slab.used


def test_pages_are_widened_to_whole_slots_in_use() -> None:
    """A free slot across an edge does not matter, nor does one that ends or begins on it."""
    cls = SlabClass(3072)
    slab = cls.add(0, 6)
    assert slab.widened(2, 3) == (2, 3)
    cls.mark(slab, 3072)  # pages 0 and 1
    cls.mark(slab, 6144)  # pages 1 and 2
    cls.mark(slab, 9216)  # to the end of page 2
    cls.mark(slab, 12288)  # from the begin of page 3 on
    cls.mark(slab, 15360)  # pages 3 and 4
    assert [slab.widened(page, page + 1) for page in range(6)] == [(0, 3), (0, 3), (0, 3), (3, 5), (3, 5), (5, 6)]


def test_pages_are_cut_out_of_a_slab() -> None:
    """With the idle ones those go too, and their slots are no more the class's; both sides stay."""
    cls = SlabClass(2048)
    slab = cls.add(0, 6)
    offsets = [cls.take() for _ in range(12)]
    for offset in (*offsets[4:6], offsets[7]):
        cls.give(slab, offset)
    runs, pieces = cls.cut(slab, 3, 4)
    assert runs == [(2, 3)]
    assert [(piece.start, piece.pages, piece.used) for piece in pieces] == [(0, 2, 4), (4, 2, 4)]
    assert (cls.used, cls.slots, cls.pages) == (8, 8, 4)
    cls.check(pieces)


def _flip_past_the_end(cls: SlabClass, slab: Slab) -> None:
    slab.free |= 1 << slab.slots
    cls.used += 1


def _start_too_low(_: SlabClass, slab: Slab) -> None:
    slab.base -= 1


def _end_too_high(_: SlabClass, slab: Slab) -> None:
    slab.base += 1


def _forget_an_idle_page(cls: SlabClass, slab: Slab) -> None:
    slab.idle -= 1
    cls.idle -= 1


def _count(name: str) -> Callable[[SlabClass, Slab], None]:
    def damage(cls: SlabClass, _: Slab) -> None:
        setattr(cls, name, getattr(cls, name) + 1)

    damage.__name__ = f"_count_{name}"
    return damage


def _list_nothing(cls: SlabClass, slab: Slab) -> None:
    assert slab is cls.current
    cls.current = None


def _list_twice(cls: SlabClass, slab: Slab) -> None:
    cls.partial[slab] = None


def _forget_the_idler(cls: SlabClass, slab: Slab) -> None:
    del cls.idlers[slab]


BREAKS: list[Callable[[SlabClass, Slab], None]] = [
    _flip_past_the_end,
    _start_too_low,
    _end_too_high,
    _forget_an_idle_page,
    *map(_count, ("slabs", "pages", "slots", "used", "idle")),
    _list_nothing,
    _list_twice,
    _forget_the_idler,
]


@pytest.mark.parametrize("damage", BREAKS)
def test_check_sees_each_broken_invariant(damage: Callable[[SlabClass, Slab], None]) -> None:
    """Every invariant in the module's prose, broken by hand, is reported with numbers."""
    cls = SlabClass(1024)
    slab = cls.add(4, 3)
    cls.take()
    cls.check([slab])
    damage(cls, slab)
    with pytest.raises(InvariantBroken, match=r"\d"):
        cls.check([slab])


def test_check_sees_a_bitmap_that_is_too_long() -> None:
    """Bits behind the last slot are reported as such."""
    cls = SlabClass(1024)
    slab = cls.add(4, 1)
    slab.free |= 1 << slab.slots
    with pytest.raises(InvariantBroken, match="0x1f has bits past slot 4"):
        slab.check()


def test_check_sees_a_class_that_hoards() -> None:
    """More idle pages than the limit are a broken promise, even if they are counted right."""
    cls = SlabClass(64)
    slabs = [cls.add(0, MAX_IDLE), cls.add(20, 1)]
    with pytest.raises(InvariantBroken, match="more than 16 pages idle"):
        cls.check(slabs)
