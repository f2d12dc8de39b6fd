"""What Prometheus is told of a heap: more than operators ask for, and all of it at a cost that never grows with use.

`figures` copies, in one synchronous step, so that everything in it belongs to the same moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slabd_server.core.inspection import heap_stats
from slabd_server.core.tallies import NO_CLASS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slabd_server.core.books import Books
    from slabd_server.core.histogram import Observed
    from slabd_server.core.served import ServedHeap
    from slabd_server.core.stats import HeapStats


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """The books of one size class, in bytes and counts; `size` is NO_CLASS for the blocks above every class."""

    size: int
    slabs: int
    used_blocks: int
    used_bytes: int
    granted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeapFigures:
    """One heap at one moment. What is None is not counted, which is not the same as 0."""

    stats: HeapStats
    classes: tuple[ClassFigures, ...]
    slab_moves: Mapping[str, int]
    quarantine_oldest_age: float
    session_max_used_bytes: int
    request_sizes: Observed
    acquire_seconds: Observed
    wait_seconds: Observed
    hold_seconds: Observed
    reclaim_seconds: Observed
    lane_operations: Mapping[str, int] | None
    lane_doorbells: int | None
    cache_hits: int | None
    cache_misses: int | None
    cached_class_blocks: Mapping[int, int] | None


def figures(served: ServedHeap, now: float) -> HeapFigures:
    """Return what there is to know of a heap. The cost depends neither on its blocks nor on its sessions."""
    books, tallies = served.books, served.books.tallies
    largest = books.holders.largest()
    quarantined_since = next(iter(served.quarantined_since.values()), now)
    return HeapFigures(
        stats=heap_stats(served, now),
        classes=_classes(books),
        slab_moves={"to_class": books.allocator.slab_moves_to, "from_class": books.allocator.slab_moves_from},
        quarantine_oldest_age=now - quarantined_since,
        session_max_used_bytes=largest[0].owned_bytes if largest else 0,
        request_sizes=tallies.request_sizes.copy(),
        acquire_seconds=tallies.acquire_seconds.copy(),
        wait_seconds=tallies.wait_seconds.copy(),
        hold_seconds=tallies.hold_seconds.copy(),
        reclaim_seconds=tallies.reclaim_seconds.copy(),
        lane_operations=dict(tallies.lane_operations) or None,
        lane_doorbells=tallies.lane_doorbells if tallies.lane_operations else None,
        cache_hits=tallies.cache_hits,
        cache_misses=tallies.cache_misses,
        cached_class_blocks=None if tallies.cached_class_blocks is None else dict(tallies.cached_class_blocks),
    )


def _classes(books: Books) -> tuple[ClassFigures, ...]:
    """Return the books of each class. What is in none of them is the difference to the whole, so nothing is missed."""
    classless, *rest = books.allocator.classes()
    granted = books.tallies.granted_sizes
    found = tuple(
        ClassFigures(
            size=each.size,
            slabs=each.slabs,
            used_blocks=each.used_blocks,
            used_bytes=each.size * each.used_blocks,
            granted=granted.get(each.size, 0),
        )
        for each in rest
    )
    none = ClassFigures(
        size=NO_CLASS,
        slabs=0,
        used_blocks=classless.used_blocks,
        used_bytes=books.allocator.used_bytes - sum(each.used_bytes for each in found),
        granted=books.tallies.leases_granted - sum(each.granted for each in found),
    )
    return (*found, none)
