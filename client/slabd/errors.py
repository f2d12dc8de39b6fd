"""What can go wrong, as a tree of exceptions. Each also inherits from the builtin that a Python user would catch.

SlabdError
├── InvalidArgument     (ValueError)         a request of the wrong form; nothing was asked of the daemon, or it refused
│   ├── InvalidType     (TypeError)          a size or an alignment that is no integer
│   ├── InvalidSize
│   ├── InvalidAlignment
│   ├── InvalidHandle                        bytes or text that are no handle, or a damaged one
│   ├── InvalidAddress
│   └── OutOfRange      (IndexError)         past the end of a block
├── OutOfMemory         (MemoryError)        the heap has no room now
│   ├── TooLarge                             larger than the whole heap; waiting would never help
│   ├── Fragmented                           enough bytes are free, but no range is large enough
│   ├── QueueFull                            too many requests wait already
│   ├── LedgerFull                           the daemon's own books could not grow
│   └── LeaseTimeout    (TimeoutError)       waited for the whole timeout
├── MappingFailed       (MemoryError)        this process has no room for the heap in its address space
├── StaleHandle         (LookupError)        re-issued, used up, expired, or of another heap
├── UnknownBlock        (LookupError)        the session does not hold this block
├── UnknownHeap         (LookupError)
├── NoSuchSession       (LookupError)        an operator named a session that there is not
├── AccessDenied        (PermissionError)
│   └── ReadOnly                             the pool is read-only
├── DaemonUnavailable   (ConnectionError)    nobody answers
├── Draining            (ConnectionError)    the daemon takes no new work; what is held can be used and released
├── TooManySessions     (ConnectionError)
├── UnsupportedVersion  (ConnectionError)    the two sides do not speak the same version
├── SessionEnded        (ConnectionError)    expired, ended by an operator, or lost with its daemon
├── DeadlineExceeded    (TimeoutError)       the daemon is there but did not answer in time
├── LeaseReleased       (ValueError)         the block has been given back
├── PoolClosed          (ValueError)
├── NotMapped           (BufferError)        a pool over TCP has no view: use read() and write()
├── WrongEventLoop      (RuntimeError)       an asyncio pool belongs to the loop it was opened on
├── InheritedByFork     (RuntimeError)       belongs to the parent process
└── InternalError       (RuntimeError)       a defect, of the daemon or of this client

`BufferError`, the builtin itself, says that views are still in use: as `mmap.close()` and `bytearray` do.
Classes are chosen by the contract's `ErrorReason`, never by the text of a message (slabd.failures has the table).
"""

from __future__ import annotations


class SlabdError(Exception):
    """Base of everything slabd raises; `reason` is the contract's name for it, None when this client itself refused."""

    reason: str | None = None


class InvalidArgument(SlabdError, ValueError):
    """A request is of the wrong form."""


class InvalidType(InvalidArgument, TypeError):
    """A number is no integer."""


class InvalidSize(InvalidArgument):
    """A size is zero, negative, or not representable."""


class InvalidAlignment(InvalidArgument):
    """An alignment is no power of two, or larger than the heap honours."""


class InvalidHandle(InvalidArgument):
    """Bytes or text are no handle, or a damaged one."""


class InvalidAddress(InvalidArgument):
    """An address names no place where a daemon could be."""


class OutOfRange(InvalidArgument, IndexError):
    """An offset or a length reaches past a block's end."""


class OutOfMemory(SlabdError, MemoryError):
    """The heap has no room for a request now."""


class TooLarge(OutOfMemory):
    """A request is larger than the whole heap, so waiting would never help."""


class Fragmented(OutOfMemory):
    """Enough bytes are free, but no free range is large enough."""


class QueueFull(OutOfMemory):
    """Too many requests wait for this heap already."""


class LedgerFull(OutOfMemory):
    """The daemon could not write down one more block."""


class LeaseTimeout(OutOfMemory, TimeoutError):
    """A request waited for its whole timeout, and the heap stayed full."""


class MappingFailed(SlabdError, MemoryError):
    """The heap does not fit into this process's address space, or its limit on that (RLIMIT_AS)."""


class StaleHandle(SlabdError, LookupError):
    """A handle's block has been re-issued, its opens are used up, it has expired, or it is of another heap."""


class UnknownBlock(SlabdError, LookupError):
    """The session does not hold this block."""


class UnknownHeap(SlabdError, LookupError):
    """The daemon has no heap of this name."""


class NoSuchSession(SlabdError, LookupError):
    """The session that an operator named is not there, or not any more."""


class AccessDenied(SlabdError, PermissionError):
    """The daemon does not allow this."""


class ReadOnly(AccessDenied):
    """A read-only pool can open and read, nothing else."""


class DaemonUnavailable(SlabdError, ConnectionError):
    """No daemon answers."""


class Draining(SlabdError, ConnectionError):
    """The daemon takes no new work; what is held can still be used and released."""


class TooManySessions(SlabdError, ConnectionError):
    """The daemon admits no further session."""


class UnsupportedVersion(SlabdError, ConnectionError):
    """Client and daemon speak different versions of the contract."""


class SessionEnded(SlabdError, ConnectionError):
    """The session has expired, was ended by an operator, or was lost with its daemon."""


class DeadlineExceeded(SlabdError, TimeoutError):
    """The daemon did not answer in time."""


class LeaseReleased(SlabdError, ValueError):
    """The block has been given back, so there is nothing to look at any more."""


class PoolClosed(SlabdError, ValueError):
    """The pool has been closed."""


class NotMapped(SlabdError, BufferError):
    """The pool has no mapping of the heap, so a block has no view; `read` and `write` work."""


class WrongEventLoop(SlabdError, RuntimeError):
    """An asyncio pool was used outside the event loop it was opened on."""


class InheritedByFork(SlabdError, RuntimeError):
    """The object belongs to the parent process; a forked child can look at it and nothing else."""


class InternalError(SlabdError, RuntimeError):
    """A defect, of the daemon or of this client."""
