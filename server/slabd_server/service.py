"""PoolService: what clients call over gRPC.

A handler reads the request, calls the engine, performs the effects, and writes the answer. It holds no decision;
errors of the core pass through it to `interceptors`, which put them on the wire.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from slabd_proto.v1 import pool_pb2, pool_pb2_grpc
from slabd_server import __version__, wire
from slabd_server.core import inspection
from slabd_server.core.errors import AccessDenied, InvalidArgument, OutOfRange
from slabd_server.core.purposes import NO_PURPOSE, Purpose
from slabd_server.core.records import Peer, Waiting
from slabd_server.core.sessions import SECRET_BYTES
from slabd_server.status import item_result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from slabd_server.core.records import Block, BlockRef, SessionKey
    from slabd_server.dispatch import Dispatcher
    from slabd_server.lanes import Lanes
    from slabd_server.segments import HeapSegment
    from slabd_server.wire import Context

CHUNK_BYTES: Final = 64 * 1024


class PoolService(pool_pb2_grpc.PoolServiceServicer):
    """The client's side of the contract. `segments` are the heaps' mappings by name, for reading and writing bytes."""

    def __init__(
        self, dispatcher: Dispatcher, segments: Mapping[str, HeapSegment], lanes: Lanes, *, grace: float
    ) -> None:
        self._dispatcher = dispatcher
        self._engine = dispatcher.engine
        self._segments = segments
        self._lanes = lanes
        self._grace = grace

    def _key(self, message: pool_pb2.SessionKey) -> SessionKey:
        """Return who calls, after what it has posted in its lane before is done."""
        key = wire.key(message)
        self._lanes.drain(key.id)
        return key

    # -- sessions

    async def OpenSession(self, request: pool_pb2.OpenSessionRequest, context: Context) -> pool_pb2.OpenSessionResponse:
        """Open a session that lives by keep-alive."""
        session = self._engine.open_session(
            request.heap,
            name=request.name,
            access=wire.access(request.access),
            peer=Peer(),
            attached=False,
            secret=secrets.token_bytes(SECRET_BYTES),
            now=self._dispatcher.now(),
        )
        self._dispatcher.refresh()
        served = self._engine.heaps[session.books.name]
        return pool_pb2.OpenSessionResponse(session=wire.session(session, served, __version__))

    async def KeepSessionAlive(
        self, request: pool_pb2.KeepSessionAliveRequest, context: Context
    ) -> pool_pb2.KeepSessionAliveResponse:
        """Extend a session's life."""
        ttl = self._engine.keep_alive(self._key(request.session), now=self._dispatcher.now())
        return pool_pb2.KeepSessionAliveResponse(ttl=None if ttl is None else wire.duration(ttl))

    async def CloseSession(
        self, request: pool_pb2.CloseSessionRequest, context: Context
    ) -> pool_pb2.CloseSessionResponse:
        """End a session."""
        key = self._key(request.session)
        ended = await self._dispatcher.close_session(key)
        if ended is not None:
            return pool_pb2.CloseSessionResponse(leases=ended.leases, reclaimed_bytes=ended.reclaimed_bytes)
        session = self._engine.sessions.find(key.id)
        if session is None:  # it had said goodbye before
            return pool_pb2.CloseSessionResponse()
        return pool_pb2.CloseSessionResponse(leases=len(session.owned), quarantined_bytes=session.owned_bytes)

    # -- leases

    async def Lease(self, request: pool_pb2.LeaseRequest, context: Context) -> pool_pb2.LeaseResponse:
        """Lease blocks, or wait for them."""
        key, came = self._key(request.session), self._dispatcher.now()
        outcome = self._engine.lease(
            key,
            [wire.lease_item(item) for item in request.items],
            now=came,
            timeout=wire.seconds(request.timeout),
            purpose=_purpose(request),
            sequence=request.sequence,
        )
        if isinstance(outcome, Waiting):
            heap = self._engine.sessions.authenticate(key).books.name
            blocks = await self._dispatcher.answer(key, heap, outcome, sequence=request.sequence)
        else:
            blocks = outcome.blocks
            self._dispatcher.answered(key.id, came)
        return pool_pb2.LeaseResponse(blocks=[wire.block(block) for block in blocks])

    async def Release(self, request: pool_pb2.ReleaseRequest, context: Context) -> pool_pb2.ReleaseResponse:
        """Release leases."""
        outcome = self._engine.release(
            self._key(request.session),
            [wire.block_ref(ref) for ref in request.blocks],
            now=self._dispatcher.now(),
            sequence=request.sequence,
        )
        self._dispatcher.perform(outcome.effects)
        return pool_pb2.ReleaseResponse(results=[item_result(result) for result in outcome.results])

    # -- hand-off

    async def Share(self, request: pool_pb2.ShareRequest, context: Context) -> pool_pb2.ShareResponse:
        """Make handles. Nobody may be on its way to a block that is transferred."""
        key, items = self._key(request.session), [wire.share_item(item) for item in request.items]
        with self._lanes.undisturbed(key.id, [item.ref for item in items if item.transfer]):
            outcome = self._engine.share(key, items, now=self._dispatcher.now(), sequence=request.sequence)
        self._dispatcher.perform(outcome.effects)
        return pool_pb2.ShareResponse(results=[wire.share_result(result) for result in outcome.results])

    async def Open(self, request: pool_pb2.OpenRequest, context: Context) -> pool_pb2.OpenResponse:
        """Open handles, which may have been posted a moment ago."""
        self._lanes.read_heap_of(wire.key(request.session).id)
        outcome = self._engine.open(
            self._key(request.session),
            [wire.handle(handle) for handle in request.handles],
            now=self._dispatcher.now(),
            sequence=request.sequence,
        )
        self._dispatcher.perform(outcome.effects)
        return pool_pb2.OpenResponse(results=[wire.open_result(result) for result in outcome.results])

    async def Close(self, request: pool_pb2.CloseRequest, context: Context) -> pool_pb2.CloseResponse:
        """Close what was opened."""
        outcome = self._engine.close(
            self._key(request.session),
            [wire.block_ref(ref) for ref in request.blocks],
            now=self._dispatcher.now(),
            sequence=request.sequence,
        )
        self._dispatcher.perform(outcome.effects)
        return pool_pb2.CloseResponse(results=[item_result(result) for result in outcome.results])

    # -- bytes

    async def ReadBlock(
        self, request: pool_pb2.ReadBlockRequest, context: Context
    ) -> AsyncIterator[pool_pb2.ReadBlockResponse]:
        """Stream a block's bytes. The session's right to them is looked at again before each piece."""
        key, ref = self._key(request.session), wire.block_ref(request.block)
        block = self._engine.locate(key, ref, writable=False)
        length = request.length or max(0, block.requested_size - request.offset)
        end = request.offset + length
        _check_range(block, request.offset, end)
        position = request.offset
        while position < end:
            piece = min(CHUNK_BYTES, end - position)
            data = self._bytes(key, ref, position, piece, writable=False)
            yield pool_pb2.ReadBlockResponse(data=bytes(data))
            position += piece

    async def WriteBlock(
        self, request_iterator: AsyncIterator[pool_pb2.WriteBlockRequest], context: Context
    ) -> pool_pb2.WriteBlockResponse:
        """Write a block's bytes. A piece that reaches past the block's end is refused whole; those before it stay."""
        key: SessionKey | None = None
        position = written = 0
        async for request in request_iterator:
            if key is None:
                key, ref, position = self._key(request.session), wire.block_ref(request.block), request.offset
            block = self._engine.locate(key, ref, writable=True)
            _check_range(block, position, position + len(request.data))
            self._bytes(key, ref, position, len(request.data), writable=True)[:] = request.data
            position += len(request.data)
            written += len(request.data)
        if key is None:
            raise InvalidArgument("the first message names session and block; there was none")
        return pool_pb2.WriteBlockResponse(written_bytes=written)

    def _bytes(self, key: SessionKey, ref: BlockRef, position: int, length: int, *, writable: bool) -> memoryview:
        block = self._engine.locate(key, ref, writable=writable)
        heap = self._engine.sessions.authenticate(key).books.name
        start = block.offset + position
        return self._segments[heap].view[start : start + length]

    # -- watching and asking

    async def Watch(self, request: pool_pb2.WatchRequest, context: Context) -> AsyncIterator[pool_pb2.WatchResponse]:
        """Stream the session's events."""
        session = self._engine.sessions.authenticate(self._key(request.session))
        with self._dispatcher.watch(session.id, session.books.name) as watch:
            yield pool_pb2.WatchResponse(started=pool_pb2.WatchStarted())
            async for event in watch.events():
                yield wire.watch_response(event, self._grace)

    async def GetStats(self, request: pool_pb2.GetStatsRequest, context: Context) -> pool_pb2.GetStatsResponse:
        """Read the books of every heap."""
        if request.HasField("session"):
            self._engine.sessions.authenticate(self._key(request.session))
        elif not context.peer().startswith("unix:"):
            raise AccessDenied("without a session, statistics are given on the unix sockets only")
        self._lanes.look()
        now = self._dispatcher.now()
        heaps = [wire.heap_stats(inspection.heap_stats(served, now)) for served in self._engine.heaps.values()]
        return pool_pb2.GetStatsResponse(heaps=heaps)

    async def GetUsableSize(
        self, request: pool_pb2.GetUsableSizeRequest, context: Context
    ) -> pool_pb2.GetUsableSizeResponse:
        """Tell which block a request would get."""
        session = self._engine.sessions.authenticate(self._key(request.session))
        item = wire.lease_item(request.item)
        low, high = session.books.allocator.usable_size(item.size, item.alignment)
        return pool_pb2.GetUsableSizeResponse(min_size=low, max_size=high)


def _purpose(request: pool_pb2.LeaseRequest) -> Purpose:
    if request.label or request.call_site:
        return Purpose(request.label, request.call_site)
    return NO_PURPOSE


def _check_range(block: Block, start: int, end: int) -> None:
    if end > block.size:
        raise OutOfRange(f"bytes [{start}, {end}) reach past the block's {block.size}")
