"""What there is to tell of a heap: each metric's name, help and value, declared once.

Every known value of a label is declared too, and exported from the start, so that the first event shows in `rate()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slabd_proto.lane import Verb
from slabd_server.core.records import EndCause
from slabd_server.core.tallies import NO_CLASS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from slabd_server.core.figures import ClassFigures, HeapFigures
    from slabd_server.core.histogram import Observed


@dataclass(frozen=True, slots=True)
class One:
    """A metric with one value for each heap, or None for one where it is not counted."""

    name: str
    help: str
    value: Callable[[HeapFigures], float | None]


@dataclass(frozen=True, slots=True)
class Many:
    """A metric with a value for each heap and each value of `label`: those in `known`, and what else there is."""

    name: str
    help: str
    label: str
    values: Callable[[HeapFigures], Mapping[str, float] | None]
    known: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram for each heap."""

    name: str
    help: str
    observed: Callable[[HeapFigures], Observed]


def class_name(size: int) -> str:
    """Return what a size class is called: its size, or "large" for the blocks above every class."""
    return "large" if size == NO_CLASS else str(size)


def _cached(f: HeapFigures) -> Mapping[str, float] | None:
    """Return the cached blocks of each class there is. Clients say how many: never more than the class has."""
    claims = f.cached_class_blocks
    if claims is None:
        return None
    return {class_name(each.size): min(claims.get(each.size, 0), each.used_blocks) for each in f.classes}


def _by_class(value: Callable[[ClassFigures], float]) -> Callable[[HeapFigures], Mapping[str, float]]:
    return lambda f: {class_name(each.size): value(each) for each in f.classes}


_REASONS: Final = ("no_memory", "fragmented", "too_large", "queue_full", "timeout", "draining")
_SESSION_CAUSES: Final = tuple(cause.value for cause in EndCause)

GAUGES: Final = (
    One("slabd_heap_size_bytes", "Size of the heap.", lambda f: f.stats.total_bytes),
    One("slabd_used_bytes", "Bytes of blocks in use: leased, shared or quarantined.", lambda f: f.stats.used_bytes),
    One(
        "slabd_available_bytes",
        "Bytes not in use: free, or idle in caches and recallable. used + available == size, always.",
        lambda f: f.stats.available_bytes,
    ),
    Many(
        "slabd_heap_state_bytes",
        "Bytes by state; disjoint, they add up to the heap's size.",
        "state",
        lambda f: {
            "leased": f.stats.leased_bytes,
            "cached": f.stats.cached_bytes,
            "shared": f.stats.shared_bytes,
            "quarantined": f.stats.quarantined_bytes,
            "free": f.stats.free_bytes,
            "slab_free": f.stats.slab_free_bytes,
        },
    ),
    One(
        "slabd_requested_bytes",
        "Bytes that blocks in use were asked for; what they have more is rounding.",
        lambda f: f.stats.requested_bytes,
    ),
    One(
        "slabd_largest_free_block_bytes",
        "The largest single block that could be leased now.",
        lambda f: f.stats.largest_free_block_bytes,
    ),
    One(
        "slabd_used_peak_bytes",
        "The most bytes that have been in use at once since the daemon started.",
        lambda f: f.stats.used_peak_bytes,
    ),
    Many(
        "slabd_class_used_bytes",
        'Bytes of granted blocks by size class; "large" is everything above the largest class.',
        "size_class",
        _by_class(lambda c: c.used_bytes),
    ),
    Many(
        "slabd_class_used_blocks",
        "Granted blocks by size class.",
        "size_class",
        _by_class(lambda c: c.used_blocks),
    ),
    Many(
        "slabd_class_cached_blocks",
        "Granted blocks that lie idle in clients' caches, by size class.",
        "size_class",
        _cached,
    ),
    Many("slabd_class_slabs", "Slabs by size class.", "size_class", _by_class(lambda c: c.slabs)),
    One("slabd_leases", "Leases held.", lambda f: f.stats.leases),
    One("slabd_waiters", "Requests that wait for memory.", lambda f: f.stats.waiters),
    One(
        "slabd_oldest_waiter_age_seconds",
        "How long the first request in the queue has waited; 0 when nobody waits.",
        lambda f: f.stats.oldest_waiter_age,
    ),
    One(
        "slabd_quarantine_oldest_age_seconds",
        "How long the oldest session in quarantine has been there; 0 when none is.",
        lambda f: f.quarantine_oldest_age,
    ),
    Many("slabd_sessions", "Sessions by state.", "state", lambda f: f.stats.sessions),
    One(
        "slabd_session_max_used_bytes",
        "Bytes leased by the session that has most; among more than 64 within a factor of two, by one of them.",
        lambda f: f.session_max_used_bytes,
    ),
)

