"""The blocking client: `connect` and `Pool`. Thread-safe; a forked child gets a session of its own on first use."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from contextlib import suppress
from sys import _getframe
from typing import TYPE_CHECKING, Final

from slabd import arguments, arrays, operations
from slabd.address import resolve
from slabd.blocking import BlockingTransport
from slabd.errors import SlabdError
from slabd.facade import POOL_TIMEOUT, PoolFace, PoolTimeout, batch_of
from slabd.helpers import complete
from slabd.lease import Lease, Ref
from slabd.session import Session
from slabd.settings import CALL_SECONDS, CONNECT_SECONDS, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Any, Self

    from numpy.typing import DTypeLike, NDArray

    from slabd.channels import Tls
    from slabd.handle import Handle
    from slabd.stats import Stats, UsableSize


def connect(  # noqa: PLR0913  # options, by keyword
    address: str | os.PathLike[str] | None = None,
    *,
    heap: str = "",
    name: str | None = None,
    read_only: bool = False,
    timeout: float | None = 0.0,
    connect_timeout: float = CONNECT_SECONDS,
    call_timeout: float = CALL_SECONDS,
    call_sites: bool = True,
    lane: bool = True,
    cache_bytes: int | None = None,
    prefault: bool = True,
    tls: Tls | None = None,
) -> Pool:
    """Connect to a daemon.

    Args:
        address: a runtime directory (a path, or `unix:/dir`), or `tcp://host:port`; else `$SLABD_ADDRESS`, else the
            default runtime directory. Over TCP the heap is not mapped: blocks have `read` and `write`, but no `view`.
        heap: the heap's name; empty for the daemon's first.
        name: what operators see; the script's name by default.
        read_only: open and read only; the daemon then hands out a descriptor that cannot be written through.
        timeout: how many seconds a lease waits while the heap is full, if it does not say itself; None is for ever.
        connect_timeout: how many seconds connecting may take. Where no daemon is, it fails at once.
        call_timeout: how many seconds any other call may take, retries included.
        call_sites: tell operators which line of code asked for each lease.
        lane: lease, share and open through memory shared with the daemon, where it is local: a hundred times faster.
        cache_bytes: how much of what was released may be kept for the next leases; by default as much as the daemon
            allows, which takes it back when somebody needs it. 0 keeps nothing.
        prefault: map the blocks that are kept for later into this process beforehand, in the background.
        tls: credentials for TCP.

    Raises:
        DaemonUnavailable: nobody answers there.
        InvalidAddress: the address names no place where a daemon could be.
        AccessDenied: the daemon does not admit this user.
        UnknownHeap: the daemon has no such heap.
    """
    settings = Settings(
        address=resolve(address),
        heap=heap,
        name=name,
        read_only=read_only,
        lease_timeout=arguments.seconds(timeout, "a timeout"),
        connect_timeout=connect_timeout,
        call_timeout=call_timeout,
        call_sites=call_sites,
        lane=lane,
        cache_bytes=cache_bytes,
        prefault=prefault,
        tls=tls,
    )
    return _reopen(settings)


class Pool(PoolFace):
    """Blocks of one heap of one daemon, for one process. Made by `connect`."""

    def lease(
        self,
        size: int,
        *,
        alignment: int = 1,
        label: str = "",
        timeout: float | PoolTimeout | None = POOL_TIMEOUT,
        call_site: str | None = None,
    ) -> Lease:
        """Lease a block of `size` bytes, at an offset that is a multiple of `alignment`, a power of two.

        While the heap is full it waits its turn, first come first served, for `timeout` seconds (None: for ever).
        `label` and `call_site` are for operators; a call site of None is the caller's line.

        Raises:
            OutOfMemory: the heap has no room; its children say why: TooLarge, Fragmented, QueueFull, LeaseTimeout.
            InvalidArgument: a size below 1, an alignment that is no power of two.
        """
        if (cache := self._cache) is not None:
            frame = _getframe(1) if self._call_sites and call_site is None else None
            if timeout is not POOL_TIMEOUT:
                arguments.seconds(timeout, "a timeout")
            holding = cache.take(size, alignment, label, frame, call_site)
            if holding is not None or (holding := cache.get(size, alignment, label, frame, call_site)) is not None:
                return Lease(self._session, holding, label)
        (lease,) = self._ask([size], alignment, label, timeout, self._call_site(call_site))
        return lease

    def lease_many(
        self,
        sizes: Iterable[int],
        *,
        alignment: int = 1,
        label: str = "",
        timeout: float | PoolTimeout | None = POOL_TIMEOUT,
        call_site: str | None = None,
    ) -> list[Lease]:
        """Lease several blocks in one call: all of them, or none and an error. See `lease`."""
        self._live()
        wanted, site = list(sizes), self._call_site(call_site)
        if (taken := self._take_many(wanted, alignment, label, site)) is not None:
            return taken
        return self._ask(wanted, alignment, label, timeout, site)

    def _ask(
        self, sizes: list[int], alignment: int, label: str, timeout: float | PoolTimeout | None, call_site: str
    ) -> list[Lease]:
        """Lease blocks by gRPC: all or none, and perhaps after a while."""
        session = self._live()
        holdings = complete(
            operations.lease(
                session, sizes, alignment=alignment, label=label, timeout=self._wait(timeout), call_site=call_site
            )
        )
        return [Lease(session, holding, label) for holding in holdings]

    def _take_many(self, sizes: list[int], alignment: int, label: str, site: str) -> list[Lease] | None:
        """Lease blocks over the lane: all or none."""
        if (cache := self._cache) is None:
            return None
        leases: list[Lease] = []
        for size in sizes:
            holding = cache.take(size, alignment, label, None, site)
            if holding is None and (holding := cache.get(size, alignment, label, None, site)) is None:
                for lease in leases:
                    lease.release()
                return None
            leases.append(Lease(self._session, holding, label))
        return leases

    def open(self, handle: Handle | bytes | str) -> Ref | Lease:
        """Open a shared block: a read-only `Ref`, or a writable `Lease` when the handle is a transfer.

        Raises:
            StaleHandle: its block has been re-issued, its opens are used up, or it has expired.
            InvalidHandle: it is no handle.
        """
        if (holding := self._open_at_once(handle)) is not None:
            return Ref(self._session, holding)
        (block,) = self.open_many([handle])
        return block

    def open_many(self, handles: Iterable[Handle | bytes | str]) -> list[Ref | Lease]:
        """Open several handles in one call. When one cannot be opened, the others are closed again and it raises."""
        session = self._live()
        holdings = complete(operations.open_handles(session, list(handles)))
        return [Lease(session, holding) if holding.owned else Ref(session, holding) for holding in holdings]

    def release_many(self, blocks: Iterable[Lease | Ref]) -> None:
        """Release several blocks in one call. See `Lease.release`.

        Raises:
            BufferError: one of them is still in use; none was released.
        """
        if (batch := batch_of(blocks)) is not None:
            complete(operations.release(*batch))

    def share_many(self, leases: Iterable[Lease], *, opens: int = 1, ttl: float | None = None) -> list[Handle]:
        """Make a handle for each lease, in one call. See `Lease.share`."""
        batch = batch_of(leases)
        return [] if batch is None else complete(operations.share(*batch, opens=opens, ttl=ttl))

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike = "float64", *, label: str = "") -> NDArray[Any]:
        """Return a numpy array in the heap, its contents undefined; the memory returns with the last reference to it.

        Raises:
            ImportError: numpy is not installed.
            OutOfMemory: the heap has no room.
        """
        plan = arrays.plan(shape, dtype)
        if not plan.nbytes:
            return plan.nothing()
        call_site = self._call_site(None)
        return plan.over(self.lease(plan.nbytes, alignment=plan.alignment, label=label, call_site=call_site).view)

    def zeros(self, shape: int | tuple[int, ...], dtype: DTypeLike = "float64", *, label: str = "") -> NDArray[Any]:
        """Return a numpy array of zeros in the heap. See `empty`."""
        array = self.empty(shape, dtype, label=label)
        array.fill(0)
        return array

    def usable_size(self, size: int, alignment: int = 1) -> UsableSize:
        """Return the least and the largest size that get the same block as `size` does."""
        return complete(operations.usable_size(self._live(), size, alignment))

    def stats(self) -> Stats:
        """Read the books of this pool's heap."""
        return complete(operations.stats(self._live()))

    def close(self) -> None:
        """End the session: its leases end, their views become invalid. Closing twice is allowed and does nothing.

        Raises:
            BufferError: slices, arrays or other users of views exist; nothing was closed.
        """
        complete(self._session.close())

    def __reduce__(self) -> tuple[Callable[[Settings], Pool], tuple[Settings]]:
        # A pool that travels to another process connects anew there: in data loader workers, for example.
        return _reopen, (self._settings,)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        complete(self._session.leave(failing=kind is not None))

    def _live(self) -> Session:
        """Return the session, in a forked child one of its own."""
        if self._session.inherited:
            with _reconnecting:
                if self._session.inherited:
                    self._check_open()
                    self._adopt(_open_session(self._settings))
        return self._session


def _reopen(settings: Settings) -> Pool:
    return Pool(settings, _open_session(settings))


def _open_session(settings: Settings) -> Session:
    session = complete(_open(settings))
    if not session.mapped:
        _remote_sessions.add(session)
    return session


async def _open(settings: Settings) -> Session:
    return await Session.open(BlockingTransport(settings.address.target, settings.tls), settings)


# The kernel tells a local daemon when this process ends; one behind TCP would wait for a keep-alive that never comes.
_remote_sessions: Final[weakref.WeakSet[Session]] = weakref.WeakSet()


@atexit.register
def _say_goodbye() -> None:
    for session in list(_remote_sessions):
        with suppress(SlabdError):
            complete(session.close())


# One for all pools: a fork happens in front of few of them, and a lock for each would have to be found in the child.
_reconnecting = threading.Lock()


def _reset_in_child() -> None:
    global _reconnecting  # noqa: PLW0603  # another thread may have held it at the moment of the fork
    _reconnecting = threading.Lock()


os.register_at_fork(after_in_child=_reset_in_child)
