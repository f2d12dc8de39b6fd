"""The last resort: any run of free bytes serves; patches come and go; adoption takes back what it gave."""

from __future__ import annotations

import random
from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.test_heap import fill, state

from slabd_server.core import crumbs
from slabd_server.core.errors import (
    Fragmented,
    InvariantBroken,
    NoMemory,
    OutOfMemory,
    Searching,
    TooLarge,
    UnknownBlock,
)
from slabd_server.core.heap import ClassStats, Heap
from slabd_server.core.last_resort import Seeker
from slabd_server.core.patch import Middle, Patch
from slabd_server.core.sizes import PAGE, QUANTUM, SizeClasses
from slabd_server.core.slab import Slab

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = 8 * PAGE
REST = (4 * PAGE, 4 * PAGE)


def heap_of(*blocks: tuple[int, int], kind: SizeClasses = "pow2", **options: Any) -> Heap:
    """Build a heap of eight pages in which exactly these blocks are granted."""
    heap = Heap(SMALL, size_classes=kind, **options)
    for offset, size in blocks:
        heap.adopt(offset, size)
    heap.check()
    return heap


def gap_over_pages() -> Heap:
    """Build one with a run of 12 KiB: the tail of a slab, two free pages, and the head of another slab."""
    return heap_of((0, 2048), (3 * PAGE + 2048, 2048), REST)


def kinds_of(heap: Heap) -> list[type]:
    """What owns the pages that somebody owns, in their order."""
    return [type(owner) for _, owner in sorted(heap._ground.owners.items())]


# -- what is joined


@pytest.mark.parametrize("first", [640, 2 * PAGE - 64, 2 * PAGE - 128])
def test_neighbouring_slots_of_a_smaller_class_are_joined(first: int) -> None:
    """In one slab, and across the edge of two; every block around stays and can be freed."""
    heap = Heap(SMALL)
    offsets = fill(heap, 64)
    for offset in (first, first + 64):
        heap.free(offset)
    assert heap.grant(128) == (first, 128)
    heap.check()
    with pytest.raises(OutOfMemory):
        heap.grant(1)
    assert heap.free(first) == 128
    for offset in set(offsets) - {first, first + 64}:
        assert heap.free(offset) == 64
    heap.check()
    assert heap.grant(SMALL) == (0, SMALL)


def test_the_tail_of_a_slab_serves() -> None:
    """51 slots of 80 bytes leave 16 of a page, which are somebody's too."""
    heap = Heap(SMALL, size_classes="fine")
    fill(heap, 80)
    assert heap.available_bytes == heap.slab_free_bytes == 8 * 16
    assert sorted(heap.grant(1) for _ in range(8)) == [(page * PAGE - 16, 16) for page in range(1, 9)]
    heap.check()
    assert heap.available_bytes == 0


def test_the_gap_before_the_first_slot_of_a_slab_serves() -> None:
    """Where a slab begins in the middle of what was a slot, that part is free."""
    heap = Heap(SMALL, size_classes="fine")
    offsets = fill(heap, 3072)
    for offset in offsets:
        if offset != 2 * 3072 + 3 * PAGE:
            heap.free(offset)
    fill(heap, 4096)
    gaps = [owner.base - owner.start * PAGE for owner in heap._ground.owners.values() if isinstance(owner, Slab)]
    assert max(gaps) > 0
    heap.grant(2048)
    heap.check()


def test_a_large_block_spans_a_tail_free_pages_and_a_head() -> None:
    """12 KiB between two slabs; the pages it has whole are nobody else's block."""
    heap = gap_over_pages()
    assert heap.grant(3 * PAGE) == (2048, 3 * PAGE)
    heap.check()
    assert kinds_of(heap) == [Patch, Middle, Patch, int]
    assert heap.used_bytes == sum(size for _, size in heap.blocks()) == SMALL
    before = state(heap)
    for offset in (PAGE, 2 * PAGE, 3 * PAGE, 2064, 0 - PAGE):
        with pytest.raises(UnknownBlock, match=f"no block begins at {offset}"):
            heap.free(offset)
    assert state(heap) == before
    assert heap.free(2048) == 3 * PAGE
    assert heap.free_bytes == 2 * PAGE
    heap.check()
    assert [heap.free(offset) for offset in (0, 3 * PAGE + 2048)] == [2048, 2048]
    assert heap.free_bytes == 4 * PAGE
    heap.check()


