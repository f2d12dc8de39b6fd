"""The heap: routing, books, pressure, calcification, rebuilding, and what `check()` sees."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from slabd_server.core.errors import (
    Fragmented,
    InvalidAlignment,
    InvalidHeap,
    InvalidSize,
    InvariantBroken,
    NoMemory,
    OutOfMemory,
    OutOfRange,
    Searching,
    TooLarge,
    UnknownBlock,
)
from slabd_server.core.heap import ClassStats, Extent, Heap
from slabd_server.core.sizes import MAX_ALIGNMENT, MAX_SIZE, PAGE, SizeClasses, class_sizes
from slabd_server.core.slab import MAX_IDLE, Slab

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
KINDS: tuple[SizeClasses, ...] = ("pow2", "fine")
both_kinds = pytest.mark.parametrize("kind", KINDS)


def fill(heap: Heap, size: int, alignment: int = 1) -> list[int]:
    """Grant blocks of one size until the heap refuses, and return their offsets."""
    offsets = []
    try:
        while True:
            offsets.append(heap.grant(size, alignment).offset)
    except NoMemory:
        heap.check()
        return offsets


def state(heap: Heap) -> tuple[Any, ...]:
    """Everything about a heap that can be observed."""
    heap.check()
    return (
        sorted(heap.blocks()),
        heap.used_bytes,
        heap.free_bytes,
        heap.slab_free_bytes,
        heap.largest_free_block_bytes,
        heap.free_ranges,
        heap.classes(),
    )


# -- routing


def test_small_sizes_get_the_class_that_fits_size_and_alignment() -> None:
    """The usable size is the class, and the offset has the alignment."""
    heap = Heap(MIB)
    for size, alignment, usable in [
        (0, 1, 64),
        (64, 64, 64),
        (1, 128, 128),
        (65, 1, 128),
        (4096, 1, 4096),
        (1, 4096, 4096),
    ]:
        offset, got = heap.grant(size, alignment)
        assert (got, offset % alignment) == (usable, 0)


def test_the_tail_of_a_large_block_stays_free() -> None:
    """5 MiB takes 5 MiB, and a byte more than a page takes two pages."""
    heap = Heap(8 * MIB)
    assert heap.grant(5 * MIB).size == 5 * MIB
    assert heap.grant(4097).size == 8192
    assert heap.used_bytes == 5 * MIB + 8192
    assert heap.grant(3 * MIB - 8192).size == 3 * MIB - 8192


@pytest.mark.parametrize("base", [0, 4096, 12288, (1 << 33) + 4096])
@pytest.mark.parametrize("alignment", [1 << shift for shift in range(21)])
@pytest.mark.parametrize("size", [1, 100, 4096, 4097, 100_000])
def test_every_alignment_is_honoured(base: int, alignment: int, size: int) -> None:
    """Above a page too, and for small sizes too; counted from the base."""
    heap = Heap(4 * MIB, base=base)
    heap.grant(1)
    for _ in range(2):
        offset, usable = heap.grant(size, alignment)
        assert (base + offset) % alignment == 0
        assert usable == heap.usable_size(size, alignment)[1]
    heap.check()


@pytest.mark.parametrize("shift", [30, 33, 52, 62])
def test_an_alignment_can_be_as_large_as_a_layout_can_say(shift: int) -> None:
    """The first byte has it when the base has; all others wait, or never fit."""
    heap = Heap(MIB, base=1 << 62)
    assert heap.grant(100, 1 << shift) == (0, PAGE)
    with pytest.raises(Fragmented):
        heap.grant(5000, 1 << shift)
    heap.free(0)
    assert heap.grant(5000, 1 << shift) == (0, 8192)
    heap.check()
    with pytest.raises(TooLarge):
        Heap(MIB, base=(1 << 62) + PAGE).grant(1, 1 << shift)


@both_kinds
def test_usable_size_says_what_gets_the_same_block(kind: SizeClasses) -> None:
    """(smallest, largest): granting either gets the class or the pages that `grant` gives."""
    heap = Heap(MIB, size_classes=kind)
    for size in (0, 1, 64, 65, 81, 4096, 4097, 8192, 100_000):
        for alignment in (1, 64, 4096, 8192):
            smallest, largest = heap.usable_size(size, alignment)
            assert (smallest, largest) == (size, heap.grant(size, alignment).size)


def test_fine_classes_waste_less() -> None:
    """A block of 65 bytes takes 80, and of 2100 takes 2560."""
    heap = Heap(MIB, size_classes="fine")
    assert [heap.grant(size).size for size in (65, 81, 2100, 3000, 3073)] == [80, 96, 2560, 3072, 3584]
    assert heap.grant(65, 32).size == 96


# -- what is refused


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1, True, 1.0, "1", None])
def test_sizes_that_are_none_are_refused(size: Any) -> None:
    """Negative, not representable, not an integer: `InvalidSize`, and nothing has changed."""
    heap = Heap(32768)
    before = state(heap)
    for call in (heap.grant, heap.usable_size, heap.add_memory, Heap):
        with pytest.raises((InvalidSize, InvalidHeap)):
            call(size)
    assert state(heap) == before


@pytest.mark.parametrize("alignment", [0, -1, 3, 4097, MAX_ALIGNMENT * 2, True, 2.0, None])
@pytest.mark.parametrize("size", [1, 5000])
def test_alignments_that_are_none_are_refused(size: int, alignment: Any) -> None:
    """No power of two, not representable, not an integer: `InvalidAlignment`, and nothing has changed."""
    heap = Heap(32768)
    before = state(heap)
    for call in (heap.grant, heap.usable_size):
        with pytest.raises(InvalidAlignment):
            call(size, alignment)
    assert state(heap) == before


@pytest.mark.parametrize(
    ("size", "alignment"), [(MAX_SIZE, 2), (MAX_SIZE - 4094, PAGE), ((1 << 62) + 1, 1 << 62), (1, MAX_ALIGNMENT)]
)
def test_a_size_that_rounded_up_to_its_alignment_is_none_is_refused(size: int, alignment: int) -> None:
    """As in the seed, where it is no layout: `InvalidSize`. The largest that is one has a usable size."""
    heap = Heap(32768)
    for call in (heap.grant, heap.usable_size):
        with pytest.raises(InvalidSize, match="rounded up to its alignment"):
            call(size, alignment)
    assert heap.usable_size(MAX_SIZE + 1 - alignment, alignment)[0] == MAX_SIZE + 1 - alignment


@pytest.mark.parametrize(
    ("size", "base", "message"),
    [
        (0, 0, "at least 32768 bytes, not 0"),
        (32767, 0, "at least 32768 bytes, not 32767"),
        (32769, 0, "multiple of 32768 bytes, 32769 is 1 over"),
        (36864, 0, "multiple of 32768 bytes, 36864 is 4096 over"),
        (65536, 2048, "page of 4096 bytes, 2048 does not"),
        (65536, -4096, "page of 4096 bytes, -4096 does not"),
    ],
)
def test_a_heap_that_cannot_be_is_refused(size: int, base: int, message: str) -> None:
    """Too small, no multiple, off the page: each has its own message, with numbers."""
    with pytest.raises(InvalidHeap, match=message):
        Heap(size, base=base)


def test_unknown_classes_are_refused() -> None:
    """The message names the two there are."""
    with pytest.raises(InvalidHeap, match="pow2 or fine, not 'coarse'"):
        Heap(32768, size_classes="coarse")  # type: ignore[arg-type]


def test_what_would_not_fit_an_empty_heap_is_too_large() -> None:
    """Larger than the heap, or than what is left behind the first multiple of the alignment: waiting never helps."""
    heap = Heap(65536, base=4096)
    for size, alignment in [(65537, 1), (61441, 65536), (1, MAX_ALIGNMENT >> 1), (MAX_SIZE, 1)]:
        with pytest.raises(TooLarge, match=f"asked {size} bytes, alignment {alignment}; the heap has 65536"):
            heap.grant(size, alignment)
    assert heap.grant(4096, 65536).offset == 61440


def test_enough_bytes_in_the_wrong_places_are_fragmented() -> None:
    """The message has what was asked for, what is free, and the largest block."""
    heap = Heap(65536)
    offsets = [heap.grant(8192).offset for _ in range(8)]
    for offset in offsets[::2]:
        heap.free(offset)
    with pytest.raises(Fragmented, match="asked 12288 bytes, alignment 1; free 32768, largest free block 8192"):
        heap.grant(12288)
    with pytest.raises(OutOfMemory, match="asked 40960 bytes, alignment 1; free 32768") as refused:
        heap.grant(40960)
    assert not isinstance(refused.value, Fragmented)


@pytest.mark.parametrize("offset", [64, 32, 8191, 4096 + 8192, 12288, 65536, -4096, 1 << 70, 1.5, None, "0"])
def test_what_is_no_block_cannot_be_freed(offset: Any) -> None:
    """Inside a block, free, outside, no number: `UnknownBlock`, and nothing has changed."""
    heap = Heap(65536)
    assert (heap.grant(1).offset, heap.grant(8192).offset, heap.grant(4096).offset) == (0, 4096, 61440)
    heap.free(61440)
    before = state(heap)
    with pytest.raises(UnknownBlock):
        heap.free(offset)
    assert state(heap) == before


@pytest.mark.parametrize("size", [1, 100, 4096, 4097, 65536])
def test_a_double_free_is_refused(size: int) -> None:
    """The second `free` of an offset changes nothing."""
    heap = Heap(65536)
    offset = heap.grant(size).offset
    assert heap.free(offset) == heap.usable_size(size)[1]
    before = state(heap)
    with pytest.raises(UnknownBlock, match=f"no block begins at {offset}"):
        heap.free(offset)
    assert state(heap) == before


# -- the books


def test_the_books_balance() -> None:
    """Used and available add up, free pages and free slots make up what is available, per class too."""
    heap = Heap(65536)
    a, b = heap.grant(100), heap.grant(1)
    heap.grant(10_000)
    assert (heap.used_bytes, heap.available_bytes) == (128 + 64 + 12288, 65536 - 128 - 64 - 12288)
    assert heap.free_bytes == 65536 - 12288 - 2 * 4096
    assert heap.slab_free_bytes == 2 * 4096 - 128 - 64
    assert heap.classes()[:4] == (
        ClassStats(0, 0, 1, 0),
        ClassStats(64, 1, 1, 63),
        ClassStats(128, 1, 1, 31),
        ClassStats(256, 0, 0, 0),
    )
    assert (heap.used_blocks, heap.free_ranges) == (3, 1)
    assert (heap.free(a.offset), heap.free(b.offset)) == (128, 64)
    assert heap.used_bytes == 12288
    assert repr(heap) == "<Heap pow2: 12288 of 65536 bytes used in 1 blocks, largest free block 45056>"


def test_slab_moves_are_counted() -> None:
    """One to a class when it gets a slab, one from it when its pages go back."""
    heap = Heap(32768)
    offset = heap.grant(1).offset
    heap.free(offset)
    assert (heap.slab_moves_to, heap.slab_moves_from) == (1, 0)
    heap.grant(32768)
    assert (heap.slab_moves_to, heap.slab_moves_from) == (1, 1)


@both_kinds
def test_the_largest_free_block_is_the_truth(kind: SizeClasses) -> None:
    """At any time a request of that size is served, and one of two pages more is not."""
    for seed in range(15):
        heap = aged(seed, kind, 16 * 32768)
        largest = heap.largest_free_block_bytes
        with pytest.raises(NoMemory):
            heap.grant(largest + 2 * PAGE)
        if largest:
            assert heap.largest_free_block_bytes == largest
            assert heap.grant(largest).size == largest


def aged(seed: int, kind: SizeClasses, size: int, steps: int = 600) -> Heap:
    """Build a heap with a random history of which about the last tenth of the space is left."""
    rng = random.Random(seed)
    heap, live = Heap(size, size_classes=kind), list[int]()
    for _ in range(steps):
        if live and (heap.available_bytes < size // 10 or rng.random() < 0.3):
            heap.free(live.pop(rng.randrange(len(live))))
        try:
            live.append(heap.grant(int(2 ** rng.uniform(0, 15)), 1 << rng.randrange(14)).offset)
        except OutOfMemory:
            continue
    heap.check()
    return heap


# -- calcification and pressure


@both_kinds
@pytest.mark.parametrize("size", [*class_sizes("fine"), 4097, 12288, 40000, 98304])
def test_filled_with_any_size_and_freed_it_is_one_block_again(kind: SizeClasses, size: int) -> None:
    """No slab stays behind: the whole heap can be leased in one block."""
    heap = Heap(3 * 32768, size_classes=kind)
    offsets = fill(heap, size)
    random.Random(size).shuffle(offsets)
    for offset in offsets:
        heap.free(offset)
    heap.check()
    assert heap.largest_free_block_bytes == 3 * 32768
    assert heap.grant(3 * 32768) == (0, 3 * 32768)


@both_kinds
@pytest.mark.parametrize("seed", range(5))
def test_after_any_history_it_is_one_block_again(kind: SizeClasses, seed: int) -> None:
    """Random sizes, alignments and frees leave nothing behind either."""
    heap = aged(seed, kind, 8 * 32768)
    for offset, _ in list(heap.blocks()):
        heap.free(offset)
    heap.check()
    assert heap.grant(8 * 32768).size == 8 * 32768


@both_kinds
@pytest.mark.parametrize("size", class_sizes("fine"))
def test_a_class_never_fails_while_a_page_is_free(kind: SizeClasses, size: int) -> None:
    """With one page left, wherever it is, each class gets a slab of it."""
    for free in (0, 3, 7):
        heap = Heap(32768, size_classes=kind)
        for page in {*range(8)} - {free}:
            heap.adopt(page * PAGE, PAGE)
        assert heap.grant(size).offset == free * PAGE
        heap.check()


@both_kinds
def test_a_full_class_takes_the_slot_of_a_larger_one(kind: SizeClasses) -> None:
    """Without a free page, a free slot of the smallest larger class with the alignment serves."""
    heap = Heap(32768, size_classes=kind)
    heap.grant(2048)
    heap.grant(512)
    heap.grant(7 * PAGE - PAGE)
    assert heap.free_bytes == 0
    assert heap.grant(64).size == 512
    assert heap.grant(64, 1024).size == 2048
    heap.check()


@both_kinds
def test_idle_pages_go_back_under_pressure(kind: SizeClasses) -> None:
    """A class keeps a few idle pages, until somebody needs them: a larger block, or another class."""
    heap = Heap(64 * PAGE, size_classes=kind)
    for offset in fill(heap, 1024)[1:]:
        heap.free(offset)
    assert heap.free_bytes < 63 * PAGE
    assert heap.largest_free_block_bytes == 63 * PAGE
    assert heap.grant(63 * PAGE).size == 63 * PAGE
    heap.check()


def test_idle_pages_inside_a_used_slab_go_back_too() -> None:
    """A slab does not wait for its last block: the pages around a living block serve a large request."""
    heap = Heap(64 * PAGE)
    offsets = fill(heap, 2048)
    kept = offsets[60]
    for offset in offsets:
        if offset != kept:
            heap.free(offset)
    assert heap.largest_free_block_bytes == 33 * PAGE
    heap.grant(33 * PAGE)
    heap.grant(30 * PAGE)
    assert heap.free(kept) == 2048
    heap.check()


def test_a_class_keeps_some_pages_so_as_not_to_thrash() -> None:
    """A block granted and freed again and again moves no page, even when it is the only one of its class."""
    heap = Heap(MIB)
    for size in class_sizes("pow2"):
        heap.free(heap.grant(size).offset)
    moves = (heap.slab_moves_to, heap.slab_moves_from)
    for _ in range(100):
        for size in class_sizes("pow2"):
            heap.free(heap.grant(size).offset)
    assert (heap.slab_moves_to, heap.slab_moves_from) == moves == (6, 0)  # the class of a page has no slabs


def test_a_class_hoards_no_more_than_its_limit() -> None:
    """Of a thousand pages freed, all but the few of the hysteresis are free for everybody without any pressure."""
    heap = Heap(1024 * PAGE)
    for offset in fill(heap, 4096):
        heap.free(offset)
    assert heap.free_bytes >= (1024 - MAX_IDLE) * PAGE
    heap.check()


def test_a_request_that_can_never_be_served_disturbs_nobody() -> None:
    """What is too large takes no class's idle pages away."""
    heap = Heap(MIB)
    heap.free(heap.grant(64).offset)
    before = state(heap)
    with pytest.raises(TooLarge):
        heap.grant(2 * MIB)
    assert state(heap) == before


