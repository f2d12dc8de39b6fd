"""The blocking transport: gRPC channels and threads. It never suspends, so `slabd.transport.run` can drive it.

Every gRPC call passes the fork gate (slabd.forking). Calls that may wait in the daemon's queue are made as futures,
because only those can be cut short from another thread; the others block in place, which is faster. The main thread,
which signal handlers may interrupt anywhere, has both made by a helper thread (slabd.helpers).
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
from slabd.helpers import call_safely, submit
from slabd.transport import Interrupted, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    from google.protobuf.message import Message

    from slabd.channels import Tls
    from slabd.transport import Request, Response, Rpc, T


class BlockingTransport:
    """A `Transport` for threads."""

    def __init__(self, target: str, tls: Tls | None = None) -> None:
        check_child_can_call()
        self.target = target
        self._channel = self._call(lambda: _open_channel(target, tls))
        self._stubs: dict[str, Any] = {}
        self._exclusive = threading.Lock()
        self._alarm: queue.SimpleQueue[None] = queue.SimpleQueue()

    async def unary(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """See Transport."""
        stub = self._stub(rpc, self._channel.unary_unary)
        response: Response = self._call(lambda: stub(request, timeout=seconds))
        return response

    async def waiting(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """See Transport."""
        call = _WaitingCall(self._stub(rpc, self._channel.unary_unary), request, seconds)
        try:
            response: Response = call_safely(call.run)
        except (grpc.RpcError, Interrupted):
            raise
        except BaseException:
            submit(call.cut)  # a KeyboardInterrupt: the daemon shall not keep a place in its queue for nobody
            raise
        return response

    async def download(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> list[Response]:
        """See Transport."""
        stub = self._stub(rpc, self._channel.unary_stream)
        return self._call(lambda: list(stub(request, timeout=seconds)))

    async def upload(self, rpc: Rpc[Request, Response], requests: Iterable[Request], seconds: float) -> Response:
        """See Transport."""
        stub = self._stub(rpc, self._channel.stream_unary)
        response: Response = self._call(lambda: stub(iter(requests), timeout=seconds))
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
        self._call(self._channel.close)

    def _call(self, job: Callable[[], T]) -> T:
        def inside() -> T:
            with gate.inside():
                return job()

        return call_safely(inside)

    def _stub(self, rpc: Rpc[Request, Response], kind: Callable[..., Any]) -> Any:
        if (stub := self._stubs.get(rpc.name)) is None:
            stub = kind(
                rpc.path,
                request_serializer=rpc.request.SerializeToString,
                response_deserializer=rpc.response.FromString,
            )
            self._stubs[rpc.name] = stub
        return stub


class _WaitingCall:
    """A call as a future, which another thread can cut short."""

    def __init__(self, stub: Any, request: Message, seconds: float) -> None:
        self._stub, self._request, self._seconds = stub, request, seconds
        self._future: Any = None
        self._cut = False

    def run(self) -> Any:
        with gate.inside(), gate.cuttable(self.cut):
            self._future = self._stub.future(self._request, timeout=self._seconds)
            if self._cut:  # before there was a future
                self._future.cancel()
            try:
                return self._future.result()
            except grpc.FutureCancelledError:
                raise Interrupted from None

    def cut(self) -> None:
        self._cut = True
        if self._future is not None:
            self._future.cancel()


def _open_channel(target: str, tls: Tls | None) -> grpc.Channel:
    secure = credentials(tls)
    if secure is None:
        return grpc.insecure_channel(target, CHANNEL_OPTIONS)
    return grpc.secure_channel(target, secure, CHANNEL_OPTIONS)
