"""The asyncio client: the same operations as slabd.pool and slabd.lease, awaited.

    async with slabd.aio.connect() as pool:
        async with pool.lease(1 << 20) as buf:
            buf.view[:5] = b"hello"
            handle = await buf.share()

What returns a pool or a block may be awaited, or entered with `async with`. Cancelling a lease that waits takes it out
of the daemon's queue. A pool belongs to one event loop, and to one process: a forked child cannot use it.
"""

from __future__ import annotations

from sys import _getframe
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from slabd import arguments, arrays, operations
from slabd.address import resolve
from slabd.aio_transport import AioTransport
from slabd.facade import POOL_TIMEOUT, PoolFace, PoolTimeout, batch_of
from slabd.lease import Block
from slabd.session import Session
from slabd.settings import CALL_SECONDS, CONNECT_SECONDS, Settings

if TYPE_CHECKING:
    import os
    from collections.abc import Coroutine, Generator, Iterable
    from types import FrameType, TracebackType
    from typing import Self

    from numpy.typing import DTypeLike, NDArray

    from slabd.channels import Tls
    from slabd.handle import Handle
    from slabd.holding import Holding
    from slabd.stats import Stats, UsableSize

__all__ = ["AsyncLease", "AsyncPool", "AsyncRef", "Pending", "connect"]


class _Enterable(Protocol):
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


E_co = TypeVar("E_co", bound=_Enterable, covariant=True)


class Pending(Generic[E_co]):
    """A pool or a block on its way: await it to keep it, or enter it with `async with` to give it back at the end."""

    def __init__(self, coroutine: Coroutine[Any, Any, E_co]) -> None:
        self._coroutine = coroutine
        self._entered: E_co | None = None

    def __await__(self) -> Generator[Any, Any, E_co]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> E_co:
        self._entered = await self._coroutine
        return self._entered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entered, self._entered = self._entered, None
        if entered is not None:
            await entered.__aexit__(kind, error, traceback)


class _AsyncBlock(Block):
    """The operations that a lease and a reference share, awaited."""

    __slots__ = ()

    async def release(self) -> None:
        """Give the block back. See `slabd.Lease.release`."""
        holding = self._holding
        if (cache := holding.cache) is not None and cache.give(holding, self._cycle):
            return
        if not self.released:
            await operations.release(self._session, [self._term])

    async def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return a copy of bytes of the block. See `slabd.Lease.read`."""
        return await operations.read(self._session, self._term, offset, length)

    async def __aenter__(self) -> Self:
        self._term.check()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        holding = self._holding
        if kind is None and (cache := holding.cache) is not None and cache.give(holding, self._cycle):
            return
        await operations.leave(self._session, self._term, failing=kind is not None)


class AsyncRef(_AsyncBlock):
    """A block that another session shared. See `slabd.Ref`."""

    __slots__ = ()

    async def close(self) -> None:
        """Do what `release` does."""
        await self.release()


class AsyncLease(_AsyncBlock):
    """A block of one's own. See `slabd.Lease`."""

    __slots__ = ()

    async def share(self, opens: int = 1, ttl: float | None = None) -> Handle:
        """Make a handle. See `slabd.Lease.share`."""
        if (handle := operations.share_at_once(self._session, self._term, opens, ttl)) is not None:
            return handle
        (handle,) = await operations.share(self._session, [self._term], opens=opens, ttl=ttl)
        return handle

    async def transfer(self, ttl: float | None = None) -> Handle:
        """Make a handle that hands the lease over. See `slabd.Lease.transfer`."""
        return await operations.transfer(self._session, self._term, ttl=ttl)

    async def write(self, data: Any, offset: int = 0) -> int:
        """Copy a buffer of bytes into the block. See `slabd.Lease.write`."""
        return await operations.write(self._session, self._term, data, offset)


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
) -> Pending[AsyncPool]:
    """Connect to a daemon. See `slabd.connect`."""
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
    return Pending(_connect(settings))


async def _connect(settings: Settings) -> AsyncPool:
    transport = AioTransport(settings.address.target, settings.tls)
    return AsyncPool(settings, await Session.open(transport, settings))


