"""From the contract's messages to the core's records and back. Pure; decides nothing that the core could decide."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.duration_pb2 import Duration

from slabd_proto.v1 import pool_pb2
from slabd_server.core.errors import CoreError, InvalidArgument
from slabd_server.core.records import (
    Access,
    Block,
    BlockRef,
    DrainingEvent,
    EndCause,
    Handle,
    HandleExpiredEvent,
    LeaseItem,
    PressureEvent,
    SessionEndedEvent,
    SessionId,
    SessionKey,
    ShareItem,
    SlotId,
)
from slabd_server.status import item_result

if TYPE_CHECKING:
    import grpc

    from slabd_server.core.records import Event, Opened
    from slabd_server.core.served import ServedHeap
    from slabd_server.core.sessions import Session
    from slabd_server.core.stats import HeapStats

if TYPE_CHECKING:
    # A handler's view of its call; the stubs' two parameters are the request's and the response's types.
    Context = grpc.aio.ServicerContext[Any, Any]

_ACCESS: Final = {
    pool_pb2.ACCESS_MODE_UNSPECIFIED: Access.READ_WRITE,
    pool_pb2.ACCESS_MODE_READ_WRITE: Access.READ_WRITE,
    pool_pb2.ACCESS_MODE_READ_ONLY: Access.READ_ONLY,
}
_ACCESS_MODE: Final = {
    Access.READ_WRITE: pool_pb2.ACCESS_MODE_READ_WRITE,
    Access.READ_ONLY: pool_pb2.ACCESS_MODE_READ_ONLY,
}
_END_CAUSE: Final = {
    EndCause.CLOSED: pool_pb2.SESSION_END_CAUSE_CLOSED,
    EndCause.CLIENT_DIED: pool_pb2.SESSION_END_CAUSE_CLIENT_DIED,
    EndCause.EXPIRED: pool_pb2.SESSION_END_CAUSE_EXPIRED,
    EndCause.EVICTED: pool_pb2.SESSION_END_CAUSE_EVICTED,
}


def seconds(duration: Duration) -> float:
    """Return a duration in seconds."""
    return float(duration.seconds + duration.nanos * 1e-9)


def duration(value: float) -> Duration:
    """Return seconds as a duration."""
    whole = math.floor(value)
    return Duration(seconds=whole, nanos=min(int((value - whole) * 1e9), 999_999_999))


def key(message: pool_pb2.SessionKey) -> SessionKey:
    """Read a session's key."""
    return SessionKey(SessionId(message.id), message.secret)


def access(mode: pool_pb2.AccessMode.ValueType) -> Access:
    """Read an access mode; an unknown one is an InvalidArgument."""
    if mode not in _ACCESS:
        raise InvalidArgument(f"unknown access mode {mode}")
    return _ACCESS[mode]


def access_mode(value: Access) -> pool_pb2.AccessMode.ValueType:
    """Write an access mode."""
    return _ACCESS_MODE[value]


def block_ref(message: pool_pb2.BlockRef) -> BlockRef:
    """Read a block's name."""
    return BlockRef(SlotId(message.slot), message.generation)


def ref(value: BlockRef) -> pool_pb2.BlockRef:
    """Write a block's name."""
    return pool_pb2.BlockRef(slot=value.slot, generation=value.generation)


def block(value: Block) -> pool_pb2.Block:
    """Write a block."""
    return pool_pb2.Block(ref=ref(value.ref), offset=value.offset, requested_size=value.requested_size, size=value.size)


def lease_item(message: pool_pb2.LeaseItem) -> LeaseItem:
    """Read one block wanted."""
    return LeaseItem(message.size, message.alignment or 1)


def share_item(message: pool_pb2.ShareItem) -> ShareItem:
    """Read one block to share."""
    ttl = seconds(message.ttl) if message.HasField("ttl") else None
    return ShareItem(block_ref(message.block), message.opens or 1, ttl, message.transfer)


def handle(message: pool_pb2.Handle) -> Handle:
    """Read a handle."""
    return Handle(
        message.heap_id,
        block_ref(message.block),
        message.offset,
        message.requested_size,
        message.transfer,
        message.size,
    )


def share_result(outcome: Handle | CoreError) -> pool_pb2.ShareResult:
    """Write the outcome of one share."""
    if isinstance(outcome, CoreError):
        return pool_pb2.ShareResult(result=item_result(outcome))
    made = pool_pb2.Handle(
        heap_id=outcome.heap_id,
        block=ref(outcome.ref),
        offset=outcome.offset,
        requested_size=outcome.requested_size,
        size=outcome.size,
        transfer=outcome.transfer,
    )
    return pool_pb2.ShareResult(result=item_result(None), handle=made)


def open_result(outcome: Opened | CoreError) -> pool_pb2.OpenResult:
    """Write the outcome of one open."""
    if isinstance(outcome, CoreError):
        return pool_pb2.OpenResult(result=item_result(outcome))
    return pool_pb2.OpenResult(result=item_result(None), block=block(outcome.block), owner=outcome.owner)


def session(value: Session, served: ServedHeap, version: str) -> pool_pb2.Session:
    """Write a session, as its own client sees it."""
    return pool_pb2.Session(
        key=pool_pb2.SessionKey(id=value.id, secret=value.secret),
        heap=value.books.name,
        heap_bytes=value.books.total_bytes,
        heap_id=value.books.heap_id,
        access=access_mode(value.access),
        ttl=None if value.attached else duration(served.spec.session_ttl),
        handle_ttl=duration(served.spec.handle_ttl),
        server_version=version,
    )


def heap_stats(stats: HeapStats) -> pool_pb2.HeapStats:
    """Write the books of a heap."""
    return pool_pb2.HeapStats(
        name=stats.name,
        total_bytes=stats.total_bytes,
        used_bytes=stats.used_bytes,
        available_bytes=stats.available_bytes,
        states=pool_pb2.StateBytes(
            leased=stats.leased_bytes,
            cached=stats.cached_bytes,
            shared=stats.shared_bytes,
            quarantined=stats.quarantined_bytes,
            free=stats.free_bytes,
            slab_free=stats.slab_free_bytes,
        ),
        requested_bytes=stats.requested_bytes,
        largest_free_block_bytes=stats.largest_free_block_bytes,
        used_peak_bytes=stats.used_peak_bytes,
        leases=stats.leases,
        waiters=stats.waiters,
        sessions=sum(stats.sessions.values()),
    )


def watch_response(event: Event, grace: float) -> pool_pb2.WatchResponse:
    """Write an event for a session."""
    match event:
        case PressureEvent(waiters, wanted_bytes):
            pressure = pool_pb2.MemoryPressure(waiters=waiters, wanted_bytes=wanted_bytes)
            return pool_pb2.WatchResponse(pressure=pressure)
        case DrainingEvent():
            return pool_pb2.WatchResponse(draining=pool_pb2.Draining(grace=duration(grace)))
        case HandleExpiredEvent(expired, missing_opens):
            told = pool_pb2.HandleExpired(block=ref(expired), missing_opens=missing_opens)
            return pool_pb2.WatchResponse(handle_expired=told)
        case SessionEndedEvent(cause):
            return pool_pb2.WatchResponse(session_ended=pool_pb2.SessionEnded(cause=_END_CAUSE[cause]))
