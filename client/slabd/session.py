"""A session: what one pool holds at one daemon, how it begins and ends, and who keeps house meanwhile.

How blocks find their way back is in slabd.returning; the operations themselves are in slabd.operations. A forked child
never uses its parent's session.

Written once for threads and for asyncio: coroutines over a `Transport`.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from slabd import errors, forking
from slabd.address import LocalAddress
from slabd.attachment import attach_to
from slabd.cache import Cache
from slabd.calls import Line, once
from slabd.heirs import Heirs
from slabd.holding import BlockName, GrantedBlock, Holding, Holdings
from slabd.returning import Returning
from slabd.transport import CLOSE_SESSION, KEEP_ALIVE, OPEN_SESSION, Deadline
from slabd_proto.v1 import attach_pb2, pool_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slabd.attachment import Attachment
    from slabd.settings import Settings
    from slabd.transport import Transport

_GOODBYE_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = 0.5
# How long a block may lie that waited for a forked child, after the child is done with it.
_HEIRS_SECONDS: Final = 0.05
# A wake-up can be lost to a KeyboardInterrupt inside the garbage collector; nothing that is dead lies longer than this.
_PATROL_SECONDS: Final = 10.0
# How often the cache is looked through for blocks that are idle, as long as there are any.
_TRIM_SECONDS: Final = 1.0
# A keep-alive may be late twice before the daemon gives a session up.
_KEEP_ALIVES_PER_TTL: Final = 3

# Sessions that have not ended. A pool may be gone while arrays over its blocks live on, and so must its session.
_open_sessions: set[Session] = set()


class Session:
    """One session at one daemon."""

    def __init__(
        self, transport: Transport, settings: Settings, granted: pool_pb2.Session, attachment: Attachment | None
    ) -> None:
        self.settings: Final = settings
        self.key: Final = granted.key
        self.heap: Final = granted.heap
        self.heap_id: Final = granted.heap_id
        self.heap_bytes: Final = granted.heap_bytes
        self.read_only: Final = granted.access == pool_pb2.ACCESS_MODE_READ_ONLY
        self.server_version: Final = granted.server_version
        self._ttl: Final = granted.ttl.ToTimedelta().total_seconds()
        self._attachment: Final = attachment
        self.holdings: Final = Holdings(attachment.mapping if attachment else None, transport.wake)
        self.cache: Final = self._make_cache(transport, attachment)
        self.heirs: Final = Heirs()
        self.line: Final = Line(transport, settings.call_timeout, self._check_alive)
        self.returning: Final = Returning(self.key, self.line, self.holdings, self.heirs, self._hung_up)
        self.returning.cache = self.cache
        self._transport: Final = transport
        self._state_lock = threading.Lock()
        self._closing = False
        self._ended = False
        self._abandoned = False
        forking.register(self)
        _open_sessions.add(self)
        transport.start(self._keep_house, f"slabd-{granted.key.id}")

    def _make_cache(self, transport: Transport, attachment: Attachment | None) -> Cache | None:
        if attachment is None or attachment.lane is None:
            return None
        attachment.lane.claim_by(self.holdings.records)
        return Cache(
            attachment.lane,
            self.holdings,
            attachment.connection.fileno(),
            0 if self.read_only else self.settings.cache_bytes,
            transport.wake if self.settings.prefault else None,
        )

    @classmethod
    async def open(cls, transport: Transport, settings: Settings) -> Session:
        """Open a session: over the attach socket for a local daemon, over gRPC alone for one behind TCP.

        Raises:
            DaemonUnavailable: nobody answers.
            SlabdError: the daemon refuses; the class says why.
        """
        try:
            return await cls._open(transport, settings)
        except BaseException:
            await transport.close()
            raise

    @classmethod
    async def _open(cls, transport: Transport, settings: Settings) -> Session:
        access = pool_pb2.ACCESS_MODE_READ_ONLY if settings.read_only else pool_pb2.ACCESS_MODE_READ_WRITE
        address, seconds = settings.address, settings.connect_timeout
        if isinstance(address, LocalAddress):
            hello = attach_pb2.AttachHello(
                heap=settings.heap, access=access, name=settings.session_name, lane=settings.lane
            )
            attachment = await transport.do(lambda: attach_to(address, hello, seconds))
            return cls(transport, settings, attachment.session, attachment)
        request = pool_pb2.OpenSessionRequest(heap=settings.heap, access=access, name=settings.session_name)
        response = await once(transport, lambda limit: transport.unary(OPEN_SESSION, request, limit), seconds)
        return cls(transport, settings, response.session, None)

    @property
    def ended(self) -> bool:
        """Whether nothing can be done with it any more."""
        return self._closing or self._ended

    @property
    def inherited(self) -> bool:
        """Whether this process is a forked child and the session its parent's."""
        return self.holdings.inherited

    @property
    def mapped(self) -> bool:
        """Whether blocks have views."""
        return self.holdings.mapped

    def check_usable(self) -> None:
        """Raise PoolClosed or InheritedByFork when nothing may be asked of the daemon."""
        if self.inherited:
            raise errors.InheritedByFork("this block belongs to the parent process: a forked child can only look at it")
        if self.ended:
            raise errors.PoolClosed("the pool has been closed")

    def adopt(self, blocks: Sequence[tuple[pool_pb2.Block, bool]]) -> list[Holding]:
        """Take granted blocks into care; the flag of each says whether the session owns its lease.

        Raises:
            PoolClosed: the pool has been closed meanwhile; the daemon has taken the blocks back with the session.
        """
        made: list[Holding] = []
        serials = [self.holdings.next_serial() for _ in blocks]
        try:
            with self._state_lock:
                self.check_usable()
                for serial, (block, owned) in zip(serials, blocks, strict=True):
                    made.append(self._holding(serial, block, owned=owned))  # see below
        except BaseException:
            # An interrupt. What has a record returns with its anchor, which `made` kept from dying before this look.
            missing = [
                GrantedBlock(BlockName(block.ref.slot, block.ref.generation), owned)
                for serial, (block, owned) in zip(serials, blocks, strict=True)
                if serial not in self.holdings
            ]
            self.returning.owe(missing)
            raise
        return made

    def _holding(self, serial: int, block: pool_pb2.Block, *, owned: bool) -> Holding:
        name = BlockName(block.ref.slot, block.ref.generation)
        size = block.requested_size
        holding = Holding(
            self.holdings, name, block.offset, block.size, size, owned=owned, serial=serial, cache=self.cache
        )
        if self.cache is not None:
            self.cache.adopted(holding)
        return holding

    def restore(self, group: Sequence[Holding]) -> None:
        """Take blocks back into care whose views were made invalid for nothing."""
        with self._state_lock:
            if not self.ended:
                for holding in group:
                    holding.restore()

    async def close(self) -> None:
        """End the session. Views become invalid; leases end.

        Raises:
            BufferError: views are exported; nothing has changed.
        """
        if self.inherited:  # its parent's; and another thread of the parent may have held the lock
            self._closing = True
            return
        with self._state_lock:
            if self.ended:
                return
            self.holdings.let_go_all()
            self._closing = True
            if self.cache is not None:
                self.cache.lane.flush()
                self.cache.stop()
        await self._end()

    async def leave(self, *, failing: bool) -> None:
        """End a with-block: close, but never mask the exception that ends the block already."""
        try:
            await self.close()
        except BufferError:
            if not failing:
                raise
            self.abandon()

    def abandon(self) -> None:
        """Let the session end by itself when its last block is gone. Safe inside the garbage collector."""
        self._abandoned = True
        if not self.inherited:
            self._transport.wake()

    async def _end(self) -> None:
        self._closing = True
        request = pool_pb2.CloseSessionRequest(session=self.key)
        # Not `lost` for an attached session: one that an operator has ended is in quarantine until it is closed.
        gone = self.returning.lost if self._attachment is None else self._attachment.hung_up()
        try:
            # What the daemon does not hear in time it reads from the attach connection, as soon as it runs again.
            if self._detach() and not gone:
                with suppress(errors.SlabdError):
                    await self.line.call(
                        lambda seconds: self._transport.unary(CLOSE_SESSION, request, seconds),
                        Deadline(_GOODBYE_SECONDS),
                    )
        finally:
            self._ended = True
            forking.forget(self)
            _open_sessions.discard(self)
            self._transport.wake()
            self.heirs.close()
            if self.cache is not None:
                self.cache.stop()
                self.cache.lane.close()
            await self._transport.close()

    def _detach(self) -> bool:
        """Unmap the heap, say goodbye and hang up; return whether this process cannot touch the heap any more."""
        if self._attachment is None:
            return True
        if self.cache is not None:
            self.cache.stop()  # once more: others may have given something back since
        try:
            self._attachment.mapping.close()
        except BufferError:  # a slice made at the last moment: the daemon keeps what it may show until we exit
            self._attachment.hang_up()
            return False
        self._attachment.say_goodbye()
        self._attachment.hang_up()
        return True

    async def _keep_house(self) -> None:
        """Do what nobody waits for, until the session ends."""
        interval = self._ttl / _KEEP_ALIVES_PER_TTL if self._ttl else None
        keep_alive = Deadline(interval)
        while not self.ended:
            pause = _RETRY_SECONDS if self.returning.has_work() else _PATROL_SECONDS
            if self.cache is not None and self.cache.tick():
                pause = min(pause, _TRIM_SECONDS)
            pause = _HEIRS_SECONDS if self.heirs.keeping else pause
            try:
                await self._transport.wait(min(pause, keep_alive.remaining or pause))
            except asyncio.CancelledError:  # the event loop ends, and a pool may have been forgotten
                with suppress(errors.SlabdError):
                    await self.returning.drain()
                if self._is_left():
                    await self._end()
                raise
            if self.cache is not None and self.cache.has_cold:
                await self._transport.do(self.cache.populate)
            # Whatever goes wrong here is met again by the next call that somebody does wait for.
            with suppress(errors.SlabdError):
                await self.returning.drain()
            if keep_alive.passed and not self.ended:
                with suppress(errors.SlabdError):
                    await self._keep_alive(interval or 0.0)
                keep_alive = Deadline(interval)
            if self._is_left():
                await self._end()

    def _is_left(self) -> bool:
        """Whether nobody can use the session any more, although nobody has closed it."""
        if self._abandoned and self.cache is not None:
            self.cache.empty()
        return self._abandoned and not self.ended and not len(self.holdings) and not self.returning.has_work()

    async def _keep_alive(self, seconds: float) -> None:
        request = pool_pb2.KeepSessionAliveRequest(session=self.key)
        await self.line.call(lambda limit: self._transport.unary(KEEP_ALIVE, request, limit), Deadline(seconds))

    def _check_alive(self, failure: errors.SlabdError) -> None:
        if not isinstance(failure, (errors.DaemonUnavailable, errors.SessionEnded)):
            return
        if self.ended:
            raise errors.PoolClosed("the pool has been closed") from failure
        if isinstance(failure, errors.DaemonUnavailable) and self._hung_up():
            raise errors.DaemonUnavailable(
                f"the daemon at {self.settings.address} is gone, and this session with it: connect again"
            ) from failure

    def _hung_up(self) -> bool:
        return self._attachment is not None and self._attachment.hung_up()

    # -- see slabd.forking

    def about_to_fork(self) -> None:
        """Prepare for an heir. Nobody takes a block into care before `has_forked`."""
        if not self.inherited:
            self._state_lock.acquire()
            if self.cache is not None:
                self.cache.about_to_fork()
            self.heirs.about_to_fork(leaving=self.mapped and not self.ended and len(self.holdings) > 0)

    def has_forked(self) -> None:
        """Note that a child may touch what there is now."""
        if not self.inherited:
            last = self.holdings.next_serial()
            self.heirs.has_forked(last)
            if self.cache is not None:
                self.cache.has_forked(last)
            self._state_lock.release()

    def become_inherited(self) -> None:
        """From now on nothing is asked of the daemon, and nothing is given back.

        While a view is left here the connection stays, which tells the daemon that somebody can touch the blocks of a
        session that has ended, and the pipe, which tells the parent that somebody can touch those it is done with.
        """
        if self.cache is not None:
            self.cache.stop(inherited=True)
        self._state_lock = threading.Lock()
        self.heirs.inherit()
        self.holdings.become_inherited(self._renounce)

    def _renounce(self) -> None:
        self.heirs.renounce()
        if self._attachment is not None:
            with suppress(BufferError):  # inside the garbage collector the last view is not quite gone
                self._attachment.mapping.close()
            self._attachment.hang_up()
