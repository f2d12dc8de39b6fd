"""The nouns of the core as small frozen values. Sizes and offsets are in bytes, times in seconds of any clock."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, NewType, TypeVar

if TYPE_CHECKING:
    from slabd_server.core.errors import CoreError

T = TypeVar("T")

SlotId = NewType("SlotId", int)
SessionId = NewType("SessionId", int)
Ticket = NewType("Ticket", int)

NO_SESSION = SessionId(0)

# What an answer costs to remember, measured with tracemalloc and rounded up: itself, and each of its items.
_ANSWER_BYTES: Final = 300
_ITEM_BYTES: Final = 400


class BlockRef(NamedTuple):
    """A granted block's name: the ledger slot and the count of its re-issues."""

    slot: SlotId
    generation: int


class Block(NamedTuple):
    """A granted block. `size` bytes may be used, `requested_size` were asked for."""

    ref: BlockRef
    offset: int
    size: int
    requested_size: int


class LeaseItem(NamedTuple):
    """One block wanted. `alignment` is a power of two."""

    size: int
    alignment: int = 1


class ShareItem(NamedTuple):
    """One block to share, for `opens` opens. `ttl` is None for the heap's default."""

    ref: BlockRef
    opens: int = 1
    ttl: float | None = None
    transfer: bool = False


class Handle(NamedTuple):
    """What a consumer needs to open a shared block."""

    heap_id: int
    ref: BlockRef
    offset: int
    requested_size: int
    transfer: bool
    size: int = 0


class Opened(NamedTuple):
    """A block that was opened; `owner` when its lease went over with it."""

    block: Block
    owner: bool


class BlockState(enum.IntEnum):
    """What a granted block is doing. The values index `state_bytes`."""

    LEASED = 0
    CACHED = 1
    SHARED = 2
    QUARANTINED = 3


class Access(enum.Enum):
    """What a session may do with its heap."""

    READ_WRITE = "read-write"
    READ_ONLY = "read-only"


class SessionState(enum.Enum):
    """How a session relates to its process.

    ACTIVE while it can be talked to; QUARANTINED while only a living process that cannot be talked to keeps it; ENDING
    while its blocks are given back. What follows is not a state: the session is forgotten.
    """

    ACTIVE = "active"
    QUARANTINED = "quarantined"
    ENDING = "ending"


class EndCause(enum.Enum):
    """Why a session, and with it a lease, ended."""

    CLOSED = "session_closed"
    CLIENT_DIED = "client_died"
    EXPIRED = "expired"
    EVICTED = "evicted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is behind a session, as the kernel told it; all None for a session over gRPC alone."""

    pid: int | None = None
    uid: int | None = None
    gids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Proof that a call comes from a session."""

    id: SessionId
    secret: bytes


# What the daemon tells a session through Watch.


@dataclass(frozen=True, slots=True)
class PressureEvent:
    """Requests wait for memory."""

    waiters: int
    wanted_bytes: int


@dataclass(frozen=True, slots=True)
class DrainingEvent:
    """The daemon takes no new work."""


@dataclass(frozen=True, slots=True)
class HandleExpiredEvent:
    """A handle of this session expired before all its opens had come."""

    ref: BlockRef
    missing_opens: int


@dataclass(frozen=True, slots=True)
class SessionEndedEvent:
    """The session has ended; nothing follows."""

    cause: EndCause


Event = PressureEvent | DrainingEvent | HandleExpiredEvent | SessionEndedEvent


@dataclass(frozen=True, slots=True)
class Notice:
    """An event for one session of a heap, or for all of them when `session` is None."""

    heap: str
    session: SessionId | None
    event: Event


@dataclass(frozen=True, slots=True)
class Woken:
    """A request that waited and has its answer: its blocks, or why it failed."""

    ticket: Ticket
    outcome: tuple[Block, ...] | CoreError


@dataclass(frozen=True, slots=True)
class Ended:
    """A session that is over. `reclaimed_bytes` became free by its end, which began at `began`."""

    session: SessionId
    name: str
    heap: str
    pid: int | None
    cause: EndCause
    leases: int
    reclaimed_bytes: int
    began: float = field(default=0.0, compare=False)


class Range(NamedTuple):
    """Some bytes of a heap."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is to be done to the bytes of blocks before they are granted: pages made to exist, then bytes cleared."""

    ticket: Ticket
    heap: str
    commits: tuple[Range, ...]
    clears: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Effects:
    """What the caller has to do after a method returned: whom to wake, whom to tell, what to log, what to prepare."""

    woken: tuple[Woken, ...] = ()
    notices: tuple[Notice, ...] = ()
    ended: tuple[Ended, ...] = ()
    preparations: tuple[Preparation, ...] = ()


NO_EFFECTS = Effects()


def merged(*effects: Effects) -> Effects:
    """Return the effects of several steps as those of one."""
    return Effects(
        tuple(woken for each in effects for woken in each.woken),
        tuple(notice for each in effects for notice in each.notices),
        tuple(ended for each in effects for ended in each.ended),
        tuple(preparation for each in effects for preparation in each.preparations),
    )


@dataclass(frozen=True, slots=True)
class Leased:
    """A batch of leases was granted, in the order asked for."""

    blocks: tuple[Block, ...]
    effects: Effects = NO_EFFECTS

    @property
    def memory_bytes(self) -> int:
        """About how much memory it takes."""
        return _ANSWER_BYTES + _ITEM_BYTES * len(self.blocks)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A batch of leases waits its turn; `Woken` with the same ticket will answer it."""

    ticket: Ticket
    effects: Effects = NO_EFFECTS


@dataclass(frozen=True, slots=True)
class Itemised(Generic[T]):
    """The outcome of an itemised batch: for each item its value, or why it was refused."""

    results: tuple[T | CoreError, ...]
    effects: Effects = NO_EFFECTS

    @property
    def memory_bytes(self) -> int:
        """About how much memory it takes; the messages of refusals are the larger part of it."""
        texts = sum(len(str(result)) for result in self.results if isinstance(result, Exception))
        return _ANSWER_BYTES + _ITEM_BYTES * (len(self.results) - self.results.count(None)) + texts


@dataclass(frozen=True, slots=True)
class Done:
    """Something was done that has no value."""

    effects: Effects = field(default=NO_EFFECTS)