@pytest.mark.parametrize("freed_first", ["block", "neighbours"])
def test_patches_go_back_when_they_are_empty(freed_first: str) -> None:
    """Whoever is freed last: the pages are free at once."""
    heap = gap_over_pages()
    block = heap.grant(3 * PAGE).offset
    order = [block, 0, 3 * PAGE + 2048]
    for offset in order if freed_first == "block" else order[::-1]:
        heap.free(offset)
        heap.check()
    assert heap.free_bytes == 4 * PAGE
    assert heap.grant(4 * PAGE) == (0, 4 * PAGE)


def test_a_block_may_begin_on_a_page_and_end_inside_of_one() -> None:
    """Its first page is a patch even so: that is where the block is known."""
    heap = heap_of((3 * PAGE + 2048, 2048), REST)
    assert heap.grant(3 * PAGE + 2048) == (0, 3 * PAGE + 2048)
    assert kinds_of(heap) == [Patch, Middle, Patch, int]
    heap.check()
    assert heap.free(0) == 3 * PAGE + 2048
    heap.check()


@pytest.mark.parametrize("whole", [1, 2, 3])
def test_a_block_may_begin_inside_of_a_page_and_end_with_one(whole: int) -> None:
    """That page it has whole, so that it is no patch."""
    heap = heap_of((0, 2048), ((1 + whole) * PAGE, SMALL - (1 + whole) * PAGE))
    assert heap.grant(whole * PAGE + 2048) == (2048, whole * PAGE + 2048)
    assert kinds_of(heap) == [Patch, Middle, int]
    heap.check()
    assert heap.free(2048) == whole * PAGE + 2048
    heap.check()


def test_the_whole_class_is_looked_for_first() -> None:
    """A block is smaller than `usable_size` says only where the whole class, or the whole pages, fit nowhere."""
    heap = heap_of((0, 2048), (2048, 80), (3 * PAGE + 2048, 2048), REST)
    assert heap.grant(3 * PAGE - 90) == (2048 + 80, 3 * PAGE - 80)
    heap = gap_over_pages()
    assert heap.grant(3 * PAGE - 90) == (2048, 3 * PAGE)


@pytest.mark.parametrize(("base", "size", "offset"), [(0, 6144, 2 * PAGE), (PAGE, 9216, PAGE), (3 * PAGE, 9216, PAGE)])
def test_alignment_is_counted_from_address_zero(base: int, size: int, offset: int) -> None:
    """In a run of 12 KiB there is one place for the block at a multiple of 8 KiB, and where depends on the base."""
    heap = heap_of((0, 2048), (3 * PAGE + 2048, 2048), REST, base=base)
    assert heap.grant(size, 2 * PAGE) == (offset, size)
    with pytest.raises(NoMemory):
        heap.grant(size, 2 * PAGE)
    heap.check()


@pytest.mark.parametrize(("base", "page"), [(0, 2), (PAGE, 3), (3 * PAGE, 5)])
def test_alignment_above_a_page_inside_of_a_slab(base: int, page: int) -> None:
    """Of two pages with free slots at their begin, one has the alignment: which, depends on the base."""
    heap = Heap(SMALL, base=base)
    fill(heap, 64)
    for offset in (page * PAGE, (page + 1) * PAGE):
        heap.free(offset)
        heap.free(offset + 64)
    assert heap.grant(128, 2 * PAGE) == (page * PAGE, 128)
    refused(heap, 128, 2 * PAGE)


@pytest.mark.parametrize(
    ("alignment", "usable"), [(1, 1536), (16, 1536), (64, 1536), (512, 1536), (1024, 2048), (2048, 1536)]
)
def test_a_place_at_each_alignment_below_a_page(alignment: int, usable: int) -> None:
    """Inside of one slab, where only some of the free slots have the alignment; the whole class where that fits."""
    heap = Heap(SMALL, size_classes="fine")
    fill(heap, 80)
    for slot in range(3, 47):
        heap.free(slot * 80)
    offset, size = heap.grant(1536, alignment)
    assert (size, offset % alignment) == (usable, 0)
    heap.check()


def test_slots_in_use_across_the_edge_of_a_page_come_along() -> None:
    """Four slots of 3072 bytes in three pages: a block placed in the last page makes patches of all three."""
    heap = heap_of(*((3072 * slot, 3072) for slot in range(4)), (3 * PAGE, 5 * PAGE), kind="fine")
    heap.free(9216)
    assert heap.grant(2048, 2048) == (10240, 2048)
    assert kinds_of(heap) == [Patch, Patch, Patch, int]
    heap.check()
    assert [heap.free(offset) for offset in (0, 3072, 6144, 10240)] == [3072, 3072, 3072, 2048]
    heap.check()


