"""Patches: pages of which every quantum is kept account of, for blocks that fit nowhere else.

Owns which quanta of one page are in use, and which blocks begin in it. A page becomes a patch when a block is placed
across the slots of its slab, or beside them; the blocks that were there stay where they are. Promises nothing about
speed: a patch is the exception, and goes back as soon as it is empty. Must not know where the other pages of a block
are: the heap does.

Invariants:

    offset and size of every block are multiples of QUANTUM
    bit i of used is set  <=>  the quantum of bytes [start * PAGE + i * QUANTUM, ... + QUANTUM) is some block's
    blocks = { offset : size } of the blocks that begin in this page; no two blocks overlap
    0 < used < 2 ** PAGE_QUANTA: a patch in which nothing is used is no patch any more

A block may reach over the end of its page. What follows then are the pages it has whole, whatever their number, which
are one `Middle`, and at last, where it ends inside of a page, another patch. The page it begins in is always a patch,
even if the block has all of it: somebody must know the block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, final

from slabd_server.core.errors import InvariantBroken
from slabd_server.core.runs import high_run, low_run, ones
from slabd_server.core.sizes import PAGE, PAGE_QUANTA, PAGE_SHIFT, QUANTUM, QUANTUM_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterable

_FULL: Final = ones(PAGE_QUANTA)


class Middle(NamedTuple):
    """Whole pages of a block that begins in the patch before them: no block begins here."""

    pages: int


@final
class Patch:
    """A page with every quantum accounted for; all of them free at first."""

    __slots__ = ("blocks", "start", "used")

    pages: Final = 1

    def __init__(self, start: int) -> None:
        self.start = start
        self.used = 0
        self.blocks: dict[int, int] = {}

    def free_quanta(self) -> int:
        """Return the bitmap of the quanta that no block has."""
        return self.used ^ _FULL

    def free_ends(self) -> tuple[int, int]:
        """Return how many quanta are free from the first on, and how many up to the last."""
        free = self.free_quanta()
        return low_run(free), high_run(free, PAGE_QUANTA)

    def quanta(self, offset: int, size: int) -> int:
        """Return the bitmap of the quanta a block has here; it may begin before this page, and end behind it."""
        base = self.start << PAGE_SHIFT
        begin, end = max(offset - base, 0), min(offset + size - base, PAGE)
        return ones(end >> QUANTUM_SHIFT) ^ ones(begin >> QUANTUM_SHIFT)

    def __repr__(self) -> str:
        return f"<Patch page {self.start}: {self.used.bit_count()} of {PAGE_QUANTA} quanta used, begin {self.blocks}>"

    def check(self, touching: Iterable[tuple[int, int]]) -> None:
        """Raise `InvariantBroken`, with the numbers, unless `used` is what these blocks have, each for itself."""
        used = 0
        for offset, size in touching:
            mine = self.quanta(offset, size)
            if used & mine or (offset | size) % QUANTUM:
                raise InvariantBroken(f"{self!r}: block {offset}+{size} overlaps another, or is off the quantum")
            used |= mine
        if self.used != used or not used:
            raise InvariantBroken(f"{self!r}: its blocks have {used.bit_count()} quanta, {used:#x}")
        strays = [offset for offset in self.blocks if offset >> PAGE_SHIFT != self.start]
        if strays:
            raise InvariantBroken(f"{self!r}: blocks {strays} begin in another page")
