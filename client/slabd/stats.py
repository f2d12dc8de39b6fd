"""The books of a heap, as a client sees them: plain frozen records, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from slabd_proto.v1 import pool_pb2


class UsableSize(NamedTuple):
    """The sizes that get the same block: the one asked for, and the largest."""

    min: int
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes of a heap by state; they add up to its size."""

    leased: int
    cached: int
    shared: int
    quarantined: int
    free: int
    slab_free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """One snapshot of a heap's books. used_bytes + available_bytes == total_bytes, always."""

    heap: str
    total_bytes: int
    used_bytes: int
    available_bytes: int
    requested_bytes: int
    largest_free_block_bytes: int
    used_peak_bytes: int
    leases: int
    waiters: int
    sessions: int
    states: States

    @classmethod
    def from_proto(cls, message: pool_pb2.HeapStats) -> Stats:
        """Return the books that a message of the contract carries."""
        states = message.states
        return cls(
            heap=message.name,
            total_bytes=message.total_bytes,
            used_bytes=message.used_bytes,
            available_bytes=message.available_bytes,
            requested_bytes=message.requested_bytes,
            largest_free_block_bytes=message.largest_free_block_bytes,
            used_peak_bytes=message.used_peak_bytes,
            leases=message.leases,
            waiters=message.waiters,
            sessions=message.sessions,
            states=States(
                leased=states.leased,
                cached=states.cached,
                shared=states.shared,
                quarantined=states.quarantined,
                free=states.free,
                slab_free=states.slab_free,
            ),
        )
