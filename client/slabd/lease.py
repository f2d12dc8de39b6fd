"""What users hold: a `Lease` (a block of one's own, writable) or a `Ref` (a block somebody shared, read-only).

Both give a `view`, a memoryview into the heap, in place. The view, its slices and arrays over it keep the block, even
when the lease itself is dropped; `release()` gives the block back and makes the view invalid, and refuses while
anything else still uses the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from slabd import operations
from slabd.helpers import complete
from slabd.holding import Term

if TYPE_CHECKING:
    from types import TracebackType

    from slabd.handle import Handle
    from slabd.holding import Holding
    from slabd.session import Session

B = TypeVar("B", bound="Block")


class Block:
    """What a lease and a reference have in common, whatever the world they live in."""

    __slots__ = ("__weakref__", "_cycle", "_holding", "_label", "_session", "_size")

    def __init__(self, session: Session, holding: Holding, label: str = "") -> None:
        self._session = session
        self._holding = holding
        self._label = label
        self._cycle = holding.cycle
        self._size = holding.size

    @property
    def view(self) -> memoryview:
        """The block's bytes, in place: always the same memoryview, of format "B" and length `size`.

        Raises:
            LeaseReleased: the block has been released.
            NotMapped: the pool is connected over TCP.
        """
        holding = self._holding
        if self._cycle == holding.cycle and (view := holding.live_view) is not None:
            return view
        return self._term.view

    @property
    def size(self) -> int:
        """How many bytes were asked for."""
        return self._size

    @property
    def usable_size(self) -> int:
        """How many bytes the block has."""
        return self._holding.usable_size

    @property
    def offset(self) -> int:
        """Where the block starts, in bytes from the start of the heap."""
        return self._holding.offset

    @property
    def label(self) -> str:
        """What the block is for, as operators see it; empty for what others shared."""
        return self._label

    @property
    def released(self) -> bool:
        """Whether the block has been given back."""
        return self._term.over

    @property
    def _term(self) -> Term:
        return Term(self._holding, self._cycle)

    @property
    def inside(self) -> tuple[Session, Term]:
        """For this package: what the block is made of."""
        return self._session, self._term

    def __len__(self) -> int:
        return self._size

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} does not travel: send the handle that share() or transfer() returns")

    def __repr__(self) -> str:
        state = "released" if self.released else f"{self.size} bytes at {self.offset:#x}"
        label = f" {self._label!r}" if self._label else ""
        return f"<slabd.{type(self).__name__}{label} block {self._holding.name}, {state}>"


class _BlockingBlock(Block):
    """The operations that a lease and a reference share, blocking."""

    __slots__ = ()

    def release(self) -> None:
        """Give the block back; the view becomes invalid. Releasing twice is allowed and does nothing.

        When the daemon is gone, and the session with it, there is nothing to give back any more, and nothing is raised.

        Raises:
            BufferError: slices, arrays or other users of the view exist; nothing has changed.
            DaemonUnavailable, DeadlineExceeded: the daemon does not answer; the block is given back as soon as it does.
            InheritedByFork: the lease belongs to the parent process.
        """
        holding = self._holding
        if (cache := holding.cache) is not None and cache.give(holding, self._cycle):
            return
        if not self.released:
            complete(operations.release(self._session, [self._term]))

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return a copy of `length` bytes from `offset` on, of all the rest by default. Works over TCP too.

        Raises:
            OutOfRange: that reaches past the end.
            LeaseReleased: the block has been released.
        """
        return complete(operations.read(self._session, self._term, offset, length))

    def __enter__(self) -> Self:
        self._term.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        holding = self._holding
        if kind is None and (cache := holding.cache) is not None and cache.give(holding, self._cycle):
            return
        complete(operations.leave(self._session, self._term, failing=kind is not None))


class Ref(_BlockingBlock):
    """A block that another session shared: its view is read-only."""

    __slots__ = ()

    def close(self) -> None:
        """Do what `release` does."""
        self.release()


class Lease(_BlockingBlock):
    """A block of one's own: its view is writable."""

    __slots__ = ()

    def share(self, opens: int = 1, ttl: float | None = None) -> Handle:
        """Make a handle with which `opens` sessions can open the block, within `ttl` seconds.

        The block stays until they have, even when the lease is released first. A `ttl` of None is the daemon's default.
        """
        if (handle := operations.share_at_once(self._session, self._term, opens, ttl)) is not None:
            return handle
        (handle,) = complete(operations.share(self._session, [self._term], opens=opens, ttl=ttl))
        return handle

    def transfer(self, ttl: float | None = None) -> Handle:
        """Make a handle that hands the lease over: it ends here, and whoever opens the handle gets a writable Lease.

        Raises:
            BufferError: slices, arrays or other users of the view exist; nothing has changed.
        """
        return complete(operations.transfer(self._session, self._term, ttl=ttl))

    def write(self, data: Any, offset: int = 0) -> int:
        """Copy a buffer of bytes into the block, and return its length. Works over TCP too.

        Raises:
            OutOfRange: it reaches past the end; nothing was written.
            LeaseReleased: the block has been released.
        """
        return complete(operations.write(self._session, self._term, data, offset))
