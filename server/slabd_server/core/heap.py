"""The heap: blocks of every size, by offset.

Owns what serves a request. Small blocks live in slabs (`slab`), the others in page ranges (`extents`); both get their
pages from the `ground`. Promises, whatever happened before:

- a request fails only when no run of free bytes has room for it where its alignment permits;
- every method either raises and has changed nothing that can be observed, idle pages given back apart, or has done all
  of it;
- grant and free cost the same at any heap size and any number of live blocks.

Must never read or write the memory it manages: offsets are all it knows, so nothing a client writes can confuse it.

What serves a request, the first that can: a free slot of its class, a new slab; for large ones, free pages; both once
more when the idle pages of all classes have been given back; a free slot of a larger class; any run of free bytes that
holds the size in whole classes or pages (`last_resort`); one that holds the bare size.

Invariants, apart from those of the ground:

    used_bytes + available_bytes = total_bytes
    used_bytes = sum of the sizes of the granted blocks
               = PAGE * range_pages + patched_bytes + sum of size * used over the classes
    available_bytes = free_bytes (page ranges) + slab_free_bytes (in slabs, slots or not, and in patches)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from slabd_server.core import last_resort
from slabd_server.core.adoption import adopt
from slabd_server.core.errors import (
    Fragmented,
    InvalidHeap,
    InvalidSize,
    OutOfMemory,
    OutOfRange,
    Searching,
    TooLarge,
    UnknownBlock,
)
from slabd_server.core.extents import NOWHERE
from slabd_server.core.ground import Ground
from slabd_server.core.patch import Patch
from slabd_server.core.patching import place, release
from slabd_server.core.sizes import (
    MAX_CLASS,
    MAX_SIZE,
    PAGE,
    PAGE_SHIFT,
    QUANTUM_SHIFT,
    STEPS,
    SizeClasses,
    class_sizes,
    page_rounded,
    quantum_rounded,
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
    """The books of a size class.

    `size` 0 stands for the blocks of no class: page ranges, and blocks that were placed, or came to lie, in patches.
    It has no slabs and no free blocks.
    """

    size: int
    slabs: int
    used_blocks: int
    free_blocks: int


class Heap:
    """An allocator over `size` bytes that begin at the address or file offset `base`.

    With `memory`, pages that have been free for a while are given back to the system by `decay`, and exist again before
    they are granted; `grant` then also raises OutOfMemory when the system has none, and nothing that exists serves.

    With `patience`, a step looks at so many slabs and no more: `grant` then also raises Searching when that is not
    enough to know whether there is room. `search` goes on until it returns False; then the request is to be made again.

    Raises:
        InvalidHeap: `size` is below 32 KiB or no multiple of it, `base` is not on a page, or the classes are unknown.
        InvalidSize: `size` is no integer, or not representable.
    """

    __slots__ = (
        "_base",
        "_classes",
        "_extents",
        "_ground",
        "_kind",
        "_lacking",
        "_mask",
        "_native",
        "_owners",
        "_routes",
        "_shift",
    )

    def __init__(
        self,
        size: int,
        *,
        base: int = 0,
        size_classes: SizeClasses = "pow2",
        memory: Memory | None = None,
        patience: int | None = None,
    ) -> None:
        require_heap(size, base)
        if size_classes not in STEPS:
            raise InvalidHeap(f"size classes are {' or '.join(STEPS)}, not {size_classes!r}")
        sizes = class_sizes(size_classes)
        self._base = base
        self._kind = size_classes
        self._ground = Ground(size, base, sizes, memory, patience)
        # These are never replaced: what every grant and free needs is one look away.
        self._extents = self._ground.extents
        self._classes = self._ground.classes
        self._owners = self._ground.owners.parts
        self._mask, self._shift = self._ground.owners.mask, self._ground.owners.shift
        # Why pages that are free cannot be had, in the words of the system; none while nothing has been refused.
        self._lacking = ""
        self._native = tuple(self._classes.values())
        self._routes = {
            alignment: tuple(self._classes.get(sizes[index]) for index in route)
            for alignment, route in routes(sizes).items()
        }

    # -- granting and freeing

    def grant(self, size: int, alignment: int = 1) -> Extent:
        """Grant a block of at least `size` bytes at a multiple of `alignment`.

        Size 0 is granted the smallest block, as in the seed: a page when the alignment is above that.

        Raises:
            InvalidSize, InvalidAlignment: no layout.
            TooLarge: it would not fit an empty heap either.
            Fragmented: as many bytes are free, but not in one place.
            OutOfMemory: fewer are.
            Searching: the heap has run out of patience; nothing has changed, idle pages given back apart.
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
        if type(offset) is not int:
            raise UnknownBlock(f"no block begins at {offset!r}")
        page = offset >> PAGE_SHIFT
        owner = self._owners[page & self._mask].get(page >> self._shift)
        ground = self._ground
        if type(owner) is Slab:
            cls = owner.cls
            if cls.give(owner, offset):
                ground.shed(owner)
            if ground.crumbs is not None:
                ground.note(page)
            return cls.size
        if type(owner) is not int or offset & (PAGE - 1):
            return release(ground, owner, offset)
        del self._owners[page & self._mask][page >> self._shift]
        ground.count_range(owner, -1)
        start = self._extents.give(page, owner)
        if ground.crumbs is not None:
            ground.note_range(start)
        return owner << PAGE_SHIFT

    def usable_size(self, size: int, alignment: int = 1) -> tuple[int, int]:
        """Return (the smallest, the largest) size that gets the same block as this request.

        A full heap can serve it with another one: larger than the second when a larger class had to serve, and smaller,
        but never than the size asked for rounded up to 16, when nothing else was left. The block says how large it is.

        Raises:
            InvalidSize, InvalidAlignment: no layout.
        """
        require_layout(size, alignment)
        return size, self._rounded(size, alignment)

    def adopt(self, offset: int, size: int) -> Extent:
        """Mark exactly this block as granted: the way a heap is rebuilt from a ledger, in any order.

        `size` is a usable size that `grant` has returned, under whichever size classes. See `adoption`.

        Raises:
            OutOfRange: the block reaches past the heap.
            InvariantBroken: the block overlaps another, or no block of this size can begin there.
        """
        if type(offset) is not int or type(size) is not int or size <= 0:
            raise InvalidSize(f"a block has an offset and a positive size, not {offset!r} and {size!r}")
        if not 0 <= offset <= self.total_bytes - size:
            raise OutOfRange(f"block {offset}+{size} reaches past the heap's {self.total_bytes} bytes")
        adopt(self._ground, offset, size)
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
        self._ground.grow(size >> PAGE_SHIFT)
        return end

    # -- searching for free bytes, a step at a time

    def begin(self, blocks: int) -> None:
        """Begin a step that grants this many blocks: there is patience for it again, unless a search is under way."""
        self._ground.patience.renew(blocks)

    @property
    def searching(self) -> bool:
        """Whether a search has run out of patience, so that `search` has something to do."""
        return self._ground.patience.pending is not None

    def search(self) -> bool:
        """Go on with the search for a step; return whether there is more to do."""
        return self._ground.patience.go_on()

    # -- giving memory back to the system

    @property
    def decays(self) -> bool:
        """Whether `decay` may have something to give back, now or later: free pages, or idle ones of slabs."""
        decaying = self._ground.decaying
        if decaying is None:
            return False
        return decaying.decays or any(cls.idle for cls in self._classes.values())

    def decay(self) -> bool:
        """Give back what has been free for a period; return whether there is more to do at once. See `decay`.

        The idle pages of slabs become free first, so that they go the same way.
        """
        decaying = self._ground.decaying
        if decaying is None:
            return False
        self._ground.reclaim()
        return decaying.step()

    def lack(self, offset: int) -> None:
        """Note that the free pages around this offset may not exist: they were granted, but could not be committed."""
        if self._ground.decaying is not None:
            self._ground.decaying.lack(offset >> PAGE_SHIFT)

    # -- the books

    @property
    def total_bytes(self) -> int:
        """The size of the heap."""
        return self._extents.pages << PAGE_SHIFT

    @property
    def used_bytes(self) -> int:
        """The usable sizes of all granted blocks together."""
        ground = self._ground
        no_class = (ground.range_pages << PAGE_SHIFT) + ground.patched_bytes
        return no_class + sum(cls.size * cls.used for cls in self._classes.values())

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
        """The free bytes inside slabs, those before the first slot and behind the last included, and in patches."""
        return self.available_bytes - self.free_bytes

    @property
    def free_ranges(self) -> int:
        """How many free page ranges there are."""
        return self._extents.ranges

    @property
    def used_blocks(self) -> int:
        """How many blocks are granted."""
        ground = self._ground
        return ground.ranges + ground.patched_blocks + sum(cls.used for cls in self._classes.values())

    @property
    def slab_moves_to(self) -> int:
        """How often a class has got a slab."""
        return self._ground.moves_to

    @property
    def slab_moves_from(self) -> int:
        """How often a run of pages has come back from a class."""
        return self._ground.moves_from

    @property
    def largest_free_block_bytes(self) -> int:
        """The largest request, at alignment 1, that would be served now by free pages or by a free slot.

        Idle pages of slabs count, for they would be given back: at most 16 a class. Not all free ranges are looked at.
        What the last resort would find is not looked for, because a figure must not cost a search: it can be more, by
        less than two pages.
        """
        pages = max(self._extents.longest, self._ground.longest_with_idle())
        if pages:
            return pages << PAGE_SHIFT
        return max((cls.size for cls in self._native if cls.used < cls.slots), default=0)

    def classes(self) -> tuple[ClassStats, ...]:
        """Return the books of each class, the smallest first, and of the blocks of no class, as size 0, before them."""
        ground = self._ground
        classless = ClassStats(0, 0, ground.ranges - ground.singles + ground.patched_blocks, 0)
        slabs = (ClassStats(c.size, c.slabs, c.used, c.slots - c.used) for _, c in sorted(self._classes.items()))
        return classless, *slabs, ClassStats(PAGE, ground.singles, ground.singles, 0)

    def blocks(self) -> Iterator[Extent]:
        """Yield every granted block, by offset within a slab, slabs and ranges in no order. Linear."""
        for page, owner in self._ground.owners.items():
            if isinstance(owner, int):
                yield Extent(page << PAGE_SHIFT, owner << PAGE_SHIFT)
            elif isinstance(owner, Patch):
                yield from (Extent(offset, size) for offset, size in owner.blocks.items())
            elif isinstance(owner, Slab) and owner.start == page:
                yield from (Extent(offset, owner.cls.size) for offset in owner.used_offsets(owner.start, owner.end))

    def __repr__(self) -> str:
        return (
            f"<Heap {self._kind}: {self.used_bytes} of {self.total_bytes} bytes used in {self.used_blocks} blocks, "
            f"largest free block {self.largest_free_block_bytes}>"
        )

    # -- when there is no free slot

    def _grant_pages(self, size: int, alignment: int) -> Extent:
        # Which alignments have a route is known, and how large a size may be beside them: two looks, where calls cost
        # a tenth of the grant.
        if alignment not in self._routes or not 0 <= size <= MAX_SIZE - MAX_CLASS:
            require_layout(size, alignment)
        self._lacking = ""
        ground = self._ground
        pages = (size + PAGE - 1) >> PAGE_SHIFT or 1
        align = alignment >> PAGE_SHIFT
        page = self._take_pages(pages, align)
        if page < 0:
            self._require_possible(size, alignment)
            if ground.reclaim():
                page = self._take_pages(pages, align)
        if page < 0:
            return self._grant_anywhere(size, alignment)
        self._owners[page & self._mask][page >> self._shift] = pages
        ground.count_range(pages, 1)
        return _tuple(Extent, (page << PAGE_SHIFT, pages << PAGE_SHIFT))

    def _take_pages(self, pages: int, align: int) -> int:
        try:
            return self._extents.take(pages) if align <= 1 else self._extents.take_aligned(pages, align)
        except Searching:
            raise
        except OutOfMemory as error:
            self._lacking = str(error)
            return NOWHERE

    def _grant_from_new_slab(self, cls: SlabClass, size: int, alignment: int) -> Extent:
        self._lacking = ""
        if not self._grow(cls) and not (self._ground.reclaim() and self._grow(cls)):
            larger = self._larger(cls, alignment)
            if larger is None:
                return self._grant_anywhere(size, alignment)
            cls = larger
        return Extent(cls.take(), cls.size)

    def _larger(self, cls: SlabClass, alignment: int) -> SlabClass | None:
        """Return the smallest class above this one that has a free slot and the alignment."""
        above = (c for c in self._native if c.size > cls.size and c.used < c.slots and not c.size % alignment)
        return next(above, None)

    def _grow(self, cls: SlabClass) -> bool:
        try:
            start, pages = self._extents.take_up_to(cls.preferred_pages(), cls.unit)
        except OutOfMemory as error:
            self._lacking = str(error)
            return False
        if not pages:
            return False
        self._ground.own(cls.add(start, pages))
        self._ground.moves_to += 1
        return True

    def _grant_anywhere(self, size: int, alignment: int) -> Extent:
        available = self.available_bytes
        for usable in dict.fromkeys((self._rounded(size, alignment), quantum_rounded(size))):
            if usable <= available and (offset := self._place_anywhere(usable, alignment)) >= 0:
                self._ground.patience.answered()
                return Extent(offset, usable)
        self._ground.patience.answered()
        if self._lacking:
            raise OutOfMemory(self._lacking)
        raise self._refusal(size, alignment, available)

    def _place_anywhere(self, usable: int, alignment: int) -> int:
        """Place a block where bytes are free: where all of them exist, when the system has no memory for the others."""
        ground = self._ground
        offset = last_resort.find(ground, usable, alignment)
        if offset < 0:
            return NOWHERE
        try:
            place(ground, offset, usable)
        except OutOfMemory as error:
            self._lacking = str(error)
            offset = last_resort.find(ground, usable, alignment, existing=True)
            if offset >= 0:
                place(ground, offset, usable)
        return offset

    # -- refusing, and the statistics behind it

    def _rounded(self, size: int, alignment: int) -> int:
        route = self._routes.get(alignment)
        if route is None or size > MAX_CLASS:
            return max(page_rounded(size), PAGE)
        cls = route[(size + _ROUND) >> QUANTUM_SHIFT]
        return PAGE if cls is None else cls.size

    def _refusal(self, size: int, alignment: int, available: int) -> OutOfMemory:
        kind = Fragmented if available >= quantum_rounded(size) else OutOfMemory
        return kind(
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

    # -- checking

    def check(self) -> None:
        """Raise `InvariantBroken`, with the numbers, unless every invariant of the heap and its parts holds. Linear."""
        self._ground.check()
        last_resort.check(self._ground)
