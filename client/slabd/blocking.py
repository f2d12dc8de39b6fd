"""The blocking transport: gRPC channels and threads. It never suspends, so `slabd.transport.run` can drive it.

Every gRPC call passes the fork gate (slabd.forking). Calls that may wait in the daemon's queue are made as futures,
because only those can be cut short from another thread; the others block in place, which is faster.
"""

from __future__ import annotations

import queue
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from slabd.channels import CHANNEL_OPTIONS, credentials
from slabd.forking import check_child_can_call, gate
from slabd.transport import Interrupted, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    from slabd.channels import Tls
    from slabd.transport import Request, Response, Rpc, T


class BlockingTransport:
    """A `Transport` for threads."""

    def __init__(self, target: str, tls: Tls | None = None) -> None:
        check_child_can_call()
        self.target = target
        with gate.inside():
            secure = credentials(tls)
            self._channel = (
                grpc.insecure_channel(target, CHANNEL_OPTIONS)
                if secure is None
                else grpc.secure_channel(target, secure, CHANNEL_OPTIONS)
            )
        self._stubs: dict[str, Any] = {}
        self._exclusive = threading.Lock()
        self._alarm: queue.SimpleQueue[None] = queue.SimpleQueue()

    async def unary(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """See Transport."""
        with gate.inside():
            response: Response = self._stub(rpc, self._channel.unary_unary)(request, timeout=seconds)
            return response

    async def waiting(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """See Transport."""
        with gate.inside():
            future = self._stub(rpc, self._channel.unary_unary).future(request, timeout=seconds)
            cut = False

            def cut_short() -> None:
                nonlocal cut
                cut = True
                future.cancel()

            with gate.cuttable(cut_short):
                try:
                    response: Response = future.result()
                except grpc.FutureCancelledError:
                    if cut:
                        raise Interrupted from None
                    raise
                except BaseException:
                    future.cancel()  # a KeyboardInterrupt: the daemon shall not keep a place in the queue for nobody
                    raise
                return response

    async def download(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> list[Response]:
        """See Transport."""
        with gate.inside():
            return list(self._stub(rpc, self._channel.unary_stream)(request, timeout=seconds))

    async def upload(self, rpc: Rpc[Request, Response], requests: Iterable[Request], seconds: float) -> Response:
        """See Transport."""
        with gate.inside():
            response: Response = self._stub(rpc, self._channel.stream_unary)(iter(requests), timeout=seconds)
            return response

    async def sleep(self, seconds: float) -> None:
        """See Transport."""
        time.sleep(seconds)  # noqa: ASYNC251  # this transport is the one that blocks

    async def do(self, blocking: Callable[[], T]) -> T:
        """See Transport."""
        return blocking()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """See Transport."""
        with self._exclusive:
            yield

    def start(self, housekeeping: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """See Transport."""
        threading.Thread(target=lambda: run(housekeeping()), name=name, daemon=True).start()

    async def wait(self, seconds: float | None) -> None:
        """See Transport."""
        try:
            self._alarm.get(timeout=seconds)
            while True:  # several calls of wake() are one
                self._alarm.get_nowait()
        except queue.Empty:
            return

    def wake(self) -> None:
        """See Transport. SimpleQueue.put is reentrant by its documentation."""
        self._alarm.put(None)

    async def close(self) -> None:
        """See Transport."""
        with gate.inside():
            self._channel.close()

    def _stub(self, rpc: Rpc[Request, Response], kind: Callable[..., Any]) -> Any:
        if (stub := self._stubs.get(rpc.name)) is None:
            stub = kind(
                rpc.path,
                request_serializer=rpc.request.SerializeToString,
                response_deserializer=rpc.response.FromString,
            )
            self._stubs[rpc.name] = stub
        return stub
