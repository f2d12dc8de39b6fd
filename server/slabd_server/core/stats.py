"""Snapshots for operators and metrics: frozen copies of the books, taken in one synchronous step, so they balance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slabd_server.core.records import Access, Block, BlockState, SessionId, SessionState


@dataclass(frozen=True, slots=True, kw_only=True)
class HeapStats:
    """The books of one heap, in bytes and counts; the fields are those of slabd.v1.HeapStats."""

    name: str
    total_bytes: int
    used_bytes: int
    available_bytes: int
    leased_bytes: int
    cached_bytes: int
    shared_bytes: int
    quarantined_bytes: int
    free_bytes: int
    slab_free_bytes: int
    requested_bytes: int
    largest_free_block_bytes: int
    used_peak_bytes: int
    leases: int
    blocks: int
    waiters: int
    oldest_waiter_age: float
    sessions: Mapping[str, int]
    lease_requests: int
    leases_granted: int
    rejections: Mapping[str, int]
    leases_ended: Mapping[str, int]
    reclaimed_bytes: Mapping[str, int]
    sessions_started: int
    sessions_ended: Mapping[str, int]
    shares: int
    opens_ok: int
    opens_stale: int
    handles_expired: int


@dataclass(frozen=True, slots=True)
class SizeClass:
    """A size class: `size` in bytes, 0 for the blocks above every class."""

    size: int
    slabs: int
    used_blocks: int
    free_blocks: int


@dataclass(frozen=True, slots=True)
class HeapInfo:
    """A heap with its size classes and how many free ranges of pages it has."""

    stats: HeapStats
    size_classes: tuple[SizeClass, ...]
    free_ranges: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session, as operators see it; ages in seconds."""

    id: SessionId
    name: str
    heap: str
    pid: int | None
    uid: int | None
    access: Access
    attached: bool
    state: SessionState
    age: float
    leases: int
    opens: int
    used_bytes: int
    cached_bytes: int
    waiters: int
    oldest_lease_age: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseInfo:
    """A granted block, as operators see it; `session` is None when its owner has released it."""

    block: Block
    heap: str
    state: BlockState
    session: SessionId | None
    pid: int | None
    session_name: str
    label: str
    call_site: str
    age: float
    pending_opens: int
    opened_by: tuple[SessionId, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of every structure found."""

    blocks: int
    problems: tuple[str, ...] = field(default=())