def test_the_rest_of_a_slab_stays_a_slab() -> None:
    """Of many pages only the one is cut out; slots on both sides serve on."""
    heap = Heap(1 << 20)
    offsets = fill(heap, 64)
    slab = heap._ground.owners[200]
    assert isinstance(slab, Slab)
    assert slab.pages > 3
    first = (slab.start + 1) * PAGE + 128
    for offset in (first, first + 64, (slab.end - 1) * PAGE):
        heap.free(offset)
    assert heap.grant(128).offset == first
    heap.check()
    assert heap.grant(64).offset == (slab.end - 1) * PAGE
    assert len(offsets) - 1 == heap.used_blocks
    heap.check()


def test_blocks_in_patches_are_in_the_books() -> None:
    """As blocks of no class, with those of page ranges; the classes count what is left to them."""
    heap = heap_of((0, 64), (256, 64), (PAGE, 7 * PAGE))
    assert heap.grant(PAGE - 320).size == PAGE - 320
    assert heap.grant(128).offset == 64
    assert heap.classes()[:2] == (ClassStats(0, 0, 5, 0), ClassStats(64, 0, 0, 0))
    assert heap.used_blocks == 5
    assert (heap.used_bytes, heap.slab_free_bytes, heap.free_bytes) == (SMALL - 64, 64, 0)


def test_a_refusal_says_fragmented_when_the_bytes_are_there() -> None:
    """As many bytes as asked for, rounded to sixteen, but not in one place."""
    heap = heap_of((0, 48), (64, 48), (128, PAGE - 128), (PAGE, 7 * PAGE))
    assert heap.available_bytes == 32
    with pytest.raises(Fragmented):
        heap.grant(17)
    with pytest.raises(OutOfMemory) as refused:
        heap.grant(33)
    assert not isinstance(refused.value, Fragmented)
    assert [heap.grant(16).offset for _ in range(2)] == [48, 112]


# -- memory that is not there


class Broke:
    """Memory of which nothing that was given back can be had again, for the time being."""

    def __init__(self) -> None:
        self.broke = True
        self.given = list[tuple[int, int]]()

    def afford(self, offset: int, size: int) -> None:
        """Nothing is known before it is tried."""

    def commit(self, offset: int, size: int) -> None:
        """Refuse, or not."""
        if self.broke:
            raise OutOfMemory(f"no memory for {offset}+{size}")

    def give_back(self, offset: int, size: int) -> None:
        """Remember what."""
        self.given.append((offset, size))

    def clear(self, offset: int, size: int) -> None:
        """Nothing is cleared here."""


def test_pages_the_system_does_not_have_change_nothing() -> None:
    """The free pages in the middle are committed before anything else moves."""
    memory = Broke()
    heap = heap_of((0, 2048), (3 * PAGE + 2048, 2048), REST, memory=memory)
    while heap.decays:
        heap.decay()
    assert memory.given == [(PAGE, 2 * PAGE)]
    before = state(heap)
    with pytest.raises(OutOfMemory, match="no memory for 4096"):
        heap.grant(3 * PAGE)
    with pytest.raises(OutOfMemory, match="no memory for 4096"):
        heap.adopt(2048, 3 * PAGE)
    assert state(heap) == before
    memory.broke = False
    assert heap.grant(3 * PAGE) == (2048, 3 * PAGE)


def test_a_slot_over_two_pages_the_system_does_not_have_is_not_adopted() -> None:
    """Neither of the two is lost."""
    memory = Broke()
    heap = heap_of(memory=memory)
    while heap.decays:
        heap.decay()
    before = state(heap)
    with pytest.raises(OutOfMemory):
        heap.adopt(3072, 3072)
    assert state(heap) == before


# -- the index


def alignments(heap: Heap) -> list[int]:
    """For which alignments there is an index."""
    crumbs = heap._ground.crumbs
    return [] if crumbs is None else [stride * QUANTUM for stride in crumbs.indexes]


def test_the_index_is_made_when_nothing_else_serves_and_not_before() -> None:
    """Grants and frees that go well know nothing of it, nor do requests for more than there is."""
    heap = gap_over_pages()
    heap.free(heap.grant(2 * PAGE).offset)
    heap.free(heap.grant(64).offset)
    with pytest.raises(OutOfMemory):
        heap.grant(4 * PAGE)
    assert alignments(heap) == []
    with pytest.raises(Fragmented):
        heap.grant(3 * PAGE, 2 * PAGE)
    assert alignments(heap) == [QUANTUM, 2 * PAGE]


