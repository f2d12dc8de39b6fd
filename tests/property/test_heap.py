"""`Heap` against a model that keeps the granted blocks and looks through all of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from slabd_server.core.errors import Fragmented, InvariantBroken, NoMemory, OutOfMemory, TooLarge, UnknownBlock
from slabd_server.core.heap import Extent, Heap
from slabd_server.core.sizes import PAGE, SizeClasses, class_sizes

KINDS: list[SizeClasses] = ["pow2", "fine"]
SIZES = st.one_of(st.integers(0, 5000), st.integers(0, 20).map(lambda n: n * PAGE), st.sampled_from([64, 2048, 3072]))
ALIGNMENTS = st.sampled_from([1, 1, 1, 8, 256, 4096, 8192, 32768])


class Model:
    """Forty lines: blocks by offset, and brute force."""

    def __init__(self, total: int, base: int) -> None:
        self.total = total
        self.base = base
        self.blocks: dict[int, int] = {}

    def busy_pages(self) -> set[int]:
        """Return the pages some block touches."""
        return {p for o, size in self.blocks.items() for p in range(o // PAGE, (o + size - 1) // PAGE + 1)}

    def longest_run(self, alignment: int = 1) -> int:
        """Return the most bytes of untouched pages in one run that begins at the alignment."""
        busy, longest, run = self.busy_pages(), 0, 0
        for page in reversed(range(self.total // PAGE)):
            run = 0 if page in busy else run + PAGE
            if (self.base + page * PAGE) % alignment == 0:
                longest = max(longest, run)
        return longest

    def overlaps(self, offset: int, size: int) -> bool:
        """Say whether a block would overlap one there is."""
        return any(offset < o + s and o < offset + size for o, s in self.blocks.items())

    @property
    def used(self) -> int:
        """The bytes of all blocks."""
        return sum(self.blocks.values())


class HeapMachine(RuleBasedStateMachine):
    """Grant, free, grow, rebuild, and every refusal, checked after each step."""

    @initialize(granules=st.integers(1, 4), kind=st.sampled_from(KINDS), base=st.sampled_from([0, 4096, 28672]))
    def make(self, granules: int, kind: SizeClasses, base: int) -> None:
        """Start with an empty heap."""
        self.kind = kind
        self.heap = Heap(granules * 32768, base=base, size_classes=kind)
        self.model = Model(granules * 32768, base)

    @rule(size=SIZES, alignment=ALIGNMENTS)
    def grant(self, size: int, alignment: int) -> None:
        """A granted block is new, large enough and aligned; a refusal is justified, and of the right kind."""
        rounded = self.heap.usable_size(size, alignment)[1]
        fits = self.model.longest_run(alignment) >= max(size, 1)
        try:
            offset, usable = self.heap.grant(size, alignment)
        except NoMemory as refusal:
            assert not fits
            self.justify(refusal, rounded, alignment)
            return
        assert usable == rounded or (usable > rounded and not fits)
        assert (self.model.base + offset) % alignment == 0
        assert not self.model.overlaps(offset, usable)
        assert 0 <= offset <= self.model.total - usable
        self.model.blocks[offset] = usable

    def justify(self, refusal: NoMemory, rounded: int, alignment: int) -> None:
        """Say why: too large for ever, in the wrong places, or too much now."""
        available = self.model.total - self.model.used
        never = Model(self.model.total, self.model.base).longest_run(alignment) < rounded
        kind = TooLarge if never else Fragmented if available >= rounded else OutOfMemory
        assert type(refusal) is kind
        free = {stats.size for stats in self.heap.classes() if stats.free_blocks} & set(class_sizes(self.kind))
        assert rounded > PAGE or not any(size >= rounded and size % alignment == 0 for size in free)

    @rule(size=st.sampled_from([64, 80, 1024, 2048, 3072, 4096, 8192]))
    def grant_many(self, size: int) -> None:
        """Fill some pages with one size, so that the heap gets full and slabs large."""
        for _ in range(max(6 * PAGE // size, 3) // 2):
            self.grant(size, 1)

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        """A block gives back what it had, once."""
        if self.model.blocks:
            offset = data.draw(st.sampled_from(sorted(self.model.blocks)))
            assert self.heap.free(offset) == self.model.blocks.pop(offset)
            with pytest.raises(UnknownBlock):
                self.heap.free(offset)

    @rule(seed=st.integers(0, 99), share=st.sampled_from([0.3, 0.7, 0.95, 1.0]))
    def free_many(self, seed: int, share: float) -> None:
        """A part of all blocks goes, in any order."""
        rng = random.Random(seed)
        offsets = [offset for offset in self.model.blocks if rng.random() < share]
        rng.shuffle(offsets)
        for offset in offsets:
            assert self.heap.free(offset) == self.model.blocks.pop(offset)

    @rule(offset=st.integers(-100, 5 * 32768))
    def free_nonsense(self, offset: int) -> None:
        """What is no block's beginning is refused."""
        if offset not in self.model.blocks:
            with pytest.raises(UnknownBlock):
                self.heap.free(offset)

    @rule()
    def take_the_largest(self) -> None:
        """The largest free block can be had, and nothing larger: both without moving the books."""
        largest = self.heap.largest_free_block_bytes
        with pytest.raises(NoMemory):
            self.heap.grant(largest + 1)
        if largest:
            assert self.heap.free(self.heap.grant(largest).offset) == largest

    @rule(pages=st.integers(0, 3))
    def add_memory(self, pages: int) -> None:
        """The heap grows at its end."""
        assert self.heap.add_memory(pages * PAGE) == self.model.total
        self.model.total += pages * PAGE

    @rule(kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
    def restart(self, kind: SizeClasses, seed: int) -> None:
        """A heap rebuilt from its blocks in any order goes on as if nothing had happened."""
        heap = Heap(32768, base=self.model.base, size_classes=kind)
        heap.add_memory(self.model.total - 32768)
        blocks = list(self.model.blocks.items())
        random.Random(seed).shuffle(blocks)
        for offset, size in blocks:
            heap.adopt(offset, size)
        self.heap = heap
        self.kind = kind

    @rule(data=st.data())
    def adopt_what_overlaps(self, data: st.DataObject) -> None:
        """A block that overlaps one there is cannot be adopted."""
        if self.model.blocks:
            offset = data.draw(st.sampled_from(sorted(self.model.blocks)))
            for size in (self.model.blocks[offset], 64, PAGE):
                if offset + size <= self.model.total:
                    with pytest.raises(InvariantBroken):
                        self.heap.adopt(offset, size)

    @invariant()
    def same(self) -> None:
        """The books are the model's, and the heap is sound."""
        if not hasattr(self, "heap"):
            return
        heap: Any = self.heap
        heap.check()
        assert dict(heap.blocks()) == self.model.blocks
        assert (heap.total_bytes, heap.used_bytes) == (self.model.total, self.model.used)
        assert heap.used_bytes + heap.free_bytes + heap.slab_free_bytes == heap.total_bytes
        assert heap.available_bytes == heap.free_bytes + heap.slab_free_bytes
        assert heap.used_blocks == len(self.model.blocks) == sum(stats.used_blocks for stats in heap.classes())
        longest = self.model.longest_run()
        assert heap.largest_free_block_bytes == longest or (longest == 0 and heap.largest_free_block_bytes <= PAGE)


HeapMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestHeap = HeapMachine.TestCase


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(3600)
def test_a_long_random_life(kind: SizeClasses, request: pytest.FixtureRequest) -> None:
    """Two million random operations on a heap of 16 MiB that is often full, with restarts."""
    if "soak" not in request.config.getoption("-m"):
        pytest.skip("by hand only: pytest -m soak")
    rng = random.Random(2026)
    heap, live = Heap(1 << 24, size_classes=kind), list[Extent]()
    for step in range(2_000_000):
        # Phases of filling up to the brim and of draining to about a third take turns.
        if live and rng.random() < (0.4 if step // 20_000 % 2 else 0.6):
            index = rng.randrange(len(live))
            live[index], live[-1] = live[-1], live[index]
            offset, size = live.pop()
            assert heap.free(offset) == size
            continue
        size, alignment = int(2 ** rng.uniform(0, 18)), 1 << rng.choice((0, 0, 0, 6, 12, 15))
        try:
            live.append(heap.grant(size, alignment))
        except OutOfMemory:
            assert alignment > 1 or heap.largest_free_block_bytes < size
        if step % 1000 == 0:
            heap.check()
            assert heap.used_bytes == sum(size for _, size in live)
        if step % 50_000 == 0:
            heap = Heap(1 << 24, size_classes=kind)
            rng.shuffle(live)
            for offset, size in live:
                heap.adopt(offset, size)
    rng.shuffle(live)
    for offset, _ in live:
        heap.free(offset)
    heap.check()
    assert heap.grant(1 << 24).size == 1 << 24
