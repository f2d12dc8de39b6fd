"""AdminService: what operators call over gRPC. Handlers hold no decision."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slabd_proto.v1 import admin_pb2, admin_pb2_grpc
from slabd_server import __version__, wire
from slabd_server.core import inspection
from slabd_server.core.records import BlockState, SessionState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from slabd_server.core.stats import HeapInfo, LeaseInfo, SessionInfo
    from slabd_server.dispatch import Dispatcher
    from slabd_server.lanes import Lanes
    from slabd_server.segments import HeapSegment
    from slabd_server.wire import Context

_LEASES_LISTED: Final = 1000
_SESSION_STATE: Final = {
    SessionState.ACTIVE: admin_pb2.SESSION_STATE_ACTIVE,
    SessionState.QUARANTINED: admin_pb2.SESSION_STATE_QUARANTINED,
    SessionState.ENDING: admin_pb2.SESSION_STATE_ENDING,
}
_BLOCK_STATE: Final = {
    BlockState.LEASED: admin_pb2.BLOCK_STATE_LEASED,
    BlockState.CACHED: admin_pb2.BLOCK_STATE_CACHED,
    BlockState.SHARED: admin_pb2.BLOCK_STATE_SHARED,
    BlockState.QUARANTINED: admin_pb2.BLOCK_STATE_QUARANTINED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where the daemon answers."""

    runtime_dir: str
    addresses: tuple[str, ...]
    metrics_address: str


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """The operator's side of the contract."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        segments: Mapping[str, HeapSegment],
        lanes: Lanes,
        whereabouts: Whereabouts,
        set_serving: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._dispatcher = dispatcher
        self._engine = dispatcher.engine
        self._segments = segments
        self._lanes = lanes
        self._whereabouts = whereabouts
        self._set_serving = set_serving
        self._started = dispatcher.now()

    async def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Context) -> admin_pb2.GetStatusResponse:
        """Describe the daemon."""
        self._lanes.look()
        now = self._dispatcher.now()
        return admin_pb2.GetStatusResponse(
            version=__version__,
            pid=os.getpid(),
            uptime=wire.duration(now - self._started),
            draining=self._engine.draining,
            addresses=self._whereabouts.addresses,
            metrics_address=self._whereabouts.metrics_address,
            runtime_dir=self._whereabouts.runtime_dir,
            heaps=[wire.heap_stats(inspection.heap_stats(served, now)) for served in self._engine.heaps.values()],
        )

    async def ListSessions(
        self, request: admin_pb2.ListSessionsRequest, context: Context
    ) -> admin_pb2.ListSessionsResponse:
        """List sessions."""
        self._lanes.look()
        found = inspection.sessions(self._engine, request.heap, self._dispatcher.now())
        return admin_pb2.ListSessionsResponse(sessions=[_session(info) for info in found])

    async def ListLeases(self, request: admin_pb2.ListLeasesRequest, context: Context) -> admin_pb2.ListLeasesResponse:
        """List granted blocks."""
        self._lanes.look()
        limit, now = request.limit or _LEASES_LISTED, self._dispatcher.now()
        found, total = inspection.leases(self._engine, request.heap, request.session_id, limit, now)
        found = sorted((self._lanes.described(info, now) for info in found), key=lambda info: -info.age)
        return admin_pb2.ListLeasesResponse(leases=[_lease(info) for info in found], total=total)

    async def ListHeaps(self, request: admin_pb2.ListHeapsRequest, context: Context) -> admin_pb2.ListHeapsResponse:
        """List heaps."""
        self._lanes.look()
        now = self._dispatcher.now()
        infos = [inspection.heap_info(served, now) for served in self._engine.heaps.values()]
        return admin_pb2.ListHeapsResponse(heaps=[_heap(info, self._segments[info.stats.name]) for info in infos])

    async def Check(self, request: admin_pb2.CheckRequest, context: Context) -> admin_pb2.CheckResponse:
        """Check every structure."""
        self._lanes.look()
        found = inspection.check(self._engine)
        return admin_pb2.CheckResponse(ok=not found.problems, problems=found.problems, blocks=found.blocks)

    async def Drain(self, request: admin_pb2.DrainRequest, context: Context) -> admin_pb2.DrainResponse:
        """Stop taking new work, and wait for the last block."""
        self._dispatcher.perform(self._engine.drain(resume=request.resume).effects)
        await self._set_serving(request.resume)
        if not request.resume and request.HasField("timeout"):
            await self._dispatcher.idle(wire.seconds(request.timeout))
        return admin_pb2.DrainResponse(
            draining=self._engine.draining,
            leases=sum(served.books.leases for served in self._engine.heaps.values()),
            sessions=len(self._engine.sessions),
        )

    async def EndSession(self, request: admin_pb2.EndSessionRequest, context: Context) -> admin_pb2.EndSessionResponse:
        """End a session by force."""
        session = self._engine.sessions.find(request.session_id)
        ended = await self._dispatcher.evict(request.session_id)
        if ended is None and session is not None:
            return admin_pb2.EndSessionResponse(quarantined_bytes=session.owned_bytes)
        return admin_pb2.EndSessionResponse(reclaimed_bytes=ended.reclaimed_bytes if ended else 0)


def _session(info: SessionInfo) -> admin_pb2.SessionInfo:
    return admin_pb2.SessionInfo(
        id=info.id,
        name=info.name,
        heap=info.heap,
        pid=info.pid or 0,
        uid=info.uid,
        access=wire.access_mode(info.access),
        attached=info.attached,
        state=_SESSION_STATE[info.state],
        age=wire.duration(info.age),
        leases=info.leases,
        opens=info.opens,
        used_bytes=info.used_bytes,
        cached_bytes=info.cached_bytes,
        waiters=info.waiters,
        oldest_lease_age=None if info.oldest_lease_age is None else wire.duration(info.oldest_lease_age),
    )


def _lease(info: LeaseInfo) -> admin_pb2.LeaseInfo:
    return admin_pb2.LeaseInfo(
        block=wire.block(info.block),
        heap=info.heap,
        state=_BLOCK_STATE[info.state],
        session_id=info.session or 0,
        pid=info.pid or 0,
        session_name=info.session_name,
        label=info.label,
        call_site=info.call_site,
        age=wire.duration(info.age),
        pending_opens=info.pending_opens,
        opened_by=info.opened_by,
    )


def _heap(info: HeapInfo, segment: HeapSegment) -> admin_pb2.HeapInfo:
    return admin_pb2.HeapInfo(
        stats=wire.heap_stats(info.stats),
        size_classes=[
            admin_pb2.SizeClassInfo(
                size=each.size, slabs=each.slabs, used_blocks=each.used_blocks, free_blocks=each.free_blocks
            )
            for each in info.size_classes
        ],
        free_ranges=info.free_ranges,
        page_backing=segment.page_backing,
        prefault=segment.prefault,
        resident_bytes=segment.resident_bytes(),
    )
