"""When the system has no memory for pages that were given back: what is still there serves before a request fails."""

from __future__ import annotations

import pytest

from slabd_server.core.errors import OutOfMemory
from slabd_server.core.heap import Heap
from slabd_server.core.sizes import PAGE

PAGES = 64


class Scarce:
    """Memory of which so many pages can be had again."""

    def __init__(self, left: int = 1 << 30) -> None:
        self.left = left
        self.there = bytearray(b"\1") * PAGES

    def afford(self, offset: int, size: int) -> None:
        """Nothing is known before it is tried."""

    def commit(self, offset: int, size: int) -> None:
        """Make pages exist, all or none."""
        first, behind = offset // PAGE, (offset + size) // PAGE
        missing = self.there[first:behind].count(0)
        if missing > self.left:
            raise OutOfMemory(f"the system has no memory for {missing} pages")
        self.left -= missing
        self.there[first:behind] = b"\1" * (behind - first)

    def give_back(self, offset: int, size: int) -> None:
        """Let pages exist no more."""
        self.there[offset // PAGE : (offset + size) // PAGE] = bytes(size // PAGE)

    def clear(self, offset: int, size: int) -> None:
        """Nothing is cleared here."""


class Dry:
    """A heap that lacks memory: of its free pages, only those freed since exist."""

    def __init__(self, *blocks: tuple[int, int]) -> None:
        self.memory = Scarce()
        self.heap = Heap(PAGES * PAGE, memory=self.memory)
        for offset, size in blocks:
            self.heap.adopt(offset, size)
        for _ in range(2):
            while self.heap.decay():
                pass
        self.memory.left = 0

    def grant(self, size: int, alignment: int = 1) -> int:
        """Grant a block, of which every page exists."""
        offset, usable = self.heap.grant(size, alignment)
        assert 0 not in self.memory.there[offset // PAGE : (offset + usable - 1) // PAGE + 1]
        self.heap.check()
        return offset

    def refuse(self, size: int, alignment: int = 1) -> None:
        """Refuse one, because of the system, and change nothing."""
        before = (list(self.heap.blocks()), list(self.heap._extents))
        with pytest.raises(OutOfMemory, match="the system has no memory"):
            self.heap.grant(size, alignment)
        assert before == (list(self.heap.blocks()), list(self.heap._extents))
        self.heap.check()


def test_a_range_without_holes_serves_though_another_fits_better() -> None:
    """Two pages are wanted: the hole has two, the block that was freed just now had four."""
    dry = Dry((0, 10 * PAGE), (12 * PAGE, PAGE), (13 * PAGE, 4 * PAGE), (17 * PAGE, 47 * PAGE))
    dry.refuse(2 * PAGE)
    dry.heap.free(13 * PAGE)
    assert dry.grant(2 * PAGE) == 13 * PAGE
    assert [dry.grant(PAGE) for _ in range(2)] == [16 * PAGE, 15 * PAGE]
    dry.refuse(PAGE)


@pytest.mark.parametrize(("alignment", "offset"), [(8 * PAGE, 24 * PAGE), (2 * PAGE, 22 * PAGE)])
def test_so_it_does_at_an_alignment_above_a_page(alignment: int, offset: int) -> None:
    """Of the ranges that exist, the shortest that has the place."""
    dry = Dry((0, PAGE), (17 * PAGE, 4 * PAGE), (21 * PAGE, 5 * PAGE), (26 * PAGE, 38 * PAGE))
    dry.refuse(2 * PAGE, alignment)
    dry.heap.free(21 * PAGE)
    assert dry.grant(2 * PAGE, alignment) == offset


def test_a_slab_is_made_of_fewer_pages_when_there_are_no_more() -> None:
    """A class that would like sixteen pages takes the one that the system still has."""
    dry = Dry()
    dry.memory.left = 1 << 30
    offsets = [dry.heap.grant(64).offset for _ in range(PAGES * PAGE // 64)]
    for offset in offsets[16 * 64 :]:
        dry.heap.free(offset)
    for _ in range(2):
        while dry.heap.decay():
            pass
    heap = dry.heap
    dry.memory.left = 1
    free = heap.classes()[1].free_blocks
    for _ in range(free):
        dry.grant(64)
    heap._classes[64].pages += 16 * 16  # it has so many that it would like to grow by sixteen
    try:
        first = heap.grant(64).offset
    finally:
        heap._classes[64].pages -= 16 * 16
    assert dry.memory.there[first // PAGE]
    heap.check()
    for _ in range(63):
        dry.grant(64)
    dry.refuse(64)


def test_a_slab_is_made_of_what_exists() -> None:
    """The page that was freed just now, rather than none."""
    dry = Dry((0, 10 * PAGE), (20 * PAGE, PAGE), (21 * PAGE, 43 * PAGE))
    dry.refuse(64)
    dry.memory.left = 1
    dry.heap.adopt(19 * PAGE, PAGE)
    dry.memory.left = 0
    dry.heap.free(20 * PAGE)
    assert dry.grant(64) == 20 * PAGE


def test_a_free_slot_of_a_larger_class_serves() -> None:
    """A class that cannot grow takes what another has."""
    dry = Dry((0, 1024), (PAGE, 40 * PAGE))
    assert dry.grant(64) == 1024


def test_the_last_resort_serves() -> None:
    """Free pages that exist, and what is free of the slab beside them; in vain where the pages have been given back."""
    dry = Dry((0, 2048), (PAGE, PAGE), (2 * PAGE, 2048), (4 * PAGE + 2048, 2048), (5 * PAGE, 59 * PAGE))
    dry.refuse(2 * PAGE)
    dry.heap.free(PAGE)
    assert dry.grant(PAGE + 2000) == 2048
    dry.refuse(PAGE + 16)
    dry.memory.left = 1
    assert dry.grant(PAGE + 16) == 2 * PAGE + 2048


def test_what_does_not_exist_is_looked_for_in_steps_too() -> None:
    """The index of what exists is made like the others, and a request waits for it."""
    memory = Scarce()
    heap = Heap(PAGES * PAGE, memory=memory, patience=2)
    for page in range(0, 60, 3):
        heap.adopt(page * PAGE, 2048)
        heap.adopt(page * PAGE + PAGE, PAGE)
    for _ in range(2):
        while heap.decay():
            pass
    memory.left = 0
    steps = 0
    while True:
        heap.begin(0)
        with pytest.raises(OutOfMemory) as refusal:
            heap.grant(PAGE + 2048)
        if not heap.searching:
            break
        while heap.search():
            heap.check()
            steps += 1
    assert "the system has no memory" in str(refusal.value)
    assert steps > 5
