"""Sizes, alignments and classes: what a request may look like, and the tables made from it once.

Owns the units of the heap (the page, and below it the quantum), the size classes of both configurations, the bounds on
sizes and alignments, and how many pages a slab of a class likes to have. Promises that every size up to `MAX_CLASS`
together with every alignment up to `PAGE` has a class, and that this class is the smallest that fits both. Must not
know of any block.

A class's alignment is the largest power of two that divides its size: slabs start on a page, so its blocks have it too.

    class_of(size, alignment) = min { c : c >= size, alignment divides c }
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from slabd_server.core.errors import InvalidAlignment, InvalidHeap, InvalidSize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PAGE_SHIFT: Final = 12
PAGE: Final = 1 << PAGE_SHIFT
MIN_HEAP: Final = 0x8000  # 32 KiB, and the granularity of a heap's size: the seed's MIN_HEAP_SIZE
MAX_SIZE: Final = (1 << 63) - 1  # what a layout can express, there as here
MAX_ALIGNMENT: Final = 1 << 63  # likewise
MIN_CLASS: Final = 64
MAX_CLASS: Final = PAGE
MAX_SLAB_PAGES: Final = 16

QUANTUM_SHIFT: Final = 4  # every class is a multiple of 16, so a class is found by size in sixteenths of 256
QUANTUM: Final = 1 << QUANTUM_SHIFT
PAGE_QUANTA: Final = PAGE >> QUANTUM_SHIFT

SizeClasses = Literal["pow2", "fine"]
STEPS: Final[Mapping[SizeClasses, int]] = {"pow2": 1, "fine": 4}


def class_sizes(kind: SizeClasses) -> tuple[int, ...]:
    """List the class sizes of a configuration, the smallest first: one or four to a doubling, from 64 to 4096."""
    steps = STEPS[kind]
    doublings = range(MIN_CLASS.bit_length() - 1, MAX_CLASS.bit_length() - 1)
    return (*((1 << d) + step * ((1 << d) // steps) for d in doublings for step in range(steps)), MAX_CLASS)


def natural_alignment(size: int) -> int:
    """Return the largest power of two that divides `size`."""
    return size & -size


def is_power_of_two(value: int) -> bool:
    """Tell whether `value` is 1, 2, 4, ..."""
    return value > 0 and not value & (value - 1)


def pages_for(size: int) -> int:
    """Return how many pages hold `size` bytes; none for nothing."""
    return (size + PAGE - 1) >> PAGE_SHIFT


def page_rounded(size: int) -> int:
    """Round `size` up to whole pages."""
    return pages_for(size) << PAGE_SHIFT


def quantum_rounded(size: int) -> int:
    """Round `size` up to whole quanta, of which a block has at least one."""
    return max(size + QUANTUM - 1 & -QUANTUM, QUANTUM)


def slab_unit(size: int) -> int:
    """Return the fewest pages of which a slab of this class wastes at most a thirty-second part."""
    return next(
        (pages for pages in range(1, MAX_SLAB_PAGES) if (pages << PAGE_SHIFT) % size * 32 <= pages << PAGE_SHIFT),
        MAX_SLAB_PAGES,
    )


def routes(sizes: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """Map each alignment up to a page to a table: entry `(size + 15) // 16` is the index of the class for that size."""
    ascending = tuple(sizes)
    return {1 << shift: _route(ascending, 1 << shift) for shift in range(PAGE_SHIFT + 1)}


def _route(sizes: Sequence[int], alignment: int) -> tuple[int, ...]:
    fitting = [index for index, size in enumerate(sizes) if not size % alignment]
    return tuple(
        next(index for index in fitting if sizes[index] >= quanta << QUANTUM_SHIFT)
        for quanta in range((MAX_CLASS >> QUANTUM_SHIFT) + 1)
    )


def require_heap(size: int, base: int) -> None:
    """Raise `InvalidSize` or `InvalidHeap` unless a heap can have this size and base."""
    if type(size) is not int or type(base) is not int:
        raise InvalidSize(f"a heap's size and base are integers, not {size!r} and {base!r}")
    if size > MAX_SIZE:
        raise InvalidSize(f"a size is at most {MAX_SIZE}, not {size}")
    if size < MIN_HEAP:
        raise InvalidHeap(f"a heap has at least {MIN_HEAP} bytes, not {size}")
    if size % MIN_HEAP:
        raise InvalidHeap(f"a heap's size is a multiple of {MIN_HEAP} bytes, {size} is {size % MIN_HEAP} over")
    if base < 0 or base % PAGE:
        raise InvalidHeap(f"a heap begins on a page of {PAGE} bytes, {base} does not")


def require_size(size: int) -> None:
    """Raise `InvalidSize` unless this is a size, from 0 on."""
    if type(size) is not int:
        raise InvalidSize(f"a size is an integer, not {size!r}")
    if not 0 <= size <= MAX_SIZE:
        raise InvalidSize(f"a size is between 0 and {MAX_SIZE}, not {size}")


def require_layout(size: int, alignment: int) -> None:
    """Raise `InvalidSize` or `InvalidAlignment` unless a block can be asked for like this."""
    require_size(size)
    if type(alignment) is not int:
        raise InvalidAlignment(f"an alignment is an integer, not {alignment!r}")
    if not is_power_of_two(alignment):
        raise InvalidAlignment(f"an alignment is a power of two, not {alignment}")
    if alignment > MAX_ALIGNMENT:
        raise InvalidAlignment(f"an alignment is at most {MAX_ALIGNMENT}, not {alignment}")
    if size > MAX_SIZE - (alignment - 1):
        raise InvalidSize(f"a size rounded up to its alignment is at most {MAX_SIZE}, not {size} at {alignment}")
