"""One heap as the daemon serves it: its books, its handles, its queue, its door."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from slabd_server.core.books import Books
from slabd_server.core.cleaner import Cleaner
from slabd_server.core.decay_clock import DecayClock
from slabd_server.core.heap import Heap
from slabd_server.core.patience import SLICE
from slabd_server.core.preparing import Jobs, Preparer
from slabd_server.core.records import SessionState
from slabd_server.core.shares import Shares
from slabd_server.core.waiters import Waiters

if TYPE_CHECKING:
    from slabd_server.core.access import Policy
    from slabd_server.core.cleaner import Clear
    from slabd_server.core.gates import Gates
    from slabd_server.core.memory import Memory
    from slabd_server.core.records import SessionId
    from slabd_server.core.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class HeapSpec:
    """What a heap is to be like. `handle_ttl` and `session_ttl` are in seconds, `queue_limit` in requests.

    `give_back_seconds` is how long a range stays free before its pages go back to the system, None for never. `clear`
    says between whom blocks are cleared: nobody ("off"), users, or sessions. `cache_percent` is how much of the heap
    one session may keep cached.
    """

    name: str
    size: int
    policy: Policy
    size_classes: Literal["pow2", "fine"] = "pow2"
    give_back_seconds: float | None = None
    clear: Clear = "users"
    handle_ttl: float = 60.0
    session_ttl: float = 30.0
    queue_limit: int = 4096
    cache_percent: int = 25


@dataclass(frozen=True, slots=True)
class ServedHeap:
    """A heap and everything that belongs to it.

    `session_counts` says how many sessions are in which state, `quarantined_since` when those in quarantine went there,
    the first one first. `jobs` are the requests whose blocks are being prepared.
    """

    spec: HeapSpec
    books: Books
    shares: Shares
    waiters: Waiters
    decay: DecayClock
    session_counts: dict[SessionState, int] = field(default_factory=lambda: dict.fromkeys(SessionState, 0))
    quarantined_since: dict[SessionId, float] = field(default_factory=dict)
    jobs: Jobs = field(default_factory=Jobs)

    @classmethod
    def make(
        cls, spec: HeapSpec, *, heap_id: int, store: Store, memory: Memory, gates: Gates | None = None
    ) -> ServedHeap:
        """Return an empty heap over the pages of `memory`, all of which exist. Without `gates` nobody has a lane.

        Raises:
            InvalidHeap: its size cannot be served.
        """
        preparer = Preparer(memory)
        decaying = preparer if spec.give_back_seconds is not None else None
        allocator = Heap(spec.size, size_classes=spec.size_classes, memory=decaying, patience=SLICE)
        books = Books(spec.name, heap_id, allocator, store, Cleaner(preparer, spec.clear), gates, preparer)
        shares = Shares(books, handle_ttl=spec.handle_ttl)
        return cls(spec, books, shares, Waiters(spec.queue_limit), DecayClock(allocator, spec.give_back_seconds))
