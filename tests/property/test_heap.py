"""`Heap` against a model that keeps the granted blocks and looks through all bytes between them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

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
from slabd_server.core.heap import Heap
from slabd_server.core.sizes import PAGE, PAGE_SHIFT, QUANTUM, SizeClasses

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

KINDS: list[SizeClasses] = ["pow2", "fine"]
SIZES = st.one_of(st.integers(0, 5000), st.integers(0, 20).map(lambda n: n * PAGE), st.sampled_from([64, 2048, 3072]))
ALIGNMENTS = st.sampled_from([1, 1, 1, 8, 64, 256, 1024, 4096, 8192, 32768, 65536])


class Memory:
    """The pages that exist. `broke` makes the system refuse more."""

    def __init__(self) -> None:
        self.holes: set[int] = set()
        self.broke = False

    def afford(self, offset: int, size: int) -> None:
        """Nothing is known before it is tried."""

    def commit(self, offset: int, size: int) -> None:
        """Make pages exist."""
        pages = set(range(offset >> PAGE_SHIFT, offset + size >> PAGE_SHIFT))
        if self.broke and pages & self.holes:
            raise OutOfMemory("the system has no memory")
        self.holes -= pages

    def give_back(self, offset: int, size: int) -> None:
        """Give pages back."""
        self.holes |= set(range(offset >> PAGE_SHIFT, offset + size >> PAGE_SHIFT))

    def clear(self, offset: int, size: int) -> None:
        """Nothing is cleared here."""

    def exists(self, offset: int, size: int) -> bool:
        """Say whether somebody who touches these bytes is safe."""
        return self.holes.isdisjoint(range(offset >> PAGE_SHIFT, (offset + size - 1 >> PAGE_SHIFT) + 1))


class Model:
    """Forty lines: blocks by offset, and brute force."""

    def __init__(self, total: int, base: int) -> None:
        self.total = total
        self.base = base
        self.blocks: dict[int, int] = {}

    def longest_run(self, alignment: int = 1, missing: Iterable[int] = ()) -> int:
        """Return the most free bytes in one run that begins at the alignment and has none of the pages `missing`."""
        begin, longest, step = 0, 0, max(alignment, QUANTUM)
        taken = [*self.blocks.items(), *((page * PAGE, PAGE) for page in missing), (self.total, 0)]
        for offset, size in sorted(taken):
            longest = max(longest, offset - (begin + -(self.base + begin) % step))
            begin = offset + size
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

    @initialize(
        granules=st.integers(1, 4),
        kind=st.sampled_from(KINDS),
        base=st.sampled_from([0, 4096, 28672]),
        decaying=st.booleans(),
        idle=st.sampled_from([2, 30, 1024]),
        patience=st.sampled_from([None, 1, 3]),
    )
    def make(
        self, *, granules: int, kind: SizeClasses, base: int, decaying: bool, idle: int, patience: int | None
    ) -> None:
        """Start with an empty heap, whose memory may decay; `idle` is how long an idle index stays."""
        self.before = crumbs.MIN_IDLE
        crumbs.MIN_IDLE = idle  # type: ignore[misc]
        self.patience = patience
        self.memory = Memory()
        self.decaying = self.memory if decaying else None
        self.heap = Heap(granules * 32768, base=base, size_classes=kind, memory=self.decaying, patience=patience)
        self.model = Model(granules * 32768, base)

    def teardown(self) -> None:
        """Put the patience back."""
        if hasattr(self, "before"):
            crumbs.MIN_IDLE = self.before  # type: ignore[misc]

    @rule(size=SIZES, alignment=ALIGNMENTS)
    def grant(self, size: int, alignment: int) -> None:
        """A granted block is new, large enough and aligned; a refusal is justified, and of the right kind."""
        rounded = self.heap.usable_size(size, alignment)[1]
        exact = max(-(-size // QUANTUM) * QUANTUM, QUANTUM)
        longest = self.model.longest_run(alignment)
        there = self.model.longest_run(alignment, self.missing)
        try:
            offset, usable = self.patiently(size, alignment)
        except NoMemory as refusal:
            if str(refusal) == "the system has no memory":
                assert self.memory.broke
                return
            assert longest < exact
            self.justify(refusal, exact, alignment)
            return
        # Less than its class only when that fits nowhere, and more only when no page is free that exists, or could.
        less, more = usable == exact and there < rounded, usable > rounded and not self.has_free_page
        assert usable == rounded or less or more
        assert (self.model.base + offset) % alignment == 0
        assert not self.model.overlaps(offset, usable)
        assert 0 <= offset <= self.model.total - usable
        assert self.memory.exists(offset, usable)
        self.model.blocks[offset] = usable

    @property
    def missing(self) -> Collection[int]:
        """The pages that cannot be had without the system's memory; of a free range that may have holes, all."""
        if not self.memory.broke:
            return ()
        extents = self.heap._ground.extents
        lacking = [range(start, start + pages) for start, pages in extents if extents.may_lack(start)]
        return {page for pages in lacking for page in pages}

    @property
    def has_free_page(self) -> bool:
        """Whether a page is free and can be had."""
        return self.heap.free_bytes > len(self.missing) * PAGE

    def patiently(self, size: int, alignment: int = 1) -> tuple[int, int]:
        """Ask again until a search that runs out of patience has come to its end."""
        while True:
            self.heap.begin(1)
            try:
                return self.heap.grant(size, alignment)
            except Searching:
                assert self.patience is not None
                while self.heap.search():
                    self.heap.check()

    @rule(size=SIZES, alignment=ALIGNMENTS)
    def begin_a_search(self, size: int, alignment: int) -> None:
        """Ask for something and do not come back for it: what happens then happens in the middle of the search."""
        self.heap.begin(0)
        try:
            offset, usable = self.heap.grant(size, alignment)
        except NoMemory:
            return
        self.model.blocks[offset] = usable

    @rule()
    def go_on(self) -> None:
        """A step of a search that nobody waits for."""
        self.heap.search()

    def justify(self, refusal: NoMemory, exact: int, alignment: int) -> None:
        """Say why: too large for ever, in the wrong places, or too much now."""
        available = self.model.total - self.model.used
        never = Model(self.model.total, self.model.base).longest_run(alignment) < exact
        kind = TooLarge if never else Fragmented if available >= exact else OutOfMemory
        assert type(refusal) is kind

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
        """The largest run there is can be had, and nothing larger; the figure is of what needs no search."""
        longest = self.model.longest_run()
        assert longest - 2 * PAGE < self.heap.largest_free_block_bytes <= longest
        with pytest.raises(NoMemory):
            self.patiently(longest + 1)
        for largest in {longest, self.heap.largest_free_block_bytes} - {0}:
            try:
                offset, usable = self.patiently(largest)
            except OutOfMemory:
                assert self.memory.broke
                continue
            assert usable >= largest
            assert self.heap.free(offset) == usable

    @rule(periods=st.integers(1, 3))
    def pass_periods(self, periods: int) -> None:
        """What has been free for a while goes back to the system."""
        for _ in range(periods):
            while self.heap.decay():
                self.heap.check()

    @rule(broke=st.booleans())
    def the_system(self, *, broke: bool) -> None:
        """Let the system have memory, or none."""
        self.memory.broke = broke

    @rule(pages=st.integers(0, 3))
    def add_memory(self, pages: int) -> None:
        """The heap grows at its end."""
        assert self.heap.add_memory(pages * PAGE) == self.model.total
        self.model.total += pages * PAGE

    @rule(kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
    def restart(self, kind: SizeClasses, seed: int) -> None:
        """A heap rebuilt from its blocks in any order, under any classes, goes on as if nothing had happened."""
        self.memory.holes.clear()  # a daemon that starts makes all pages exist
        heap = Heap(32768, base=self.model.base, size_classes=kind, memory=self.decaying, patience=self.patience)
        heap.add_memory(self.model.total - 32768)
        blocks = list(self.heap.blocks())
        random.Random(seed).shuffle(blocks)
        for block in blocks:
            assert heap.adopt(*block) == block
            heap.check()
        self.heap = heap

    @rule(data=st.data())
    def adopt_what_overlaps(self, data: st.DataObject) -> None:
        """A block that overlaps one there is cannot be adopted."""
        if self.model.blocks:
            offset = data.draw(st.sampled_from(sorted(self.model.blocks)))
            for size in (self.model.blocks[offset], 64, PAGE):
                if offset + size <= self.model.total:
                    with pytest.raises(InvariantBroken):
                        self.heap.adopt(offset, size)

    @rule(
        quantum=st.integers(0, 5 * 2048), size=st.sampled_from([16, 48, 64, 80, 1024, 3072, 4096, 4112, 12288, 20000])
    )
    def adopt_anything(self, quantum: int, size: int) -> None:
        """Any bytes on the grain can be adopted, if they are free."""
        offset = quantum * QUANTUM
        if offset + size > self.model.total:
            return
        try:
            self.heap.adopt(offset, size)
        except InvariantBroken:
            assert self.model.overlaps(offset, size)
        except OutOfMemory:
            assert self.memory.broke
        else:
            assert not self.model.overlaps(offset, size)
            self.model.blocks[offset] = size

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
        assert all(self.memory.exists(*block) for block in self.model.blocks.items())


HeapMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestHeap = HeapMachine.TestCase


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(3600)
def test_a_long_random_life(kind: SizeClasses, request: pytest.FixtureRequest) -> None:
    """Two million random operations on a heap of 16 MiB that is often full, with restarts; the last resort included."""
    if "soak" not in request.config.getoption("-m"):
        pytest.skip("by hand only: pytest -m soak")
    rng = random.Random(2026)
    heap, model = Heap(1 << 24, size_classes=kind), Model(1 << 24, 0)
    live, blocks = list[int](), model.blocks
    refused = patched = 0
    for step in range(2_000_000):
        # Phases of filling up to the brim and of draining to about a third take turns.
        if live and rng.random() < (0.4 if step // 20_000 % 2 else 0.6):
            index = rng.randrange(len(live))
            live[index], live[-1] = live[-1], live[index]
            offset = live.pop()
            assert heap.free(offset) == blocks.pop(offset)
            continue
        size, alignment = int(2 ** rng.uniform(0, 18)), 1 << rng.choice((0, 0, 0, 6, 12, 15))
        try:
            offset, usable = heap.grant(size, alignment)
        except OutOfMemory:
            refused += 1
            assert refused % 20 or model.longest_run(alignment) < max(size, QUANTUM)
        else:
            live.append(offset)
            blocks[offset] = usable
        if step % 1000 == 0:
            heap.check()
            patched = max(patched, heap._ground.patched_blocks)
            assert heap.used_bytes == model.used
        if step % 50_000 == 0:
            heap = Heap(1 << 24, size_classes=kind)
            rng.shuffle(live)
            for offset in live:
                heap.adopt(offset, blocks[offset])
    rng.shuffle(live)
    for offset in live:
        heap.free(offset)
    heap.check()
    assert refused
    assert patched
    assert heap.grant(1 << 24).size == 1 << 24