class AsyncPool(PoolFace):
    """Blocks of one heap of one daemon, for one event loop. Made by `connect`. See `slabd.Pool`."""

    def lease(
        self,
        size: int,
        *,
        alignment: int = 1,
        label: str = "",
        timeout: float | PoolTimeout | None = POOL_TIMEOUT,
        call_site: str | None = None,
    ) -> Pending[AsyncLease]:
        """Lease a block. See `slabd.Pool.lease`."""
        frame = _getframe(1) if self._call_sites and call_site is None else None
        return Pending(self._lease_one(size, alignment, label, timeout, frame, call_site))

    async def lease_many(
        self,
        sizes: Iterable[int],
        *,
        alignment: int = 1,
        label: str = "",
        timeout: float | PoolTimeout | None = POOL_TIMEOUT,  # noqa: ASYNC109  # the wait in the daemon's queue
        call_site: str | None = None,
    ) -> list[AsyncLease]:
        """Lease several blocks, all or none. See `slabd.Pool.lease_many`."""
        wanted, site = list(sizes), self._call_site(call_site)
        if (taken := await self._take_many(wanted, alignment, label, site)) is not None:
            return taken
        return await self._lease(wanted, alignment, label, timeout, site)

    async def _take_many(self, sizes: list[int], alignment: int, label: str, site: str) -> list[AsyncLease] | None:
        """Lease blocks over the lane: all or none."""
        if self._cache is None:
            return None
        leases: list[AsyncLease] = []
        for size in sizes:
            if (holding := await self._take(size, alignment, label, None, site)) is None:
                for lease in leases:
                    await lease.release()
                return None
            leases.append(AsyncLease(self._session, holding, label))
        return leases

    async def _take(
        self, size: int, alignment: int, label: str, frame: FrameType | None, call_site: str | None
    ) -> Holding | None:
        """Lease a block over the lane; None when it has to be asked for by gRPC."""
        cache = self._cache
        if cache is None or self._session.inherited:
            return None
        holding = cache.take(size, alignment, label, frame, call_site)
        if holding is None:
            holding = await cache.get_async(size, alignment, label, frame, call_site)
        return holding

    def open(self, handle: Handle | bytes | str) -> Pending[AsyncRef | AsyncLease]:
        """Open a shared block. See `slabd.Pool.open`."""
        return Pending(self._open_one(handle))

    async def open_many(self, handles: Iterable[Handle | bytes | str]) -> list[AsyncRef | AsyncLease]:
        """Open several handles. See `slabd.Pool.open_many`."""
        session = self._session
        holdings = await operations.open_handles(session, list(handles))
        return [AsyncLease(session, holding) if holding.owned else AsyncRef(session, holding) for holding in holdings]

    async def release_many(self, blocks: Iterable[AsyncLease | AsyncRef]) -> None:
        """Release several blocks. See `slabd.Pool.release_many`."""
        if (batch := batch_of(blocks)) is not None:
            await operations.release(*batch)

    async def share_many(
        self, leases: Iterable[AsyncLease], *, opens: int = 1, ttl: float | None = None
    ) -> list[Handle]:
        """Make a handle for each lease. See `slabd.Pool.share_many`."""
        batch = batch_of(leases)
        return [] if batch is None else await operations.share(*batch, opens=opens, ttl=ttl)

    async def empty(
        self, shape: int | tuple[int, ...], dtype: DTypeLike = "float64", *, label: str = ""
    ) -> NDArray[Any]:
        """Return a numpy array in the heap. See `slabd.Pool.empty`."""
        plan = arrays.plan(shape, dtype)
        if not plan.nbytes:
            return plan.nothing()
        call_site = self._call_site(None)
        lease = await self.lease(plan.nbytes, alignment=plan.alignment, label=label, call_site=call_site)
        return plan.over(lease.view)

    async def zeros(
        self, shape: int | tuple[int, ...], dtype: DTypeLike = "float64", *, label: str = ""
    ) -> NDArray[Any]:
        """Return a numpy array of zeros in the heap. See `slabd.Pool.zeros`."""
        array = await self.empty(shape, dtype, label=label)
        array.fill(0)
        return array

    async def usable_size(self, size: int, alignment: int = 1) -> UsableSize:
        """Return the sizes that get the same block. See `slabd.Pool.usable_size`."""
        return await operations.usable_size(self._session, size, alignment)

    async def stats(self) -> Stats:
        """Read the books of this pool's heap."""
        return await operations.stats(self._session)

    async def close(self) -> None:
        """End the session. See `slabd.Pool.close`."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.leave(failing=kind is not None)

    async def _lease(
        self, sizes: list[int], alignment: int, label: str, wait: float | PoolTimeout | None, call_site: str
    ) -> list[AsyncLease]:
        session = self._session
        holdings = await operations.lease(
            session, sizes, alignment=alignment, label=label, timeout=self._wait(wait), call_site=call_site
        )
        return [AsyncLease(session, holding, label) for holding in holdings]

    async def _lease_one(  # a lease's arguments
        self,
        size: int,
        alignment: int,
        label: str,
        wait: float | PoolTimeout | None,
        frame: FrameType | None,
        call_site: str | None,
    ) -> AsyncLease:
        if wait is not POOL_TIMEOUT:
            arguments.seconds(wait, "a timeout")
        if (holding := await self._take(size, alignment, label, frame, call_site)) is not None:
            return AsyncLease(self._session, holding, label)
        site = self._call_site(call_site) if frame is None else arguments.site_of(frame)
        (lease,) = await self._lease([size], alignment, label, wait, site)
        return lease

    async def _open_one(self, handle: Handle | bytes | str) -> AsyncRef | AsyncLease:
        if (holding := self._open_at_once(handle)) is not None:
            return AsyncRef(self._session, holding)
        (block,) = await self.open_many([handle])
        return block
