"""Free ranges of pages: which there are, and which one serves a request.

Owns the free pages of a heap, as maximal ranges. Promises that a request for `n` pages at an alignment fails only when
no free range has room for it at a place the alignment permits, and that the cost of taking and giving back depends
neither on the size of the heap nor on how many blocks or free ranges there are. Must not know what the pages are for.

A binary buddy could not keep the first promise: it splits and joins at powers of two only. Ranges are cut anywhere.

Invariants, for the set F of free ranges [s, s + n):

    _pages[s] = n  and  _starts[s + n] = s           exactly for the ranges of F (boundary tags)
    [s, s + n) in F  =>  s + n not in _pages         neighbours are joined at once
    _fits.ranges[n] = { s : _pages[s] = n }          best fit by exact page count
    free_pages = sum of n over F
    for each a in _aligned:  _aligned[a].ranges[m] = { s : room(s, n, a) = m }, m > 0
    _order, when it exists, holds exactly the starts of F

where room(s, n, a) is how many pages are left of [s, s + n) from its first multiple of `a` on.

Two indexes are made on demand, and let go once they have idled for as many changes as they cost to make, so that they
are paid for only by those who use them: `_aligned` (an alignment above a page, when neither the best fit nor a
range so long that any start will do has served the request), and `_order` (the range that contains a given page, for
rebuilding from a ledger).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import InvariantBroken
from slabd_server.core.spare import EACH, LOOSE, without_spare

if TYPE_CHECKING:
    from collections.abc import Iterator

NOWHERE: Final = -1
_MIN_IDLE: Final = 1024
_ALIGNED_MAX: Final = 2
_SHIFT: Final = 10
_LOW: Final = (1 << _SHIFT) - 1


class IntSet:
    """A set of non-negative integers that answers "the next at or above" and "the last at or below".

    Three levels of bitmaps of 1024 bits, the uppermost unbounded: an integer n is in the set when bit `n % 1024` of
    `_leaves[n // 1024]` is set; bit `h % 1024` of `_middle[h // 1024]` when leaf h is there; bit t of `_top` when the
    middle word t is. No word that exists is zero.
    """

    __slots__ = ("_leaves", "_middle", "_top")

    def __init__(self) -> None:
        self._leaves: dict[int, int] = {}
        self._middle: dict[int, int] = {}
        self._top = 0

    def add(self, number: int) -> None:
        """Add a number; adding it again changes nothing."""
        high = number >> _SHIFT
        leaf = self._leaves.get(high, 0)
        self._leaves[high] = leaf | 1 << (number & _LOW)
        if not leaf:
            top = high >> _SHIFT
            self._middle[top] = self._middle.get(top, 0) | 1 << (high & _LOW)
            self._top |= 1 << top

    def remove(self, number: int) -> None:
        """Remove a number that is in the set."""
        high = number >> _SHIFT
        leaf = self._leaves[high] ^ 1 << (number & _LOW)
        if leaf:
            self._leaves[high] = leaf
            return
        del self._leaves[high]
        top = high >> _SHIFT
        middle = self._middle[top] ^ 1 << (high & _LOW)
        if middle:
            self._middle[top] = middle
            return
        del self._middle[top]
        self._top ^= 1 << top

    def at_least(self, number: int) -> int:
        """Return the smallest member that is `number` or more, or -1."""
        high = number >> _SHIFT
        word = self._leaves.get(high, 0) >> (number & _LOW)
        if word:
            return number + _lowest(word)
        high += 1
        top = high >> _SHIFT
        word = self._middle.get(top, 0) >> (high & _LOW)
        if not word:
            top += 1
            word = self._top >> top
            if not word:
                return NOWHERE
            top += _lowest(word)
            high = top << _SHIFT
            word = self._middle[top]
        high += _lowest(word)
        return (high << _SHIFT) + _lowest(self._leaves[high])

    def at_most(self, number: int) -> int:
        """Return the largest member that is `number` or less, or -1."""
        high = number >> _SHIFT
        word = self._leaves.get(high, 0) & ((2 << (number & _LOW)) - 1)
        if not word:
            top = high >> _SHIFT
            above = self._middle.get(top, 0) & ((1 << (high & _LOW)) - 1)
            if not above:
                tops = self._top & ((1 << top) - 1)
                if not tops:
                    return NOWHERE
                top = tops.bit_length() - 1
                above = self._middle[top]
            high = (top << _SHIFT) + above.bit_length() - 1
            word = self._leaves[high]
        return (high << _SHIFT) + word.bit_length() - 1

    def largest(self) -> int:
        """Return the largest member, or -1."""
        if not self._top:
            return NOWHERE
        top = self._top.bit_length() - 1
        high = (top << _SHIFT) + self._middle[top].bit_length() - 1
        return (high << _SHIFT) + self._leaves[high].bit_length() - 1

    def __iter__(self) -> Iterator[int]:
        number = self.at_least(0)
        while number >= 0:
            yield number
            number = self.at_least(number + 1)


def _lowest(word: int) -> int:
    return (word & -word).bit_length() - 1


class FitIndex:
    """Ranges by length: the best fit for a request is one look-up and one search.

    `ranges[n]` are the starts of the ranges of length n, never empty; `_lengths` is the set of these n. Among equals
    the one that was freed last is taken: its pages are the warmest.
    """

    __slots__ = ("_lengths", "ranges")

    def __init__(self) -> None:
        self.ranges: dict[int, dict[int, None]] = {}
        self._lengths = IntSet()

    def add(self, start: int, length: int) -> None:
        """Enter a range."""
        starts = self.ranges.get(length)
        if starts is None:
            self.ranges[length] = {start: None}
            self._lengths.add(length)
        else:
            starts[start] = None

    def remove(self, start: int, length: int) -> None:
        """Strike out a range."""
        starts = self.ranges[length]
        if len(starts) > 1:
            del starts[start]
        else:
            del self.ranges[length]
            self._lengths.remove(length)

    def tidy(self) -> None:
        """Give up the room of ranges that are gone. Where there are more lengths than are looked at, none has much."""
        for length, starts in tuple(islice(self.ranges.items(), EACH)):
            self.ranges[length] = without_spare(starts, LOOSE)

    def best(self, length: int) -> int:
        """Return the start of a shortest range that has `length` or more, or -1."""
        starts = self.ranges.get(length)
        if starts is None:
            length = self._lengths.at_least(length)
            if length < 0:
                return NOWHERE
            starts = self.ranges[length]
        # Not next(reversed(starts)): that walks over the tombstones of all that was deleted last, each time anew.
        start, _ = starts.popitem()
        starts[start] = None
        return start

    def at_least(self, length: int) -> Iterator[int]:
        """Yield the starts of the ranges that have `length` or more, the shortest first. Take nothing meanwhile."""
        length = self._lengths.at_least(length)
        while length >= 0:
            yield from self.ranges[length]
            length = self._lengths.at_least(length + 1)

    def longest(self) -> int:
        """Return the length of the longest range; 0 when there is none."""
        return max(self._lengths.largest(), 0)

    def longest_within(self, length: int) -> int:
        """Return the length of the longest range of at most `length`; 0 when there is none."""
        return max(self._lengths.at_most(length), 0)

    def check(self, expected: dict[int, int]) -> None:
        """Raise `InvariantBroken` unless exactly the ranges `{start: length}` are entered."""
        entered = {start: length for length, starts in self.ranges.items() for start in starts}
        if entered != expected:
            raise InvariantBroken(f"index holds {len(entered)} ranges, expected {len(expected)}, or of other lengths")
        if set(self._lengths) != set(self.ranges):
            raise InvariantBroken(f"index knows lengths {set(self._lengths) ^ set(self.ranges)} on one side only")


class Extents:
    """The free pages of a heap whose page 0 has the absolute page number `phase`; all are free at first."""

    __slots__ = (
        "_aligned",
        "_fits",
        "_idle",
        "_order",
        "_order_idle",
        "_pages",
        "_phase",
        "_starts",
        "free_pages",
        "pages",
    )

    def __init__(self, pages: int, phase: int = 0) -> None:
        self._phase = phase
        self.pages = 0
        self.free_pages = 0
        self._pages: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        self._fits = FitIndex()
        self._aligned: dict[int, FitIndex] = {}
        self._idle: dict[int, int] = {}
        self._order: IntSet | None = None
        self._order_idle = 0
        self.grow(pages)

    # -- taking

    def take(self, pages: int) -> int:
        """Take `pages` pages from the best fitting range and return the first, or -1 when no range is as long.

        A single page is cut from the back and all else from the front, so that the small ones gather on one side: on
        the benchmarks' traces that leaves 40 % fewer requests unserved than cutting everything from the front.
        """
        start = self._fits.best(pages)
        return self._cut_from(start, pages) if start >= 0 else NOWHERE

    def _cut_from(self, start: int, pages: int) -> int:
        if pages == 1:
            first = start + self._pages[start] - 1
            self._cut(start, first, 1)
            return first
        self._cut_front(start, pages)
        return start

    def take_up_to(self, pages: int, at_least: int = 1) -> tuple[int, int]:
        """Take some pages, as a slab does: (first, count), or (-1, 0) when none are free.

        A whole range of `at_least` to `pages` pages, the longest there is, so that large ranges stay for large blocks;
        else `pages` pages of the best fit; else the whole of the longest range, however short.
        """
        return self._take_up_to(self._fits, pages, at_least)

    def _take_up_to(self, fits: FitIndex, pages: int, at_least: int) -> tuple[int, int]:
        whole = fits.longest_within(pages)
        if whole >= at_least:
            pages = whole
        elif (longest := fits.longest()) < pages:
            pages = longest
        if not pages:
            return NOWHERE, 0
        start = fits.best(pages)
        self._cut_front(start, pages)
        return start, pages

    def take_aligned(self, pages: int, alignment: int) -> int:
        """Take `pages` pages from a multiple of `alignment` pages on (absolute numbers); return the first, or -1."""
        start = self._find_aligned(pages, alignment)
        if start < 0:
            return NOWHERE
        first = start + self._gap(start, alignment)
        self._cut(start, first, pages)
        return first

    def take_at(self, first: int, pages: int) -> bool:
        """Take exactly the pages [first, first + pages); False, and nothing changed, when they are not all free."""
        start = self._containing(first, pages)
        if start < 0 or first + pages > start + self._pages[start]:
            return False
        self._cut(start, first, pages)
        return True

    def _containing(self, first: int, pages: int) -> int:
        # At either end of a range the tags know it, and the order need not be made.
        if first in self._pages:
            return first
        start = self._starts.get(first + pages, NOWHERE)
        return start if NOWHERE < start < first else self._ordered().at_most(first)

    # -- giving back

    def give(self, first: int, pages: int) -> int:
        """Make the pages [first, first + pages), none of which is free, free again; return where their range begins."""
        self.free_pages += pages
        start, end = first, first + pages
        before = self._starts.get(first)
        if before is not None:
            self._unlink(before, first - before)
            start = before
        after = self._pages.get(end)
        if after is not None:
            self._unlink(end, after)
            end += after
        self._link(start, end - start)
        return start

    def grow(self, pages: int) -> None:
        """Add `pages` free pages behind the last one."""
        first = self.pages
        self.pages += pages
        if pages:
            self.give(first, pages)

    def tidy(self) -> None:
        """Give up the room of ranges that are gone; to be called once in `EACH` changes or so. See `spare`."""
        self._pages = without_spare(self._pages, LOOSE)
        self._starts = without_spare(self._starts, LOOSE)
        self._fits.tidy()

    # -- asking

    @property
    def ranges(self) -> int:
        """How many free ranges there are."""
        return len(self._pages)

    @property
    def longest(self) -> int:
        """The length of the longest free range, in pages."""
        return self._fits.longest()

    def range_from(self, first: int) -> int:
        """Return the length of the free range that begins at page `first`, 0 if none does."""
        return self._pages.get(first, 0)

    def free_until(self, page: int) -> int:
        """Return the page behind the free range that contains `page`, or -1 when it is not free."""
        start = self._ordered().at_most(page)
        end = start + self._pages[start] if start >= 0 else NOWHERE
        return end if end > page else NOWHERE

    def range_until(self, end: int) -> int:
        """Return the length of the free range that ends before page `end`, 0 if none does."""
        return end - self._starts.get(end, end)

    def may_lack(self, start: int) -> bool:  # noqa: ARG002 -- `decay` knows those that do
        """Tell whether the free range that begins at page `start` may have pages that do not exist: here, none has."""
        return False

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._pages.items())

    def __repr__(self) -> str:
        return f"<Extents {self.free_pages} of {self.pages} pages free in {self.ranges} ranges, longest {self.longest}>"

    # -- the two ways a range changes

    def _cut_front(self, start: int, pages: int) -> None:
        length = self._pages[start]
        self._unlink(start, length)
        if length > pages:
            self._link(start + pages, length - pages)
        self.free_pages -= pages

    def _cut(self, start: int, first: int, pages: int) -> None:
        length = self._pages[start]
        end = first + pages
        self._unlink(start, length)
        if first > start:
            self._link(start, first - start)
        if end < start + length:
            self._link(end, start + length - end)
        self.free_pages -= pages

    def _link(self, start: int, length: int) -> None:
        self._pages[start] = length
        self._starts[start + length] = start
        self._fits.add(start, length)
        if self._aligned or self._order is not None:
            self._index(start, length)

    def _unlink(self, start: int, length: int) -> None:
        del self._pages[start]
        del self._starts[start + length]
        self._fits.remove(start, length)
        if self._aligned or self._order is not None:
            self._unindex(start, length)

    # -- the indexes on demand

    def _gap(self, start: int, alignment: int) -> int:
        return -(start + self._phase) & (alignment - 1)

    def _find_aligned(self, pages: int, alignment: int) -> int:
        fits = self._fits
        start = fits.best(pages)
        if start < 0:
            return NOWHERE
        if self._gap(start, alignment) + pages <= self._pages[start]:
            return start
        start = fits.best(pages + alignment - 1)
        return start if start >= 0 else self._rooms(alignment).best(pages)

    def _rooms(self, alignment: int) -> FitIndex:
        index = self._aligned.get(alignment)
        if index is None:
            while len(self._aligned) >= _ALIGNED_MAX:  # whoever goes through all alignments is not to slow others down
                oldest = next(iter(self._aligned))
                del self._aligned[oldest], self._idle[oldest]
            index = self._aligned[alignment] = FitIndex()
            for start, length in self._pages.items():
                room = length - self._gap(start, alignment)
                if room > 0:
                    index.add(start, room)
        self._idle[alignment] = len(self._pages) + _MIN_IDLE
        return index

    def _ordered(self) -> IntSet:
        order = self._order
        if order is None:
            order = self._order = IntSet()
            for start in self._pages:
                order.add(start)
        self._order_idle = len(self._pages) + _MIN_IDLE
        return order

    def _index(self, start: int, length: int) -> None:
        if self._order is not None:
            self._order.add(start)
        for alignment, index in self._aligned.items():
            room = length - self._gap(start, alignment)
            if room > 0:
                index.add(start, room)

    def _unindex(self, start: int, length: int) -> None:
        if self._order is not None:
            self._order.remove(start)
            self._order_idle -= 1
            if self._order_idle < 0:
                self._order = None
        for alignment, index in tuple(self._aligned.items()):
            room = length - self._gap(start, alignment)
            if room > 0:
                index.remove(start, room)
            self._idle[alignment] -= 1
            if self._idle[alignment] < 0:
                del self._aligned[alignment], self._idle[alignment]

    # -- checking

    def check(self) -> None:
        """Raise `InvariantBroken`, with the numbers, unless every invariant at the top of this file holds. Linear."""
        ordered = sorted(self._pages.items())
        end = NOWHERE
        for start, length in ordered:
            if length <= 0 or start <= end:
                raise InvariantBroken(f"free range {start}+{length} is empty, or meets the one that ends at {end}")
            end = start + length
        if end > self.pages:
            raise InvariantBroken(f"a free range ends at page {end}, the heap at {self.pages}")
        if self._starts != {start + length: start for start, length in ordered}:
            raise InvariantBroken(f"{len(self._starts)} end tags do not match {len(ordered)} start tags")
        if self.free_pages != sum(self._pages.values()):
            raise InvariantBroken(f"{self.free_pages} pages counted free, the ranges have {sum(self._pages.values())}")
        self._fits.check(self._pages)
        if self._order is not None and list(self._order) != [start for start, _ in ordered]:
            raise InvariantBroken(f"the order holds {len(list(self._order))} starts, there are {len(ordered)}")
        for alignment, index in self._aligned.items():
            rooms = {start: length - self._gap(start, alignment) for start, length in ordered}
            index.check({start: room for start, room in rooms.items() if room > 0})
