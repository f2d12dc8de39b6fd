"""What the core can refuse, as a tree of exceptions.

CoreError
├── InvalidArgument               a request of the wrong form
│   ├── InvalidSize
│   └── InvalidAlignment
├── InvalidHeap                   a heap that cannot be made: its size or its base
├── NoMemory                      a request that cannot be served
│   ├── TooLarge                  larger than the heap; waiting would never help
│   ├── OutOfMemory               not enough room now
│   │   ├── Fragmented            enough bytes, but no range is large enough
│   │   ├── Searching             not known yet: a search for free bytes is under way
│   │   └── WaitTimeout           waited for the whole timeout
│   ├── QueueFull                 too many requests wait already
│   └── LedgerFull                the ledger could not be grown
├── UnknownBlock                  not granted, not held by the caller, or re-issued since
├── OutOfRange                    past the end of a block
├── StaleHandle                   re-issued, used up or expired
├── UnknownSession                the caller's own session has ended
├── NoSuchSession                 the session that an operator named is not there
├── WrongSecret
├── TooManySessions
├── AccessDenied                  not allowed to this peer
│   └── ReadOnly                  not allowed to a read-only session
├── UnknownHeap
├── UnsupportedVersion
├── Draining
├── SequenceInFlight
├── SequenceReused
└── InvariantBroken               a defect: `check()` found books that do not balance

Nothing here knows gRPC; `slabd_server.status` has the one table from these to wire errors. Messages carry the numbers.
"""

from __future__ import annotations


class CoreError(Exception):
    """Base of everything the core refuses."""


class InvalidArgument(CoreError, ValueError):
    """A request is of the wrong form."""


class InvalidSize(InvalidArgument):
    """A size is zero, negative, not an integer, or not representable."""


class InvalidAlignment(InvalidArgument):
    """An alignment is no power of two."""


class InvalidHeap(CoreError, ValueError):
    """A heap cannot be made with this size or base."""


class NoMemory(CoreError):
    """A request cannot be served."""


class TooLarge(NoMemory):
    """A request is larger than the whole heap, so waiting would never help."""


class OutOfMemory(NoMemory):
    """The heap has no room for a request now."""


class Fragmented(OutOfMemory):
    """Enough bytes are free, but no free range is large enough."""


class Searching(OutOfMemory):
    """It is not known yet whether the heap has room: a search goes on, and the request is to be made again."""


class WaitTimeout(OutOfMemory):
    """A request waited for its whole timeout."""


class QueueFull(NoMemory):
    """Too many requests wait already."""


class LedgerFull(NoMemory):
    """The ledger could not be grown."""


class UnknownBlock(CoreError, LookupError):
    """A block is not granted, not held by the caller, or has been re-issued since."""


class OutOfRange(CoreError, ValueError):
    """An offset or a length reaches past a block's end."""


class StaleHandle(CoreError, LookupError):
    """A handle's block has been re-issued, its opens are used up, or it has expired."""


class UnknownSession(CoreError, LookupError):
    """A call comes from a session that there is not, or not any more."""


class NoSuchSession(CoreError, LookupError):
    """An operator named a session that there is not. The operator's own right to ask is not in doubt."""


class WrongSecret(CoreError):
    """A session's secret is missing or wrong."""


class TooManySessions(CoreError):
    """The daemon admits no further session."""


class AccessDenied(CoreError):
    """The peer or the session may not do this."""


class ReadOnly(AccessDenied):
    """A read-only session may not do this."""


class UnknownHeap(CoreError, LookupError):
    """No heap has this name."""


class UnsupportedVersion(CoreError):
    """The peer speaks a version of the contract that this daemon does not."""


class Draining(CoreError):
    """The daemon takes no new work."""


class SequenceInFlight(CoreError):
    """Another call with the same sequence number is under way."""


class SequenceReused(CoreError):
    """A sequence number was used before, by a different request."""


class InvariantBroken(CoreError, AssertionError):
    """A structure's `check()` found numbers that contradict each other: a defect of slabd, never of a client."""
