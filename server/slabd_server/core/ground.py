"""The ground: what each page of a heap is for.

Owns the owners of the pages, the free ranges, the classes and the counts of what is in no class; every part of the heap
works on it. Promises that pages change hands in one place: they come from `extents`, go back by `give`, and what grows
is written down for `crumbs`. Must not decide what serves a request.

Invariants:

    classes = the classes below a page, native, and those some adopted block had (foreign: they serve nothing), by size
    owners[p] = slab            for every page p of every slab
    owners[p] = patch           for every page p in which single quanta are kept account of
    owners[p] = Middle(n)       for the pages [p, p + n) some block of the patch p - 1 has whole, at their first only
    owners[p] = n               for every granted range of the pages [p, p + n), at its first page only
    the pages of slabs, patches, middles, the granted ranges and the free extents tile [0, extents.pages)
    ranges, range_pages, singles = how many granted ranges, of how many pages, and how many of one page: a block of the
                                   largest class is a granted range, because a slab of pages would only cost books
    patched_blocks, patched_bytes = how many blocks begin in patches, and their sizes together
    every quantum of a patch that is used is of a block that begins there, or in the last patch before
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slabd_server.core.decay import DecayingExtents
from slabd_server.core.errors import InvariantBroken
from slabd_server.core.extents import Extents
from slabd_server.core.page_table import PageTable
from slabd_server.core.patch import Middle, Patch
from slabd_server.core.patience import Patience
from slabd_server.core.sizes import PAGE, PAGE_SHIFT
from slabd_server.core.slab import Slab, SlabClass

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slabd_server.core.crumbs import Crumbs
    from slabd_server.core.memory import Memory

Owner = Slab | Patch | Middle | int

EACH_PART: Final = 8  # changes to a look at one part of the owners: few, because a part is small


class Ground:
    """The pages of a heap whose first byte is at the address `base`; all of them free at first."""

    __slots__ = (
        "_changes",
        "base",
        "classes",
        "crumbs",
        "decaying",
        "extents",
        "moves_from",
        "moves_to",
        "owners",
        "patched_blocks",
        "patched_bytes",
        "patience",
        "range_pages",
        "ranges",
        "singles",
    )

    def __init__(
        self, size: int, base: int, sizes: Iterable[int], memory: Memory | None, patience: int | None = None
    ) -> None:
        pages, phase = size >> PAGE_SHIFT, base >> PAGE_SHIFT
        self.base = base
        self.patience = Patience(patience)
        self.decaying = None if memory is None else DecayingExtents(pages, phase, memory, self.patience)
        self.extents = self.decaying or Extents(pages, phase, self.patience)
        self.classes = {c: SlabClass(c) for c in sizes if c < PAGE}
        self.owners: PageTable[Owner] = PageTable(pages)
        self.crumbs: Crumbs | None = None
        self.ranges = 0
        self.range_pages = 0
        self.singles = 0
        self.patched_blocks = 0
        self.patched_bytes = 0
        self.moves_to = 0
        self.moves_from = 0
        self._changes = 0

    # -- pages change hands

    def count_range(self, pages: int, ranges: int) -> None:
        """Count ranges of this length granted, or freed when `ranges` is negative."""
        self.ranges += ranges
        self.range_pages += ranges * pages
        if pages == 1:
            self.singles += ranges
        self._changes += 1
        if self._changes >= EACH_PART:
            self._tidy()

    def _tidy(self) -> None:
        """Look at a part of each table for every so many changes there were."""
        parts, self._changes = divmod(self._changes, EACH_PART)
        for _ in range(min(parts, self.owners.mask + 1)):
            self.owners.tidy()
            self.extents.tidy()

    def own(self, holder: Slab | Patch) -> None:
        """Enter a slab or a patch as the owner of its pages."""
        for page in range(holder.start, holder.start + holder.pages):
            self.owners[page] = holder
        self._changes += holder.pages
        self.note(holder.start)

    def give(self, first: int, pages: int) -> None:
        """Make pages free that nobody owns any more."""
        self.note_range(self.extents.give(first, pages))

    def grow(self, pages: int) -> None:
        """Add free pages behind the last one."""
        end = self.extents.pages
        start = end - self.extents.range_until(end)
        self.extents.grow(pages)
        self.note_range(start)

    def shed(self, slab: Slab) -> None:
        """Give the idle pages of a slab back."""
        self.parted(*slab.cls.shed(slab))

    def parted(self, runs: list[tuple[int, int]], pieces: list[Slab]) -> None:
        """Enter what has become of a slab: runs [first, behind) of pages that are free now, and smaller slabs."""
        for first, behind in runs:
            for page in range(first, behind):
                del self.owners[page]
            self.give(first, behind - first)
            self._changes += behind - first
        for piece in pieces:
            self.own(piece)
        self.moves_from += len(runs)
        if self._changes >= EACH_PART:
            self._tidy()

    def reclaim(self) -> bool:
        """Give back the idle pages of every class; tell whether there were any."""
        idlers = [slab for cls in self.classes.values() for slab in cls.idlers]
        for slab in idlers:
            self.shed(slab)
        return bool(idlers)

    def longest_with_idle(self) -> int:
        """Return the length of the longest range of pages, free or idle, that has an idle page in it."""
        idlers = (slab for cls in self.classes.values() for slab in cls.idlers)
        longest, start, end = 0, 0, -1
        for first, behind in sorted(run for slab in idlers for run in slab.idle_runs()):
            if first != end:
                start = first - self.extents.range_until(first)
            end = behind + self.extents.range_from(behind)
            longest = max(longest, end - start)
        return longest

    # -- what the last resort is told

    def note(self, page: int) -> None:
        """Write down, if somebody reads it, that the holder of `page` may have more room than before."""
        if self.crumbs is not None and not self.crumbs.note(page):
            self.crumbs = None

    def note_range(self, start: int) -> None:
        """Write down that the free range from page `start` on is longer than before, for the holders beside it."""
        if self.crumbs is not None:
            end = start + self.extents.range_from(start)
            self.crumbs.join(start, end)
            self.note(start - 1)
            self.note(end)

    def holders(self) -> Iterator[Slab | Patch]:
        """Yield every slab and every patch. Linear in what is granted."""
        for page, owner in self.owners.items():
            if isinstance(owner, (Slab, Patch)) and owner.start == page:
                yield owner

    # -- checking

    def check(self) -> None:
        """Raise `InvariantBroken`, with the numbers, unless every invariant at the top of this file holds. Linear."""
        self.extents.check()
        holders = {owner: None for owner in self.owners.values() if isinstance(owner, (Slab, Patch))}
        for size, cls in self.classes.items():
            cls.check(slab for slab in holders if isinstance(slab, Slab) and slab.cls is cls)
            if cls.size != size:
                raise InvariantBroken(f"{cls!r} is filed under {size}")
        ranges = {page: owner for page, owner in self.owners.items() if isinstance(owner, int)}
        counted = (self.ranges, self.range_pages, self.singles)
        truth = (len(ranges), sum(ranges.values()), sum(pages == 1 for pages in ranges.values()))
        if counted != truth:
            raise InvariantBroken(f"{counted} (ranges, pages, single pages) counted, {truth} are there")
        middles = {page: owner.pages for page, owner in self.owners.items() if isinstance(owner, Middle)}
        self._check_patches([patch for patch in holders if isinstance(patch, Patch)], middles)
        self._check_owners(holders, len(ranges) + len(middles))
        owned = ((holder.start, holder.pages) for holder in holders)
        self._check_tiling([*owned, *ranges.items(), *middles.items(), *self.extents])

    def _check_patches(self, patches: list[Patch], middles: dict[int, int]) -> None:
        blocks = [block for patch in patches for block in patch.blocks.items()]
        if (self.patched_blocks, self.patched_bytes) != (len(blocks), sum(size for _, size in blocks)):
            raise InvariantBroken(f"{self.patched_blocks} blocks in patches counted, {len(blocks)} are there")
        touching: dict[int, list[tuple[int, int]]] = {patch.start: [] for patch in patches}
        within: dict[int, int] = {}
        for offset, size in blocks:
            first, whole = offset >> PAGE_SHIFT, offset + size >> PAGE_SHIFT
            for page in {first} if (offset + size) % PAGE == 0 else {first, whole}:
                if page not in touching:
                    raise InvariantBroken(f"block {offset}+{size} reaches into page {page}, which is no patch")
                touching[page].append((offset, size))
            if whole > first + 1:
                within[first + 1] = whole - first - 1
        for patch in patches:
            patch.check(touching[patch.start])
        if within != middles:
            raise InvariantBroken(f"blocks have pages {within} whole, {middles} are entered so")

    def _check_owners(self, holders: dict[Slab | Patch, None], others: int) -> None:
        for holder in holders:
            for page in range(holder.start, holder.start + holder.pages):
                if self.owners.get(page) is not holder:
                    raise InvariantBroken(f"page {page} of {holder!r} is owned by {self.owners.get(page)!r}")
        pages = sum(holder.pages for holder in holders) + others
        if len(self.owners) != pages:
            raise InvariantBroken(f"{len(self.owners)} pages have an owner, what there is accounts for {pages}")

    def _check_tiling(self, tiles: list[tuple[int, int]]) -> None:
        end = 0
        for start, pages in sorted(tiles):
            if start != end:
                raise InvariantBroken(f"pages {min(start, end)} to {max(start, end)} are owned twice, or by nobody")
            end = start + pages
        if end != self.extents.pages:
            raise InvariantBroken(f"the heap has {self.extents.pages} pages, {end} are accounted for")
