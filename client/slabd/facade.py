"""What the two pools, blocking and asyncio, have in common: options, properties, and how an unclosed pool ends."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

from slabd import arguments
from slabd.errors import InvalidArgument, PoolClosed
from slabd.handle import Handle

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slabd.holding import Holding, Term
    from slabd.lease import Block
    from slabd.session import Session
    from slabd.settings import Settings


class PoolTimeout:
    """Stands for "as the pool was told"."""

    def __repr__(self) -> str:
        return "<the pool's timeout>"


POOL_TIMEOUT: Final = PoolTimeout()


class PoolFace:
    """The part of a pool that asks nothing of the daemon."""

    def __init__(self, settings: Settings, session: Session) -> None:
        self._settings = settings
        self._adopt(session)

    def _adopt(self, session: Session) -> None:
        self._session = session
        self._cache = None if session.read_only else session.cache
        self._call_sites = self._settings.call_sites
        # A pool that is dropped unclosed ends its session, once the last view of its blocks is gone too.
        self._finalizer = weakref.finalize(self, session.abandon)
        self._finalizer.atexit = False

    @property
    def address(self) -> str:
        """Where the daemon is."""
        return str(self._settings.address)

    @property
    def heap(self) -> str:
        """The heap's name."""
        return self._session.heap

    @property
    def heap_bytes(self) -> int:
        """The heap's size."""
        return self._session.heap_bytes

    @property
    def mapped(self) -> bool:
        """Whether blocks have views: not over TCP."""
        return self._session.mapped

    @property
    def read_only(self) -> bool:
        """Whether the pool can only open and read."""
        return self._session.read_only

    @property
    def session_id(self) -> int:
        """The session's number, as operators see it."""
        return self._session.key.id

    @property
    def closed(self) -> bool:
        """Whether the pool has been closed."""
        return self._session.ended

    def _check_open(self) -> None:
        if self._session.ended:
            raise PoolClosed("the pool has been closed")

    def _open_at_once(self, handle: Handle | bytes | str) -> Holding | None:
        """Open a handle over the lane, without asking; None when the daemon has to be asked by gRPC."""
        session = self._session
        if (cache := session.cache) is None:
            return None
        session.check_usable()
        parsed = Handle.coerce(handle)
        return cache.open(parsed) if parsed.heap_id == session.heap_id else None

    def _wait(self, timeout: float | PoolTimeout | None) -> float | None:
        return self._settings.lease_timeout if isinstance(timeout, PoolTimeout) else timeout

    def _call_site(self, given: str | None) -> str:
        if given is not None:
            return arguments.cut_call_site(given)
        return arguments.caller() if self._settings.call_sites else ""

    def __repr__(self) -> str:
        session = self._session
        state = "closed" if self.closed else f"session {session.key.id}"
        access = ", read-only" if session.read_only else ""
        heap = f"heap {session.heap!r} of {session.heap_bytes} bytes"
        return f"<slabd.{type(self).__name__} {self.address} {heap}, {state}{access}>"


def batch_of(blocks: Iterable[Block]) -> tuple[Session, list[Term]] | None:
    """Return the session and the terms of a batch of blocks, None for an empty batch.

    Raises:
        InvalidArgument: they belong to several pools.
    """
    group = [block.inside for block in blocks]
    if not group:
        return None
    session = group[0][0]
    if any(other is not session for other, _ in group):
        raise InvalidArgument("one batch has blocks of one pool, not of several")
    return session, [term for _, term in group]
