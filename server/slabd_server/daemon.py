"""The daemon: everything put together, started, and stopped.

Start-up order: directory and lock, memory, engine, servers, and only then READY=1, so that whoever sees the sockets
can use them. Shutdown is the reverse: no new work, wait for the blocks to come back (for at most `drain_seconds`; a
second signal cuts that short), then the servers, the sessions, the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import secrets
import signal
import sys
from typing import TYPE_CHECKING, Final

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from slabd_server import __version__
from slabd_server.admin import AdminService, Whereabouts
from slabd_server.attach import AttachServer
from slabd_server.core.engine import Engine
from slabd_server.core.served import ServedHeap
from slabd_server.dispatch import Dispatcher
from slabd_server.errors import StartError
from slabd_server.lane_memory import GenerationTable
from slabd_server.lanes import Lanes
from slabd_server.metrics import SWITCH_SECONDS, LoopLag, make_registry
from slabd_server.notify import Pulse, notify
from slabd_server.reload import reload
from slabd_server.rundir import RuntimeDir
from slabd_server.segments import HeapSegment, LedgerSegment
from slabd_server.servers import ADMIN, POOL, Servers
from slabd_server.service import PoolService
from slabd_server.units import readable_size
from slabd_server.web import MetricsServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from slabd_server.config import Config, HeapConfig

# JavaScript and JSON readers keep integers as doubles: a larger number would come back changed, and its handles stale.
_HEAP_ID_BITS: Final = 53

log = logging.getLogger(__name__)


class Daemon:
    """One running daemon. `start`, `run_until_stopped`, `close`."""

    def __init__(self, config: Config, reread: Callable[[], Config] | None = None) -> None:
        self._config = config
        self._reread = reread
        self._stack = contextlib.AsyncExitStack()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def start(self) -> None:
        """Bring everything up, or raise and leave nothing behind.

        Raises:
            StartError: it cannot be brought up; the message says what to do.
        """
        try:
            await self._bring_up()
        except BaseException:
            await self.close()
            raise

    async def _bring_up(self) -> None:
        config = self._config
        _raise_descriptor_limit()
        widest = config.socket_mode | config.admin_socket_mode
        rundir = RuntimeDir(config.runtime_dir, socket_mode=widest, private=config.stop_on_eof)
        self._stack.callback(rundir.close)
        rundir.sweep()
        self._tables: dict[str, GenerationTable] = {}
        self._segments = {heap.name: self._make_segment(heap) for heap in config.heaps}
        self._engine = Engine(map(self._make_heap, config.heaps), session_limit=config.session_limit)
        self._dispatcher = Dispatcher(self._engine)
        self._stack.callback(self._dispatcher.stop)
        self._lanes = Lanes(self._dispatcher, self._tables)
        self._stack.callback(self._lanes.close)
        sys.setswitchinterval(SWITCH_SECONDS)
        lag = LoopLag()
        self._stack.callback(lag.stop)
        registry = make_registry(self._dispatcher, self._segments, lag)
        metrics_address = await self._serve_metrics(registry)
        self._health = HealthServicer()
        addresses = await self._serve_grpc(rundir, registry, metrics_address)
        self._attach = AttachServer(self._dispatcher, self._segments, self._lanes, self._tables)
        self._dispatcher.on_ended = self._attach.forget
        self._dispatcher.before_close = self._attach.look
        self._stack.push_async_callback(self._attach.close)
        try:
            self._attach.listen(rundir.attach_socket, config.socket_mode)
        except OSError as error:
            raise StartError(f"cannot listen on {rundir.attach_socket}: {error.strerror}") from None
        await self._set_serving(True)
        self._watch_signals()
        self._print_banner(addresses, rundir, metrics_address)
        notify(READY="1")
        self._pulse = Pulse(self._status)
        self._stack.callback(self._pulse.stop)

    def _status(self) -> str:
        """Say in a line how it goes, for `systemctl status`."""
        heaps = (
            f"heap {name} {served.books.used_bytes / served.books.total_bytes:.0%} of "
            f"{readable_size(served.books.total_bytes)} in use"
            for name, served in self._engine.heaps.items()
        )
        doing = "draining" if self._engine.draining else "serving"
        return f"{doing} {len(self._engine.sessions)} sessions; {'; '.join(heaps)}"

    async def _set_serving(self, serving: bool) -> None:  # noqa: FBT001 - the one thing it sets
        answer = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", POOL, ADMIN):
            await self._health.set(name, answer)

    def _make_segment(self, heap: HeapConfig) -> HeapSegment:
        segment = HeapSegment.create(heap.name, heap.size_bytes, prefault=heap.prefault, huge_pages=heap.huge_pages)
        self._stack.callback(segment.close)
        return segment

    def _make_heap(self, heap: HeapConfig) -> ServedHeap:
        store = LedgerSegment.create(heap.name)
        self._stack.callback(store.close)
        table = self._tables[heap.name] = GenerationTable.create(heap.name, heap.size_bytes)
        self._stack.callback(table.release)
        heap_id = secrets.randbits(_HEAP_ID_BITS)
        return ServedHeap.make(heap.spec(), heap_id=heap_id, store=store, memory=self._segments[heap.name], gates=table)

    async def _serve_metrics(self, registry: CollectorRegistry) -> str:
        if self._config.metrics_listen is None:
            return ""
        address = self._config.metrics_listen
        try:
            server = MetricsServer(registry, address.host, address.port)
        except OSError as error:
            raise StartError(
                f"cannot serve metrics on {address}: {error.strerror}; choose another --metrics-listen, or off"
            ) from None
        self._stack.push_async_callback(server.close)
        return server.address

    async def _serve_grpc(self, rundir: RuntimeDir, registry: CollectorRegistry, metrics_address: str) -> list[str]:
        servers = Servers(self._config, rundir, registry)
        addresses = servers.bind()
        whereabouts = Whereabouts(
            runtime_dir=str(rundir.path), addresses=tuple(addresses), metrics_address=metrics_address
        )
        pool = PoolService(self._dispatcher, self._segments, self._lanes, grace=self._config.drain_seconds)
        admin = AdminService(self._dispatcher, self._segments, self._lanes, whereabouts, self._set_serving)
        servers.serve(pool, admin, self._health)
        self._stack.push_async_callback(servers.stop)
        await servers.start()
        return addresses

    # -- running and stopping

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
            self._stack.callback(loop.remove_signal_handler, number)
        if self._reread is not None and self._config.config_file is not None:
            # Without a file there is nothing to read again, and a terminal that hangs up ends the daemon as ever.
            loop.add_signal_handler(signal.SIGHUP, self._reload, self._reread)
            self._stack.callback(loop.remove_signal_handler, signal.SIGHUP)
        if self._config.stop_on_eof:
            loop.add_reader(sys.stdin.fileno(), self._read_stdin)
            self._stack.callback(loop.remove_reader, sys.stdin.fileno())

    def _reload(self, reread: Callable[[], Config]) -> None:
        self._config = reload(self._config, reread)

    def _read_stdin(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self._hurry.set()
            self.stop()

    def stop(self) -> None:
        """Begin to stop; called again, do not wait for anybody."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def run_until_stopped(self) -> None:
        """Serve until `stop`, then drain."""
        await self._stopping.wait()
        log.info("stopping: waiting up to %s s for %d sessions", self._config.drain_seconds, len(self._engine.sessions))
        notify(STOPPING="1")
        await self._health.enter_graceful_shutdown()
        self._attach.stop_listening()
        self._dispatcher.perform(self._engine.drain().effects)
        idle = asyncio.create_task(self._dispatcher.idle(self._config.drain_seconds))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({idle, hurry}, return_when=asyncio.FIRST_COMPLETED)
        for task in (idle, hurry):
            task.cancel()
        await asyncio.gather(idle, hurry, return_exceptions=True)
        if not self._dispatcher.is_idle:
            blocks = sum(served.books.blocks for served in self._engine.heaps.values())
            log.warning("stopping with %d blocks still held", blocks)
        self._dispatcher.end_watches()

    async def close(self) -> None:
        """Take everything down."""
        await self._stack.aclose()

    def _print_banner(self, addresses: list[str], rundir: RuntimeDir, metrics_address: str) -> None:
        lines = [f"slabd {__version__}, pid {os.getpid()}"]
        lines += [
            f"  heap {heap.name}: {heap.size_bytes:,} bytes, {self._segments[heap.name].page_backing}"
            + (", prefaulted" if heap.prefault else "")
            for heap in self._config.heaps
        ]
        lines += [f"  gRPC    {address}" for address in addresses]
        lines.append(f"  admin   unix:{rundir.admin_socket}")
        lines.append(f"  attach  unix:{rundir.attach_socket}")
        lines.append(f"  metrics {f'http://{metrics_address}/metrics' if metrics_address else 'off'}")
        lines.append(f"  try     slabctl --address {rundir.path} status")
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()


def _raise_descriptor_limit() -> None:
    """Use all the descriptors we may: each session takes two, and five with its lane."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run(config: Config, reread: Callable[[], Config] | None = None) -> int:
    """Run a daemon until it is told to stop; return the exit status. `reread` makes its configuration anew.

    Raises:
        StartError: it could not start.
    """
    daemon = Daemon(config, reread)
    await daemon.start()
    try:
        await daemon.run_until_stopped()
    finally:
        await daemon.close()
    return 0
