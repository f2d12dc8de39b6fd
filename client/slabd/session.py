"""A session: what one pool holds at one daemon, how it begins and ends, and how blocks find their way back.

Promises:

- A block is given back only when nothing here can touch it (slabd.holding), and then it is: at once, or, when the
  daemon does not answer, by the housekeeping as soon as it does.
- A call that was given up (cancelled, interrupted, unanswered) and may have been granted all the same is *settled*:
  made again with the same sequence number, which the daemon answers as it did the first time, and what that had granted
  is given back.
- A forked child never uses its parent's session.

Written once for threads and for asyncio: coroutines over a `Transport`. The operations themselves are in
slabd.operations.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from slabd import errors, forking
from slabd.address import LocalAddress
from slabd.attachment import attach_to
from slabd.calls import Line, once
from slabd.failures import is_silence
from slabd.heirs import Heirs
from slabd.holding import BlockName, GrantedBlock, Holding, Holdings
from slabd.transport import CLOSE, CLOSE_SESSION, KEEP_ALIVE, OPEN_SESSION, RELEASE, Deadline
from slabd_proto.v1 import attach_pb2, pool_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from slabd.attachment import Attachment
    from slabd.holding import Returnable
    from slabd.settings import Settings
    from slabd.transport import Rpc, Transport

BATCH_ITEMS: Final = 4096
_GOODBYE_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = 0.5
# A wake-up can be lost to a KeyboardInterrupt inside the garbage collector; nothing that is dead lies longer than this.
_PATROL_SECONDS: Final = 10.0
# A keep-alive may be late twice before the daemon gives a session up.
_KEEP_ALIVES_PER_TTL: Final = 3

# Sessions that have not ended. A pool may be gone while arrays over its blocks live on, and so must its session.
_open_sessions: set[Session] = set()


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A call whose outcome is unknown: `repeat` makes it again and returns the blocks it got."""

    repeat: Callable[[], Awaitable[Sequence[Returnable]]]