# -- growing


def test_added_memory_is_joined_to_the_free_end() -> None:
    """A grown heap serves one block over the old end and the new one, which the crate never does."""
    heap = Heap(32768)
    assert heap.add_memory(4096) == 32768
    assert heap.add_memory(0) == 36864
    assert heap.grant(36864) == (0, 36864)
    with pytest.raises(InvalidHeap, match="whole pages of 4096 bytes, not by 100"):
        heap.add_memory(100)
    assert heap.total_bytes == 36864


# -- rebuilding


@both_kinds
@pytest.mark.parametrize("then", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_a_heap_is_rebuilt_from_its_blocks_in_any_order(kind: SizeClasses, then: SizeClasses, seed: int) -> None:
    """Adopting every block, shuffled, makes a heap with the same books that frees them all, under other classes too."""
    heap = aged(seed, kind, 16 * 32768)
    blocks = list(heap.blocks())
    random.Random(seed).shuffle(blocks)
    again = Heap(16 * 32768, size_classes=then)
    for block in blocks:
        assert again.adopt(*block) == block
        again.check()
    assert sorted(again.blocks()) == sorted(blocks)
    assert (again.used_bytes, again.used_blocks) == (heap.used_bytes, heap.used_blocks)
    for offset, size in blocks:
        assert again.free(offset) == size
    again.check()
    assert again.grant(16 * 32768).size == 16 * 32768


def test_an_adopted_block_cannot_overlap_another() -> None:
    """Whatever is granted already, and in whichever way, is refused, and nothing has changed."""
    heap = Heap(65536)
    heap.adopt(0, 64)
    heap.adopt(8192, 12288)
    heap.adopt(24576 + 3072, 3072)
    before = state(heap)
    for offset, size in [
        (0, 64),  # granted
        (48, 16),  # inside of a slot
        (0, 4096),  # a range over a slab
        (8192, 4096),  # a range over a range
        (16384, 128),  # a slot inside a range
        (4096, 8192),  # a range that ends in another
        (24576 + 2048, 2048),  # another class, over the slot
        (24576 + 1024, 3072),  # another phase
        (20480 - 1024, 3072),  # a slot half inside a range
        (4096 - 16, 4096 + 32),  # over a free page into a range
    ]:
        with pytest.raises(InvariantBroken, match=f"block {offset}\\+{size} "):
            heap.adopt(offset, size)
        assert state(heap) == before
    heap.adopt(24576, 3072)
    heap.adopt(64, 64)
    heap.check()


@pytest.mark.parametrize(
    ("offset", "size", "error"),
    [
        (-64, 64, OutOfRange),
        (65536, 64, OutOfRange),
        (61440, 8192, OutOfRange),
        (0, 0, InvalidSize),
        (0, -64, InvalidSize),
        (0, True, InvalidSize),
        (0.0, 64, InvalidSize),
        (0, 100, InvariantBroken),
        (8, 64, InvariantBroken),
        (64, 4100, InvariantBroken),
        (0, 5000, InvariantBroken),
    ],
)
def test_what_no_heap_has_granted_is_not_adopted(offset: Any, size: Any, error: type[Exception]) -> None:
    """Outside of the heap, no size, no place for a block of that size."""
    heap = Heap(65536)
    before = state(heap)
    with pytest.raises(error):
        heap.adopt(offset, size)
    assert state(heap) == before


def test_a_foreign_class_only_empties() -> None:
    """Blocks of a class the configuration has no more can be freed; its slots serve nobody, its bytes and pages all."""
    heap = Heap(32768)
    heap.adopt(0, 80)
    assert ClassStats(80, 1, 1, 50) in heap.classes()
    assert heap.grant(70).size == 128
    fill(heap, 4096)
    fill(heap, 128)
    assert heap.largest_free_block_bytes == 0
    with pytest.raises(OutOfMemory):
        heap.grant(64)
    assert heap.grant(48) == (80 + 31 * 128, 48)
    for offset in [offset for offset, _ in heap.blocks() if offset < PAGE]:
        heap.free(offset)
    assert heap.grant(4096).size == 4096
    heap.check()


# -- checking


def _count_a_range(heap: Heap) -> None:
    heap._ground.ranges += 1


def _count_a_page(heap: Heap) -> None:
    heap._ground.range_pages += 1


def _own_a_free_page(heap: Heap) -> None:
    owners = heap._ground.owners
    owners[15] = next(owner for owner in owners.values() if isinstance(owner, Slab))


def _disown_a_slabs_page(heap: Heap) -> None:
    del heap._ground.owners[0]


def _steal_a_slabs_page(heap: Heap) -> None:
    heap._ground.own(heap._ground.classes[64].add(0, 1))


def _leak_a_range(heap: Heap) -> None:
    heap._ground.count_range(heap._ground.owners[1], -1)  # type: ignore[arg-type]
    del heap._ground.owners[1]


def _free_twice(heap: Heap) -> None:
    heap._extents.give(1, 1)


def _lose_the_end(heap: Heap) -> None:
    assert heap._extents.take_at(15, 1)


def _misfile_a_class(heap: Heap) -> None:
    heap._ground.classes[48] = heap._ground.classes.pop(2048)


def _miscount_the_single_pages(heap: Heap) -> None:
    heap._ground.singles += 1


BREAKS: list[Callable[[Heap], None]] = [
    _miscount_the_single_pages,
    _count_a_range,
    _count_a_page,
    _own_a_free_page,
    _disown_a_slabs_page,
    _steal_a_slabs_page,
    _leak_a_range,
    _free_twice,
    _lose_the_end,
    _misfile_a_class,
]


@pytest.mark.parametrize("damage", BREAKS)
def test_check_sees_each_broken_invariant(damage: Callable[[Heap], None]) -> None:
    """Every invariant in the module's prose, broken by hand, is reported with numbers."""
    heap = Heap(65536)
    heap.grant(64)
    heap.grant(8192)
    heap.check()
    damage(heap)
    with pytest.raises(InvariantBroken, match=r"\d"):
        heap.check()


def test_an_extent_is_a_pair() -> None:
    """A granted block unpacks into its offset and its usable size."""
    assert Heap(32768).grant(100) == Extent(0, 128) == (0, 128)


def test_an_aligned_request_among_many_free_pages_is_searched_for_in_steps() -> None:
    """Every other page is free, all of them off the alignment: it is refused when that is known, and not before."""
    heap = Heap(1 << 24, patience=4)
    for page in [heap.grant(PAGE).offset for _ in range(1 << 12)]:
        if page // PAGE % 2:
            heap.free(page)
    steps = 0
    for _ in range(10):
        heap.begin(0)
        try:
            heap.grant(PAGE, 2 * PAGE)
        except Searching:
            while heap.search():
                steps += 1
                heap.check()
        except Fragmented:
            break
    else:
        pytest.fail("no answer")
    assert steps > 20
    heap.begin(0)
    heap.free(40 * PAGE)
    assert heap.grant(PAGE, 2 * PAGE).offset == 40 * PAGE
    heap.check()


def test_a_request_that_was_searched_for_and_served_leaves_no_longer_steps() -> None:
    """Twice as many looks are for who asks again in vain."""
    heap = Heap(1 << 24, patience=4)
    for page in [heap.grant(PAGE).offset for _ in range(1 << 12)]:
        if page // PAGE % 2:
            heap.free(page)
    heap.begin(0)
    with pytest.raises(Searching):
        heap.grant(PAGE, 2 * PAGE)
    while heap.search():
        pass
    heap.free(40 * PAGE)
    heap.begin(0)
    assert heap.grant(PAGE, 2 * PAGE).offset == 40 * PAGE
    heap.begin(0)
    assert heap._ground.patience.left == 4