COUNTERS: Final = (
    Many(
        "slabd_slab_moves",
        "Slabs that classes got (to_class), and runs of pages that came back from them (from_class).",
        "direction",
        lambda f: f.slab_moves,
    ),
    One(
        "slabd_lease_requests",
        "Requests for leases that came to the daemon, batches counted once; what clients' caches serve does not.",
        lambda f: f.stats.lease_requests,
    ),
    Many(
        "slabd_leases_granted",
        "Leases granted, by the size class of the block.",
        "size_class",
        _by_class(lambda c: c.granted),
    ),
    Many("slabd_lease_rejections", "Requests refused.", "reason", lambda f: f.stats.rejections, _REASONS),
    Many(
        "slabd_leases_ended",
        "Leases that ended.",
        "cause",
        lambda f: f.stats.leases_ended,
        ("released", "recalled", "transferred", *_SESSION_CAUSES),
    ),
    Many(
        "slabd_reclaimed_bytes",
        "Bytes that became free when a lease or a session ended.",
        "cause",
        lambda f: f.stats.reclaimed_bytes,
        ("released", "recalled", *_SESSION_CAUSES),
    ),
    One("slabd_sessions_started", "Sessions opened.", lambda f: f.stats.sessions_started),
    Many("slabd_sessions_ended", "Sessions that ended.", "cause", lambda f: f.stats.sessions_ended, _SESSION_CAUSES),
    Many(
        "slabd_lane_operations",
        "Entries read from lanes, by what they say.",
        "op",
        lambda f: f.lane_operations,
        tuple(verb.name.lower() for verb in Verb),
    ),
    One("slabd_lane_doorbells", "Times that clients rang for their lanes.", lambda f: f.lane_doorbells),
    One("slabd_cache_hits", "Leases served from clients' own caches, by their count.", lambda f: f.cache_hits),
    One("slabd_cache_misses", "Leases that clients' own caches could not serve.", lambda f: f.cache_misses),
    One("slabd_shares", "Handles made.", lambda f: f.stats.shares),
    Many(
        "slabd_opens",
        "Opens of handles.",
        "result",
        lambda f: {"ok": f.stats.opens_ok, "stale": f.stats.opens_stale},
    ),
    One(
        "slabd_handles_expired",
        "Handles that expired before all their opens had come.",
        lambda f: f.stats.handles_expired,
    ),
)

HISTOGRAMS: Final = (
    Distribution(
        "slabd_lease_acquire_duration_seconds",
        "Time from a request's arrival at the daemon to its leases, for those that did not queue.",
        lambda f: f.acquire_seconds,
    ),
    Distribution(
        "slabd_lease_wait_duration_seconds",
        "Time in the queue of requests that had to wait, until they were granted or timed out.",
        lambda f: f.wait_seconds,
    ),
    Distribution("slabd_lease_hold_duration_seconds", "How long leases were held.", lambda f: f.hold_seconds),
    Distribution(
        "slabd_reclaim_duration_seconds",
        "Time from a session's end, by whatever cause, until everything it had was taken back.",
        lambda f: f.reclaim_seconds,
    ),
    Distribution(
        "slabd_lease_request_size_bytes", "Sizes that were asked for, block by block.", lambda f: f.request_sizes
    ),
)
