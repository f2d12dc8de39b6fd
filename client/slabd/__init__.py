"""slabd: blocks of a large shared-memory heap, leased from a daemon, in place and without copies.

    import slabd

    with slabd.connect() as pool:
        with pool.lease(1 << 20, label="decoder") as buf:
            buf.view[:5] = b"hello"
            handle = buf.share()

    with slabd.connect() as pool, pool.open(handle) as ref:
        bytes(ref.view[:5])

`slabd.aio` is the same for asyncio. The errors are drawn as a tree in `slabd.errors`.
"""

from __future__ import annotations

from slabd import aio
from slabd.channels import Tls
from slabd.errors import (
    AccessDenied,
    DaemonUnavailable,
    DeadlineExceeded,
    Draining,
    Fragmented,
    InheritedByFork,
    InternalError,
    InvalidAddress,
    InvalidAlignment,
    InvalidArgument,
    InvalidHandle,
    InvalidSize,
    InvalidType,
    LeaseReleased,
    LeaseTimeout,
    LedgerFull,
    MappingFailed,
    NoSuchSession,
    NotMapped,
    OutOfMemory,
    OutOfRange,
    PoolClosed,
    QueueFull,
    ReadOnly,
    SessionEnded,
    SlabdError,
    StaleHandle,
    TooLarge,
    TooManySessions,
    UnknownBlock,
    UnknownHeap,
    UnsupportedVersion,
    WrongEventLoop,
)
from slabd.handle import Handle
from slabd.lease import Block, Lease, Ref
from slabd.pool import Pool, connect
from slabd.private import PrivateDaemon, start
from slabd.stats import States, Stats, UsableSize

__all__ = [
    "AccessDenied",
    "Block",
    "DaemonUnavailable",
    "DeadlineExceeded",
    "Draining",
    "Fragmented",
    "Handle",
    "InheritedByFork",
    "InternalError",
    "InvalidAddress",
    "InvalidAlignment",
    "InvalidArgument",
    "InvalidHandle",
    "InvalidSize",
    "InvalidType",
    "Lease",
    "LeaseReleased",
    "LeaseTimeout",
    "LedgerFull",
    "MappingFailed",
    "NoSuchSession",
    "NotMapped",
    "OutOfMemory",
    "OutOfRange",
    "Pool",
    "PoolClosed",
    "PrivateDaemon",
    "QueueFull",
    "ReadOnly",
    "Ref",
    "SessionEnded",
    "SlabdError",
    "StaleHandle",
    "States",
    "Stats",
    "Tls",
    "TooLarge",
    "TooManySessions",
    "UnknownBlock",
    "UnknownHeap",
    "UnsupportedVersion",
    "UsableSize",
    "WrongEventLoop",
    "aio",
    "connect",
    "start",
]
