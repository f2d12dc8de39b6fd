"""The heap: blocks of every size, by offset.

Owns which bytes of a heap are granted, and in which blocks. Small blocks live in slabs (`slab`), the others in page
ranges (`extents`); both get their pages here. Promises, whatever happened before:

- a request fails only when no range of wholly free pages has room for it where its alignment permits, and, up to 4096
  bytes, no free slot of its class or a larger one is there either;
- every method either raises and has changed nothing that can be observed, or has done all of it;
- grant and free cost the same at any heap size and any number of live blocks.

Must never read or write the memory it manages: offsets are all it knows, so nothing a client writes can confuse it.

Invariants:

    used_bytes + available_bytes = total_bytes
    used_bytes = sum of the sizes of the granted blocks = PAGE * _range_pages + sum of size * used over the classes
    available_bytes = free_bytes (page ranges) + slab_free_bytes (free slots, and tails too short for a slot)
    _by_size = the classes below a page, _native, and those some adopted block had (foreign: they serve nothing)
    a block of the largest class, one page, is a granted range: a slab of pages would only cost books. _singles of them
    _owners[p] = slab           for every page p of every slab
    _owners[p] = n              for every granted range of the pages [p, p + n), at its first page only
    the pages of slabs, the granted ranges and the free extents tile [0, total_bytes / PAGE)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from slabd_server.core.decay import DecayingExtents
from slabd_server.core.errors import (
    Fragmented,
    InvalidHeap,
    InvalidSize,
    InvariantBroken,
    OutOfMemory,
    OutOfRange,
    TooLarge,
    UnknownBlock,
)
from slabd_server.core.extents import Extents
from slabd_server.core.sizes import (
    MAX_CLASS,
    PAGE,
    PAGE_SHIFT,
    QUANTUM_SHIFT,
    STEPS,
    SizeClasses,
    class_sizes,
    page_rounded,
    pages_for,
    require_heap,
    require_layout,
    require_size,
    routes,
)
from slabd_server.core.slab import Slab, SlabClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd_server.core.memory import Memory

_ROUND: Final = (1 << QUANTUM_SHIFT) - 1
_tuple = tuple.__new__


class Extent(NamedTuple):
    """A granted block: where it begins in the heap, and how many bytes may be used."""

    offset: int
    size: int


class ClassStats(NamedTuple):
    """The books of a size class; `size` 0 stands for the page ranges, where `slabs` and `free_blocks` are 0."""

    size: int
    slabs: int
    used_blocks: int
    free_blocks: int


class Heap:
    """An allocator over `size` bytes that begin at the address or file offset `base`.

    With `memory`, pages that have been free for a while are given back to the system by `decay`, and exist again before
    they are granted; `grant` then also raises OutOfMemory when the system has none.

    Raises:
        InvalidHeap: `size` is below 32 KiB or no multiple of it, `base` is not on a page, or the classes are unknown.
        InvalidSize: `size` is no integer, or not representable.
    """

    __slots__ = (
        "_base",
        "_by_size",
        "_decaying",
        "_extents",
        "_kind",
        "_native",
        "_owners",
        "_range_pages",
        "_ranges",
        "_routes",
        "_singles",
        "slab_moves_from",
        "slab_moves_to",
    )

    def __init__(
        self, size: int, *, base: int = 0, size_classes: SizeClasses = "pow2", memory: Memory | None = None
    ) -> None:
        require_heap(size, base)
        if size_classes not in STEPS:
            raise InvalidHeap(f"size classes are {' or '.join(STEPS)}, not {size_classes!r}")
        self._base = base
        self._kind = size_classes
        pages, phase = size >> PAGE_SHIFT, base >> PAGE_SHIFT
        self._decaying = None if memory is None else DecayingExtents(pages, phase, memory)
        self._extents = self._decaying or Extents(pages, phase)
        sizes = class_sizes(size_classes)
        self._by_size = {c: SlabClass(c) for c in sizes if c < PAGE}
        self._native = tuple(self._by_size.values())
        self._routes = {
            alignment: tuple(self._by_size.get(sizes[index]) for index in route)
            for alignment, route in routes(sizes).items()
        }
        self._owners: dict[int, Slab | int] = {}
        self._ranges = 0
        self._range_pages = 0
        self._singles = 0
        self.slab_moves_to = 0
        self.slab_moves_from = 0

    # -- granting and freeing

    def grant(self, size: int, alignment: int = 1) -> Extent:
        """Grant a block of at least `size` bytes at a multiple of `alignment`.

        Size 0 is granted the smallest block, as in the seed.

        Raises:
            InvalidSize, InvalidAlignment: no layout.
            TooLarge: it would not fit an empty heap either.
            Fragmented: as many bytes are free, but not in one place.
            OutOfMemory: fewer are.
        """
        if type(size) is not int or type(alignment) is not int:
            require_layout(size, alignment)
        route = self._routes.get(alignment)
        if route is None or not 0 <= size <= MAX_CLASS:
            return self._grant_pages(size, alignment)
        cls = route[(size + _ROUND) >> QUANTUM_SHIFT]
        if cls is None:
            return self._grant_pages(size, alignment)
        offset = cls.take()
        if offset >= 0:
            return _tuple(Extent, (offset, cls.size))
        return self._grant_from_new_slab(cls, size, alignment)

    def free(self, offset: int) -> int:
        """Take the block at `offset` back, and return how many bytes that gives.

        Raises:
            UnknownBlock: no granted block begins there; nothing has changed.
        """
        owner = self._owners.get(offset >> PAGE_SHIFT) if type(offset) is int else None
        if type(owner) is Slab:
            cls = owner.cls
            if cls.give(owner, offset):
                self._shed(owner)
            return cls.size
        if owner is None or offset & (PAGE - 1):
            raise UnknownBlock(f"no block begins at {offset}")
        page = offset >> PAGE_SHIFT
        del self._owners[page]
        self._count_range(owner, -1)
        self._extents.give(page, owner)
        return owner << PAGE_SHIFT

    def usable_size(self, size: int, alignment: int = 1) -> tuple[int, int]:
        """Return (the smallest, the largest) size that gets the same block as this request.

        A block can be larger than the second only when its own class was full and a larger one had to serve.

        Raises:
            InvalidSize, InvalidAlignment: no layout.
        """
        require_layout(size, alignment)
        return size, self._rounded(size, alignment)

    def adopt(self, offset: int, size: int) -> Extent:
        """Mark exactly this block as granted: the way a heap is rebuilt from a ledger, in any order.

        `size` is a usable size that `grant` has returned, under whichever size classes. A block of one page becomes a
        page range: where it lived before cannot be told from its size, and makes no difference to anybody.

        Raises:
            OutOfRange: the block reaches past the heap.
            InvariantBroken: the block overlaps another, or no block of this size can begin there.
        """
        if type(offset) is not int or type(size) is not int or size <= 0:
            raise InvalidSize(f"a block has an offset and a positive size, not {offset!r} and {size!r}")
        if not 0 <= offset <= self.total_bytes - size:
            raise OutOfRange(f"block {offset}+{size} reaches past the heap's {self.total_bytes} bytes")
        if not size % PAGE and not offset % PAGE:
            self._adopt_range(offset >> PAGE_SHIFT, size >> PAGE_SHIFT)
        elif size < MAX_CLASS and not (size | offset) & _ROUND:
            self._adopt_slot(offset, size)
        else:
            raise InvariantBroken(f"no block of {size} bytes can begin at {offset}")
        return Extent(offset, size)

    def add_memory(self, size: int) -> int:
        """Put `size` more bytes, whole pages, behind the end; return the offset at which they begin.

        Raises:
            InvalidSize: `size` is no integer, or negative.
            InvalidHeap: `size` is no multiple of a page.
        """
        require_size(size)
        if size % PAGE:
            raise InvalidHeap(f"a heap grows by whole pages of {PAGE} bytes, not by {size}")
        end = self.total_bytes
        self._extents.grow(size >> PAGE_SHIFT)
        return end

    # -- giving memory back to the system

    @property
    def decays(self) -> bool:
        """Whether `decay` may have something to give back, now or later."""
        return self._decaying is not None and self._decaying.decays

    def decay(self) -> bool:
        """Give back what has been free for a period; return whether there is more to do at once. See `decay`.

        The idle pages of slabs become free first, so that they go the same way.
        """
        if self._decaying is None:
            return False
        self._reclaim()
        return self._decaying.step()

    # -- the books

    @property
    def total_bytes(self) -> int:
        """The size of the heap."""
        return self._extents.pages << PAGE_SHIFT

    @property
    def used_bytes(self) -> int:
        """The usable sizes of all granted blocks together."""
        return (self._range_pages << PAGE_SHIFT) + sum(cls.size * cls.used for cls in self._by_size.values())

    @property
    def available_bytes(self) -> int:
        """What is not used: `free_bytes + slab_free_bytes`."""
        return self.total_bytes - self.used_bytes

    @property
    def free_bytes(self) -> int:
        """The free bytes in page ranges."""
        return self._extents.free_pages << PAGE_SHIFT

    @property
    def slab_free_bytes(self) -> int:
        """The free bytes inside slabs, those behind the last slot included."""
        return self.available_bytes - self.free_bytes

    @property
    def free_ranges(self) -> int:
        """How many free page ranges there are."""
        return self._extents.ranges

    @property
    def used_blocks(self) -> int:
        """How many blocks are granted."""
        return self._ranges + sum(cls.used for cls in self._by_size.values())

    @property
    def largest_free_block_bytes(self) -> int:
        """The largest request, at alignment 1, that would be served now.

        Idle pages of slabs count, for they would be given back: at most 16 a class. Not all free ranges are looked at.
        """
        pages = max(self._extents.longest, self._longest_with_idle())
        if pages:
            return pages << PAGE_SHIFT
        return max((cls.size for cls in self._native if cls.used < cls.slots), default=0)

    def classes(self) -> tuple[ClassStats, ...]:
        """Return the books of each class, the smallest first, and of the page ranges, as size 0, before them."""
        ranges = ClassStats(0, 0, self._ranges - self._singles, 0)
        slabs = (ClassStats(c.size, c.slabs, c.used, c.slots - c.used) for _, c in sorted(self._by_size.items()))
        return ranges, *slabs, ClassStats(PAGE, self._singles, self._singles, 0)

    def blocks(self) -> Iterator[Extent]:
        """Yield every granted block, by offset within a slab, slabs and ranges in no order. Linear."""
        for page, owner in self._owners.items():
            if isinstance(owner, int):
                yield Extent(page << PAGE_SHIFT, owner << PAGE_SHIFT)
            elif page == owner.start:
                yield from (
                    Extent(owner.base + i * owner.cls.size, owner.cls.size)
                    for i in range(owner.slots)
                    if not owner.free >> i & 1
                )

    def __repr__(self) -> str:
        return (
            f"<Heap {self._kind}: {self.used_bytes} of {self.total_bytes} bytes used in {self.used_blocks} blocks, "
            f"largest free block {self.largest_free_block_bytes}>"
        )

    # -- page ranges

    def _grant_pages(self, size: int, alignment: int) -> Extent:
        require_layout(size, alignment)
        pages = max(pages_for(size), 1)
        align = alignment >> PAGE_SHIFT
        page = self._take_pages(pages, align)
        if page < 0:
            self._require_possible(size, alignment)
            if self._reclaim():
                page = self._take_pages(pages, align)
        if page < 0:
            self._refuse(size, alignment)
        self._owners[page] = pages
        self._count_range(pages, 1)
        return _tuple(Extent, (page << PAGE_SHIFT, pages << PAGE_SHIFT))

    def _take_pages(self, pages: int, align: int) -> int:
        return self._extents.take(pages) if align <= 1 else self._extents.take_aligned(pages, align)

    def _adopt_range(self, page: int, pages: int) -> None:
        if not self._extents.take_at(page, pages):
            raise InvariantBroken(f"block {page << PAGE_SHIFT}+{pages << PAGE_SHIFT} overlaps another")
        self._owners[page] = pages
        self._count_range(pages, 1)

    def _count_range(self, pages: int, ranges: int) -> None:
        self._ranges += ranges
        self._range_pages += ranges * pages
        if pages == 1:
            self._singles += ranges

    # -- slabs

    def _grant_from_new_slab(self, cls: SlabClass, size: int, alignment: int) -> Extent:
        if not self._grow(cls) and not (self._reclaim() and self._grow(cls)):
            cls = self._larger(cls, alignment) or self._refuse(size, alignment)
        return Extent(cls.take(), cls.size)

    def _larger(self, cls: SlabClass, alignment: int) -> SlabClass | None:
        """Return the smallest class above this one that has a free slot and the alignment."""
        above = (c for c in self._native if c.size > cls.size and c.used < c.slots and not c.size % alignment)
        return next(above, None)

    def _grow(self, cls: SlabClass) -> bool:
        start, pages = self._extents.take_up_to(cls.preferred_pages(), cls.unit)
        if not pages:
            return False
        self._own(cls.add(start, pages))
        self.slab_moves_to += 1
        return True

    def _own(self, slab: Slab) -> None:
        for page in range(slab.start, slab.end):
            self._owners[page] = slab

    def _shed(self, slab: Slab) -> None:
        runs, pieces = slab.cls.shed(slab)
        for first, behind in runs:
            for page in range(first, behind):
                del self._owners[page]
            self._extents.give(first, behind - first)
        for piece in pieces:
            self._own(piece)
        self.slab_moves_from += len(runs)

    def _reclaim(self) -> bool:
        """Give back the idle pages of every class; tell whether there were any."""
        idlers = [slab for cls in self._by_size.values() for slab in cls.idlers]
        for slab in idlers:
            self._shed(slab)
        return bool(idlers)

    def _adopt_slot(self, offset: int, size: int) -> None:
        first, behind = offset >> PAGE_SHIFT, (offset + size - 1 >> PAGE_SHIFT) + 1
        slabs = self._slabs_for(offset, size, first, behind)
        cls = self._by_size.get(size)
        if cls is None:
            # The heap had other classes when this was granted. The class serves no request, it only empties.
            cls = self._by_size[size] = SlabClass(size)
        if len(slabs) == 1 and slabs[0].start <= first and behind <= slabs[0].end:
            slab = slabs[0]
        else:
            slab = self._gather(cls, slabs, offset, first, behind)
        cls.mark(slab, offset)

    def _slabs_for(self, offset: int, size: int, first: int, behind: int) -> list[Slab]:
        """List the slabs that hold pages of this slot; raise unless it can join them all."""
        owners = (self._owners.get(page) for page in range(first, behind))
        slabs = list(dict.fromkeys(owner for owner in owners if owner is not None))
        for slab in slabs:
            if isinstance(slab, int) or slab.cls.size != size or (offset - slab.base) % size:
                raise InvariantBroken(f"block {offset}+{size} overlaps another: {slab!r}")
            slot = (offset - slab.base) // size
            if 0 <= slot < slab.slots and not slab.free >> slot & 1:
                raise InvariantBroken(f"block {offset}+{size} is granted already: {slab!r}")
        return [slab for slab in slabs if isinstance(slab, Slab)]

    def _gather(self, cls: SlabClass, slabs: list[Slab], offset: int, first: int, behind: int) -> Slab:
        """Make one slab of these slabs and of the pages [first, behind), which are free where they are not theirs."""
        lacking = [page for page in range(first, behind) if page not in self._owners]
        taken = [page for page in lacking if self._extents.take_at(page, 1)]
        if taken != lacking:
            for page in taken:
                self._extents.give(page, 1)
            raise InvariantBroken(
                f"block {offset}+{cls.size} overlaps another: page {first} or {behind - 1} is not free"
            )
        start = min([first, *(slab.start for slab in slabs)])
        end = max([behind, *(slab.end for slab in slabs)])
        base = (start << PAGE_SHIFT) + (offset - (start << PAGE_SHIFT)) % cls.size
        whole = cls.gather(slabs, base, end - start)
        self._own(whole)
        return whole

    # -- refusing, and the statistics behind it

    def _rounded(self, size: int, alignment: int) -> int:
        route = self._routes.get(alignment)
        if route is None or size > MAX_CLASS:
            return max(page_rounded(size), PAGE)
        cls = route[(size + _ROUND) >> QUANTUM_SHIFT]
        return PAGE if cls is None else cls.size

    def _refuse(self, size: int, alignment: int) -> NoReturn:
        rounded = self._rounded(size, alignment)
        available = self.available_bytes
        kind = Fragmented if available >= rounded else OutOfMemory
        raise kind(
            f"asked {size} bytes, alignment {alignment}; free {available}, "
            f"largest free block {self.largest_free_block_bytes}"
        )

    def _require_possible(self, size: int, alignment: int) -> None:
        """Raise `TooLarge` when an empty heap could not serve the request either."""
        room = self.total_bytes - (-self._base & (alignment - 1))
        if page_rounded(size) > room:
            raise TooLarge(
                f"asked {size} bytes, alignment {alignment}; the heap has {self.total_bytes}, "
                f"{max(room, 0)} of them from its first multiple of the alignment on"
            )

    def _longest_with_idle(self) -> int:
        """Return the length of the longest range of pages, free or idle, that has an idle page in it."""
        idlers = (slab for cls in self._by_size.values() for slab in cls.idlers)
        longest, start, end = 0, 0, -1
        for first, behind in sorted(run for slab in idlers for run in slab.idle_runs()):
            if first != end:
                start = first - self._extents.range_until(first)
            end = behind + self._extents.range_from(behind)
            longest = max(longest, end - start)
        return longest

    # -- checking

    def check(self) -> None:
        """Raise `InvariantBroken`, with the numbers, unless every invariant at the top of this file holds. Linear."""
        self._extents.check()
        slabs = {owner: None for owner in self._owners.values() if isinstance(owner, Slab)}
        for size, cls in self._by_size.items():
            cls.check(slab for slab in slabs if slab.cls is cls)
            if cls.size != size:
                raise InvariantBroken(f"{cls!r} is filed under {size}")
        ranges = {page: owner for page, owner in self._owners.items() if isinstance(owner, int)}
        counted = (self._ranges, self._range_pages, self._singles)
        truth = (len(ranges), sum(ranges.values()), sum(pages == 1 for pages in ranges.values()))
        if counted != truth:
            raise InvariantBroken(f"{counted} (ranges, pages, single pages) counted, {truth} are there")
        self._check_owners(slabs)
        self._check_tiling([*((slab.start, slab.pages) for slab in slabs), *ranges.items(), *self._extents])

    def _check_owners(self, slabs: dict[Slab, None]) -> None:
        for slab in slabs:
            for page in range(slab.start, slab.end):
                if self._owners.get(page) is not slab:
                    raise InvariantBroken(f"page {page} of {slab!r} is owned by {self._owners.get(page)!r}")
        pages = sum(slab.pages for slab in slabs) + self._ranges
        if len(self._owners) != pages:
            raise InvariantBroken(f"{len(self._owners)} pages have an owner, slabs and ranges account for {pages}")

    def _check_tiling(self, tiles: list[tuple[int, int]]) -> None:
        end = 0
        for start, pages in sorted(tiles):
            if start != end:
                raise InvariantBroken(f"pages {min(start, end)} to {max(start, end)} are owned twice, or by nobody")
            end = start + pages
        if end != self._extents.pages:
            raise InvariantBroken(f"the heap has {self._extents.pages} pages, {end} are accounted for")