@dataclass(frozen=True, slots=True)
class Errand:
    """A request that gives blocks back. However often it is made, its sequence number makes it one."""

    rpc: Rpc[Any, Any]
    request: Any


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
        self.heirs: Final = Heirs()
        self.line: Final = Line(transport, settings.call_timeout, self._check_alive)
        self._transport: Final = transport
        self._sequences: Final = itertools.count(1)
        self._state_lock = threading.Lock()
        self._closing = False
        self._ended = False
        self._abandoned = False
        self._lost = False
        self._unsettled: Final[deque[Unsettled]] = deque()
        self._owed: Final[deque[Errand]] = deque()
        self.blocks_returned = 0
        forking.register(self)
        _open_sessions.add(self)
        transport.start(self._keep_house, f"slabd-{granted.key.id}")

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
            hello = attach_pb2.AttachHello(heap=settings.heap, access=access, name=settings.session_name)
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

    def next_sequence(self) -> int:
        """Return the number of the next request that changes something."""
        return next(self._sequences)

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
                    made.append(Holding(self.holdings, serial, block, owned=owned))  # see below
        except BaseException:
            # An interrupt. What has a record returns with its anchor, which `made` kept from dying before this look.
            missing = [
                GrantedBlock(BlockName(block.ref.slot, block.ref.generation), owned)
                for serial, (block, owned) in zip(serials, blocks, strict=True)
                if serial not in self.holdings
            ]
            self._owed.extend(self._errands(missing))
            self._transport.wake()
            raise
        return made

    def restore(self, group: Sequence[Holding]) -> None:
        """Take blocks back into care whose views were made invalid for nothing."""
        with self._state_lock:
            if not self.ended:
                for holding in group:
                    holding.restore()

    async def give_back(self, claim: Callable[[list[Returnable | None]], None]) -> list[pool_pb2.ItemResult]:
        """Release the leases, and close the opened blocks, that `claim` takes out of the holdings.

        What the daemon does not acknowledge is owed, with its sequence number: the housekeeping tries it again.

        Raises:
            DaemonUnavailable: the daemon does not answer.
        """
        claimed: list[Returnable | None] = []
        errands: deque[Errand] | None = None
        results: list[pool_pb2.ItemResult] = []
        try:
            claim(claimed)
            errands = deque(self._errands(claimed))
            await self._run(errands, results)
        except BaseException as error:
            self._owed.extend(self._errands(claimed) if errands is None else errands)
            if self._lost and isinstance(error, errors.DaemonUnavailable):
                return results
            self._transport.wake()
            raise
        return results

    def _errands(self, claimed: Sequence[Returnable | None]) -> list[Errand]:
        """Return the requests that give blocks back, in batches that one call can carry.

        What a forked child may still touch is kept, and not among them.
        """
        free = [block for block in claimed if block is not None and not self.heirs.keep(block)]
        errands: list[Errand] = []
        for owned, rpc in ((True, RELEASE), (False, CLOSE)):
            refs = [_ref(block) for block in free if block.owned == owned]
            errands += [
                Errand(rpc, rpc.request(session=self.key, sequence=self.next_sequence(), blocks=batch))
                for batch in (refs[start : start + BATCH_ITEMS] for start in range(0, len(refs), BATCH_ITEMS))
            ]
        return errands

    async def _run(self, errands: deque[Errand], results: list[pool_pb2.ItemResult]) -> None:
        """Do errands until none is left, or the session is lost: its end has taken everything back."""
        while errands and not self._lost:
            errand = errands[0]
            try:
                response = await self.line.call(partial(self._transport.unary, errand.rpc, errand.request))
            except errors.SessionEnded:
                self._lost = True
                return
            except errors.SlabdError as error:
                self._lost = self._hung_up()
                if not is_silence(error):  # refused for good: to ask again would not help
                    errands.popleft()
                raise
            results += response.results
            self.blocks_returned += len(response.results)
            errands.popleft()

    def settle_later(self, repeat: Callable[[], Awaitable[Sequence[Returnable]]]) -> None:
        """Have the housekeeping find out what a call that was given up had granted, and give that back."""
        self._unsettled.append(Unsettled(repeat))
        self._transport.wake()

    async def drain(self) -> None:
        """Give back what was collected, what is owed, and what unsettled calls had granted."""
        async with self._transport.exclusive():
            while self._unsettled and not self._lost:
                try:
                    self._owed.extend(self._errands(await self._unsettled[0].repeat()))
                except errors.SlabdError as error:
                    if is_silence(error):
                        raise
                # An answer of any kind settles it.
                self._unsettled.popleft()
            self._owed.extend(self._errands(self.heirs.due()))
            await self._run(self._owed, [])
            while self.holdings.has_dead():
                await self.give_back(self.holdings.claim_dead)
            if self._lost:
                self._owed.clear()
                self._unsettled.clear()

    def has_work(self) -> bool:
        """Whether `drain` has something to do."""
        return self.holdings.has_dead() or bool(self._owed) or bool(self._unsettled) or self.heirs.is_due()

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
        try:
            # Detached first: a connection that has not hung up when the session is closed is a forked child's, to the
            # daemon, and what the child can touch is not free yet.
            if self._detach() and not self._lost:
                with suppress(errors.SlabdError):
                    await self.line.call(
                        lambda seconds: self._transport.unary(CLOSE_SESSION, request, seconds),
                        Deadline(_GOODBYE_SECONDS),
                    )
        finally:
            self._ended = True
            _open_sessions.discard(self)
            self._transport.wake()
            self.heirs.close()
            await self._transport.close()

    def _detach(self) -> bool:
        """Unmap the heap and hang up; return whether this process cannot touch the heap any more."""
        if self._attachment is None:
            return True
        unmapped = True
        try:
            self._attachment.mapping.close()
        except BufferError:  # a slice made at the last moment: the daemon keeps what it may show until we exit
            unmapped = False
        self._attachment.connection.close()
        return unmapped

    async def _keep_house(self) -> None:
        """Do what nobody waits for, until the session ends."""
        interval = self._ttl / _KEEP_ALIVES_PER_TTL if self._ttl else None
        keep_alive = Deadline(interval)
        while not self.ended:
            pause = _RETRY_SECONDS if self.has_work() or self.heirs.keeping else _PATROL_SECONDS
            try:
                await self._transport.wait(min(pause, keep_alive.remaining or pause))
            except asyncio.CancelledError:  # the event loop ends, and a pool may have been forgotten
                with suppress(errors.SlabdError):
                    await self.drain()
                if self._is_left():
                    await self._end()
                raise
            # Whatever goes wrong here is met again by the next call that somebody does wait for.
            with suppress(errors.SlabdError):
                await self.drain()
            if keep_alive.passed and not self.ended:
                with suppress(errors.SlabdError):
                    await self._keep_alive(interval or 0.0)
                keep_alive = Deadline(interval)
            if self._is_left():
                await self._end()

    def _is_left(self) -> bool:
        """Whether nobody can use the session any more, although nobody has closed it."""
        return self._abandoned and not self.ended and not len(self.holdings) and not self.has_work()

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
            if len(self.holdings):
                self.heirs.about_to_fork()

    def has_forked(self) -> None:
        """Note that a child may touch what there is now."""
        if not self.inherited:
            self.heirs.has_forked(self.holdings.next_serial())
            self._state_lock.release()

    def become_inherited(self) -> None:
        """From now on nothing is asked of the daemon, and nothing is given back.

        While a view is left here the connection stays, which tells the daemon that somebody can touch the blocks of a
        session that has ended, and the pipe, which tells the parent that somebody can touch those it is done with.
        """
        self._state_lock = threading.Lock()
        self.heirs.inherit()
        self.holdings.become_inherited(self._renounce)

    def _renounce(self) -> None:
        self.heirs.renounce()
        if self._attachment is not None:
            with suppress(BufferError):  # inside the garbage collector the last view is not quite gone
                self._attachment.mapping.close()
            self._attachment.connection.close()


def _ref(block: Returnable) -> pool_pb2.BlockRef:
    return pool_pb2.BlockRef(slot=block.name.slot, generation=block.name.generation)