def test_an_index_that_idles_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """After as many changes as it cost, with patience; then frees pay nothing again."""
    monkeypatch.setattr(crumbs, "MIN_IDLE", 10)
    heap = heap_of((0, 64), (128, 64), (PAGE, 6 * PAGE), (7 * PAGE, 2048), (7 * PAGE + 2048, 2032))
    with pytest.raises(Fragmented):
        heap.grant(PAGE - 180)
    changes = 0
    while alignments(heap):
        heap.check()
        heap.free(heap.grant(64).offset)
        changes += 1
    assert 10 < changes < 20
    assert heap._ground.crumbs is None


def test_an_index_idles_for_as_many_changes_as_it_cost_to_make() -> None:
    """A look at each slab, a sixteenth of one at each granted or free range, and patience."""
    heap = Heap(1 << 20)
    fill(heap, 64)
    slabs = heap.classes()[1].slabs
    assert Seeker(heap._ground, 1).index().limit == slabs + crumbs.MIN_IDLE
    heap = Heap(1 << 20)
    fill(heap, PAGE)
    assert Seeker(heap._ground, 1).index().limit == 256 // 16 + crumbs.MIN_IDLE


@pytest.mark.parametrize(("used", "taken"), [(2 * PAGE, 3), (2 * PAGE + 2048, 1)], ids=["before", "behind"])
def test_the_room_of_a_slab_has_bytes_of_its_own(used: int, taken: int) -> None:
    """A free page beside it is none of it, when what lies there of the slab is in use."""
    heap = heap_of((0, PAGE), (used, 2048), (taken * PAGE, PAGE), (4 * PAGE, 4 * PAGE))
    seeker = Seeker(heap._ground, 1)
    assert [seeker.room_of(holder) for holder in heap._ground.holders()] == [2048 // QUANTUM]


def refused(heap: Heap, size: int, alignment: int = 1) -> None:
    """Ask in vain, so that the index exists and has read all there is."""
    with pytest.raises(NoMemory):
        heap.grant(size, alignment)
    heap.check()


def test_a_freed_slot_is_found() -> None:
    """The index is there already when the slot becomes free."""
    heap = Heap(SMALL)
    fill(heap, 64)
    heap.free(640)
    refused(heap, 128)
    heap.free(704)
    heap.check()
    assert heap.grant(128).offset == 640


@pytest.mark.parametrize("slots", [(2 * PAGE - 64, 2 * PAGE), (2 * PAGE, 2 * PAGE - 64)], ids=["head", "tail"])
def test_a_freed_slot_joins_what_is_free_in_the_next_slab(slots: tuple[int, int]) -> None:
    """Only the slab of the second one is written down: its room reaches into the other, which was measured before."""
    heap = Heap(SMALL)
    fill(heap, 64)
    heap.free(640)
    heap.free(slots[0])
    refused(heap, 128)
    heap.free(slots[1])
    heap.check()
    assert heap.grant(128).offset == 2 * PAGE - 64


def test_a_block_freed_in_a_patch_is_found() -> None:
    """So is what becomes free in the patch where a block ends."""
    heap = Heap(SMALL)
    fill(heap, 64)
    for offset in (PAGE - 64, PAGE):
        heap.free(offset)
    block = heap.grant(128).offset
    refused(heap, 128)
    heap.free(block)
    heap.free(PAGE + 64)
    heap.check()
    assert heap.grant(192).offset == PAGE - 64
    refused(heap, 256)
    heap.free(PAGE - 64)
    heap.check()
    assert heap.grant(48, 1).offset in {PAGE - 64, PAGE}


@pytest.mark.parametrize(("pages", "slot"), [(0, 2 * PAGE + 2048), (2 * PAGE, 0)], ids=["behind", "before"])
def test_freed_pages_beside_a_slab_are_found(pages: int, slot: int) -> None:
    """They make room for the slab behind them, and for the one before them."""
    heap = heap_of((pages, PAGE), (slot, 2048), (PAGE, PAGE), (3 * PAGE, 5 * PAGE))
    refused(heap, 2048 + 16)
    heap.free(PAGE)
    heap.check()
    assert heap.grant(PAGE + 2048).size == PAGE + 2048
    heap.check()


def test_pages_a_slab_gives_back_beside_another_are_found() -> None:
    """The last slot of a slab is freed, and with it goes the slab: its page makes room for its neighbour's tail."""
    heap = heap_of((0, 2048), (PAGE, 1024), (2 * PAGE, 6 * PAGE))
    refused(heap, PAGE)
    heap.free(PAGE)
    heap.check()
    assert heap.grant(PAGE + 2048) == (2048, PAGE + 2048)
    heap.check()


def test_added_memory_behind_a_slab_is_found() -> None:
    """The tail of the last slab and the first new page are one run."""
    heap = heap_of((0, 6 * PAGE), (6 * PAGE, 2048), (7 * PAGE, 2048))
    refused(heap, 3000)
    heap.add_memory(PAGE)
    heap.check()
    assert heap.grant(PAGE + 2048) == (7 * PAGE + 2048, PAGE + 2048)


def test_added_memory_behind_free_pages_is_found() -> None:
    """The slab before them has a longer run too."""
    heap = heap_of((0, 6 * PAGE), (6 * PAGE, 2048))
    Seeker(heap._ground, 1).index()
    heap.add_memory(PAGE)
    heap.check()
    assert heap.grant(2 * PAGE + 2048) == (6 * PAGE + 2048, 2 * PAGE + 2048)
    heap.check()


def test_new_slabs_and_what_shedding_leaves_are_found() -> None:
    """A slab made after the index, and the pieces of one that has given pages back: `check()` knows what is due."""
    heap = Heap(1 << 20)
    offsets = fill(heap, 64)
    refused(heap, 128)
    for offset in random.Random(5).sample(offsets, len(offsets) * 9 // 10):
        heap.free(offset)
    heap.check()
    for size in (200, 100, 700):
        fill(heap, size)
        refused(heap, 4096)


def test_a_slab_is_known_by_its_first_page_only() -> None:
    """What was filed for a slab that has gone is not taken for the room of one that has its page now."""
    heap = heap_of((0, 3072), (3072, 3072), (2 * PAGE, 6 * PAGE), kind="fine")
    slab = heap._ground.owners[1]
    assert [Seeker(heap._ground, 1).holder(page) for page in range(3)] == [slab, None, None]
    assert list(heap._ground.holders()) == [slab]


def test_an_entry_that_is_too_high_is_filed_anew() -> None:
    """What has been taken meanwhile is not written down, but noticed."""
    heap = Heap(SMALL)
    fill(heap, 64)
    for offset in (640, 704, 1280, 1344):
        heap.free(offset)
    refused(heap, 192)
    assert [heap.grant(64).offset for _ in range(2)] == [640, 704]
    assert heap.grant(128).offset == 1280
    refused(heap, 128)


def test_what_no_two_slabs_and_pages_between_can_have_is_refused_at_once() -> None:
    """The longest free range, and less than a page on either side of it: no slab is looked at, no index is made."""
    heap = Heap(SMALL)
    for offset in fill(heap, 64)[::2]:
        heap.free(offset)
    refused(heap, 2 * PAGE - 16)
    assert alignments(heap) == []
    refused(heap, 2 * PAGE - 32)
    assert alignments(heap) == [QUANTUM]


def test_the_first_byte_has_no_alignment_that_the_base_has_not() -> None:
    """A run from the first byte on is long enough, and its only place at the alignment is too far behind."""
    heap = heap_of((PAGE + 2048, 2048), (2 * PAGE, 6 * PAGE), base=PAGE)
    refused(heap, PAGE + 128, 2 * PAGE)
    assert heap.grant(PAGE + 128) == (0, PAGE + 128)


def test_a_search_of_which_nothing_is_left_has_no_backlog() -> None:
    """Its indexes may be let go while it is pending; then it begins anew."""
    heap = gap_over_pages()
    seeker = Seeker(heap._ground, 1)
    assert seeker.find(32) >= 0
    heap._ground.note(0)
    assert seeker.backlog() == 1
    heap._ground.crumbs = None
    assert seeker.backlog() == 0


@pytest.mark.parametrize("alignment", [256, PAGE, 2 * PAGE, 1 << 30])
def test_what_no_run_has_is_at_no_alignment(alignment: int) -> None:
    """One index answers for all of them; so it does where a run is so long that any begin will do."""
    heap = Heap(SMALL)
    fill(heap, 64)
    for offset in (640, 704, 768, 1280, 3200):
        heap.free(offset)
    refused(heap, 256, alignment)
    assert alignments(heap) == [QUANTUM]
    assert heap.grant(128, 16).offset == 640
    assert alignments(heap) == [QUANTUM]


def test_a_run_as_long_as_the_alignment_can_cost_needs_no_index_of_its_own() -> None:
    """In 1,600 free bytes there is a place for 1,088 at a multiple of 512, wherever they begin."""
    heap = Heap(SMALL)
    fill(heap, 64)
    for offset in range(64, 64 + 1600, 64):
        heap.free(offset)
    assert heap.grant(1088, 512) == (512, 1088)
    assert alignments(heap) == [QUANTUM]
    heap.check()


# -- patience


def half_used(pages: int, **options: Any) -> Heap:
    """Build a heap of as many slabs of a page, each with one of its two slots free."""
    heap = Heap(pages * PAGE, **options)
    for page in range(pages):
        heap.adopt(page * PAGE, 2048)
    return heap


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a slab or a patch was looked at; the only entry is the count."""
    count = [0]

    def counted(look: Callable[..., int]) -> Callable[..., int]:
        def wrapper(*arguments: Any) -> int:
            count[0] += 1
            return look(*arguments)

        return wrapper

    monkeypatch.setattr(Seeker, "room_of", counted(Seeker.room_of))
    return count


def steps_of(heap: Heap, looks: list[int], size: int, alignment: int = 1) -> tuple[list[int], object]:
    """Ask until there is an answer; return at how many slabs each step looked, and the block or the refusal."""
    steps = []
    while True:
        looks[0] = 0
        heap.begin(1)
        answer: object = None
        try:
            answer = heap.grant(size, alignment)
        except Searching:
            assert heap.searching
        except NoMemory as refusal:
            answer = type(refusal)
        steps.append(looks[0])
        heap.check()
        if answer:
            return steps, answer
        more = True
        while more:
            looks[0] = 0
            more = heap.search()
            steps.append(looks[0])
            if len(steps) % 10 == 0:
                heap.check()
        assert not heap.searching


def test_no_step_looks_at_many_slabs(looks: list[int]) -> None:
    """However many there are and whatever is asked for: the first search, another alignment, and the index let go."""
    heap = half_used(2000, patience=20)
    for size, alignment in ((2064, 1), (1024, PAGE), (2064, 2 * PAGE)):
        steps, answer = steps_of(heap, looks, size, alignment)
        assert answer is Fragmented
        assert max(steps) <= 20 + 8
        assert sum(steps) in {0, 2000}
    heap._ground.crumbs = None
    assert max(steps_of(heap, looks, 2064)[0]) <= 20 + 8


def test_reading_what_was_freed_is_done_in_steps_too(looks: list[int]) -> None:
    """The index stands, and a thousand slabs have changed since somebody asked."""
    heap = half_used(2000, patience=20)
    steps_of(heap, looks, 2064)
    for page in range(1000):
        heap.free(heap.grant(2048).offset)
        heap.free(page * PAGE)
        heap.adopt(page * PAGE, 2048)
    steps, answer = steps_of(heap, looks, 2064)
    assert answer is Fragmented
    assert max(steps) <= 20 + 8
    assert sum(steps) > 20


def test_entries_that_are_too_high_are_filed_anew_in_steps(looks: list[int]) -> None:
    """A thousand slabs have less room than is known of them, since their slots were granted."""
    heap = half_used(2000, patience=20)
    steps_of(heap, looks, 2064)
    for _ in range(2000):
        heap.grant(2048)
    heap.free(0)
    heap.free(2048)
    for offset in [heap.grant(64).offset for _ in range(PAGE // 64)][::2]:
        heap.free(offset)
    assert sum(room > 4 for room in heap._ground.crumbs.indexes[1].rooms.values()) > 1990  # type: ignore[union-attr]
    steps, answer = steps_of(heap, looks, 100)
    assert answer is Fragmented
    assert max(steps) <= 20 + 8
    assert sum(steps) > 1990


def test_a_search_finds_what_there_is_whatever_happens_meanwhile(looks: list[int]) -> None:
    """A run that comes to be before the place where the search stands, and one that goes."""
    heap = half_used(2000, patience=20)
    heap.free(1990 * PAGE)
    heap.adopt(1990 * PAGE + 1024, 1024)
    heap.begin(1)
    with pytest.raises(Searching):
        heap.grant(2560)
    for _ in range(10):
        assert heap.search()
    heap.free(5 * PAGE)
    heap.check()
    heap.adopt(5 * PAGE + 1024, 1024)
    heap.adopt(1989 * PAGE + 2048, 2048)
    assert steps_of(heap, looks, 2560)[1] == (4 * PAGE + 2048, 2560)


def test_while_a_search_is_under_way_others_are_answered_at_once_or_wait_too(looks: list[int]) -> None:
    """A free slot serves as ever, and what needs a search gets no looks of its own."""
    heap = half_used(2000, patience=20)
    heap.begin(1)
    with pytest.raises(Searching):
        heap.grant(2064)
    heap.begin(1)
    looks[0] = 0
    assert heap.grant(2048).size == 2048
    with pytest.raises(Searching):
        heap.grant(3000)
    with pytest.raises(TooLarge):
        heap.grant(2001 * PAGE)
    with pytest.raises(Fragmented):
        heap.grant(3 * PAGE)
    assert looks[0] == 0


def test_a_search_ends_though_others_free_more_than_it_looks_at() -> None:
    """What they write down in a step is read in the next, on top of the rest."""
    heap = half_used(2000, patience=20)
    heap.begin(1)
    with pytest.raises(Searching):
        heap.grant(2064)
    more, steps = True, 0
    while more:
        for _ in range(50):
            heap.free(heap.grant(2048).offset)
        more = heap.search()
        steps += 1
        assert steps < 200
    heap.check()


def test_a_request_whose_search_did_not_hold_gets_more_looks() -> None:
    """Its own other blocks make work for it each time: at the third try there is patience for that."""
    heap = half_used(400, patience=1)
    answers = []
    for _ in range(12):
        heap.begin(0)
        try:
            taken = [heap.grant(2048).offset for _ in range(10)]
            answers.append(refusal_of(heap, 2064))
        finally:
            for offset in taken:
                heap.free(offset)
        while heap.search():
            pass
    assert Searching in answers
    assert answers[-1] is Fragmented


def refusal_of(heap: Heap, size: int) -> type[NoMemory]:
    """Ask in vain, and say how it was refused."""
    with pytest.raises(NoMemory) as refusal:
        heap.grant(size)
    return type(refusal.value)


def test_without_a_limit_nobody_waits(looks: list[int]) -> None:
    """A heap that was given no patience searches to the end, and has nothing to go on with."""
    heap = half_used(400)
    assert steps_of(heap, looks, 2064) == ([400], Fragmented)
    assert (heap.searching, heap.search()) == (False, False)


def test_a_walk_is_not_lost_among_pages_that_change_hands() -> None:
    """Ranges join and are granted around the place where it stands, slabs go and come, and the heap grows."""
    rng = random.Random(7)
    for seed in range(30):
        heap = Heap(64 * PAGE, size_classes="fine" if seed % 2 else "pow2", patience=1)
        live = list[int]()
        for step in range(300):
            heap.begin(0)
            try:
                live.append(
                    heap.grant(rng.choice((64, 700, 2048, 3000, 5000, 9000)), rng.choice((1, 1, 256, PAGE))).offset
                )
            except NoMemory:
                for _ in range(rng.randrange(len(live) // 2 + 1)):
                    heap.free(live.pop(rng.randrange(len(live))))
            for _ in range(rng.randrange(3)):
                heap.search()
            if step == 150:
                heap.add_memory(8 * PAGE)
            heap.check()


# -- adoption


ODD = [(0, 2048), (2048, 3 * PAGE), (3 * PAGE + 2048, 80), (3 * PAGE + 2128, 1024 + 896), (4 * PAGE, PAGE)]


@pytest.mark.parametrize("order", list(permutations(range(5))), ids=str)
def test_odd_blocks_are_adopted_in_any_order(order: tuple[int, ...]) -> None:
    """Slots first, which make slabs that must be cut, or the odd ones first, or between."""
    heap = heap_of(*(ODD[index] for index in order))
    assert sorted(heap.blocks()) == ODD
    assert heap.used_bytes == sum(size for _, size in ODD)
    for index in order:
        assert heap.free(ODD[index][0]) == ODD[index][1]
        heap.check()
    assert heap.grant(SMALL) == (0, SMALL)


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
def test_slots_across_pages_are_adopted_into_one_slab(order: tuple[int, ...]) -> None:
    """Four of 3072 bytes in three pages, whichever comes first: a slab grows at either end, and two become one."""
    heap = heap_of(*((3072 * slot, 3072) for slot in order), kind="fine")
    assert kinds_of(heap) == [Slab] * 3
    assert heap.classes()[-3] == ClassStats(3072, 1, 4, 0)
    assert sorted(heap.blocks()) == [(3072 * slot, 3072) for slot in range(4)]


def test_a_slot_off_its_alignment_is_adopted_exactly() -> None:
    """It came from the last resort. A slab of its phase would serve blocks off their alignment for ever."""
    heap = heap_of((16, 64))
    assert kinds_of(heap) == [Patch]
    assert heap.grant(64, 64).offset % 64 == 0


@pytest.mark.parametrize("block", [(PAGE, PAGE), (PAGE + 512, 512), (PAGE + 16, 16), (16, 2 * PAGE)], ids=str)
def test_idle_pages_of_slabs_are_free_to_adopt(block: tuple[int, int]) -> None:
    """Whether they are adopted as pages, as a slot of another class, or exactly."""
    heap = heap_of((0, 16), (3 * PAGE - 64, 64), (3 * PAGE, 5 * PAGE))
    offset = heap.grant(1024).offset
    heap.free(offset)
    assert heap.free_bytes == 0
    heap.adopt(*block)
    heap.check()
    assert heap.free(block[0]) == block[1]
    heap.check()


def test_whole_pages_that_were_idle_are_adopted_as_a_range() -> None:
    """They have gone back by then, so that no patch is needed."""
    heap = heap_of((PAGE, 7 * PAGE))
    heap.free(heap.grant(1024).offset)
    assert (kinds_of(heap), heap.free_bytes) == ([Slab, int], 0)
    heap.adopt(0, PAGE)
    assert kinds_of(heap) == [int, int]
    assert heap.classes()[-1] == ClassStats(PAGE, 1, 1, 0)
    heap.check()


def test_a_slab_of_many_pages_gives_them_back_once() -> None:
    """However many of its idle pages the block has."""
    heap = heap_of(kind="fine")
    heap.free(heap.grant(3072).offset)
    assert kinds_of(heap) == [Slab] * 3
    heap.adopt(0, 2 * PAGE)
    assert (kinds_of(heap), heap.free_bytes) == ([int], 6 * PAGE)
    heap.check()


# -- checking


def _count_a_patched_block(heap: Heap) -> None:
    heap._ground.patched_blocks += 1


def _count_patched_bytes(heap: Heap) -> None:
    heap._ground.patched_bytes += 16


def _lengthen_the_middle(heap: Heap) -> None:
    heap._ground.owners[1] = Middle(3)


def _split_the_middle(heap: Heap) -> None:
    heap._ground.owners[1] = heap._ground.owners[2] = Middle(1)


def _lose_the_middle(heap: Heap) -> None:
    del heap._ground.owners[1]


def _own_a_page_of_the_middle(heap: Heap) -> None:
    heap._ground.owners[2] = Patch(2)


def _lose_the_last_patch(heap: Heap) -> None:
    del heap._ground.owners[3]
    heap._ground.patched_blocks -= 1
    heap._ground.patched_bytes -= 2048


def _make_a_slab_of_the_last_page(heap: Heap) -> None:
    _lose_the_last_patch(heap)
    heap._ground.owners[3] = heap._ground.classes[64].add(3, 1)


def _begin_in_no_patch(heap: Heap) -> None:
    patch: Any = heap._ground.owners[0]
    patch.blocks[5 * PAGE] = patch.blocks.pop(2048)


def _free_a_quantum(heap: Heap) -> None:
    patch: Any = heap._ground.owners[0]
    patch.used ^= 1 << 255


def _know_less_room(heap: Heap) -> None:
    assert heap._ground.crumbs is not None
    heap._ground.crumbs.indexes[1].file(0, 1)


def _forget_the_log(heap: Heap) -> None:
    assert heap._ground.crumbs is not None
    heap.free(64)
    heap._ground.crumbs.log.clear()
    for index in heap._ground.crumbs.indexes.values():
        index.read = 0
    heap._ground.crumbs._trim()


BREAKS: list[Callable[[Heap], None]] = [
    _count_a_patched_block,
    _count_patched_bytes,
    _lengthen_the_middle,
    _split_the_middle,
    _lose_the_middle,
    _own_a_page_of_the_middle,
    _lose_the_last_patch,
    _make_a_slab_of_the_last_page,
    _begin_in_no_patch,
    _free_a_quantum,
    _know_less_room,
    _forget_the_log,
]


@pytest.mark.parametrize("damage", BREAKS)
def test_check_sees_each_broken_invariant(damage: Callable[[Heap], None]) -> None:
    """Every invariant that patches and crumbs add, broken by hand, is reported with numbers."""
    heap = heap_of((0, 64), (64, 64), (256, 1776), (2048, 3 * PAGE), (3 * PAGE + 2048, 2048), (4 * PAGE, 4 * PAGE))
    refused(heap, 144)
    damage(heap)
    with pytest.raises(InvariantBroken, match=r"\d"):
        heap.check()


@pytest.mark.parametrize(
    ("blocks", "size"),
    [([(0, 2048), (3 * PAGE + 2048, 2048), REST], 3 * PAGE), ([(0, 7 * PAGE), (7 * PAGE, 2048)], 2048)],
    ids=["across pages", "the last"],
)
def test_check_sees_a_room_that_is_not_known(blocks: list[tuple[int, int]], size: int) -> None:
    """Be the run in two slabs and the free pages between, or at the end of the heap."""
    heap = heap_of(*blocks)
    index = Seeker(heap._ground, 1).index()
    heap.check()
    for page in [page for page, _ in index.rooms.items()]:
        index.file(page, size // QUANTUM - 1)
    with pytest.raises(InvariantBroken, match=f"a room of {size // QUANTUM} quanta"):
        heap.check()
