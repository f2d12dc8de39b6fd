"""The asyncio transport: grpc.aio channels and tasks, for one event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc.aio

from slabd.channels import CHANNEL_OPTIONS, credentials
from slabd.errors import WrongEventLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    from slabd.channels import Tls
    from slabd.transport import Request, Response, Rpc, T


class AioTransport:
    """A `Transport` for asyncio. It belongs to the event loop it is made on."""

    def __init__(self, target: str, tls: Tls | None = None) -> None:
        self.target = target
        self._loop = asyncio.get_running_loop()
        secure = credentials(tls)
        self._channel = (
            grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
            if secure is None
            else grpc.aio.secure_channel(target, secure, CHANNEL_OPTIONS)
        )
        self._stubs: dict[str, Any] = {}
        self._exclusive = asyncio.Lock()
        self._alarm = asyncio.Event()
        self._housekeeping: asyncio.Task[None] | None = None

    async def unary(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """See Transport."""
        response: Response = await self._stub(rpc, self._channel.unary_unary)(request, timeout=seconds)
        return response

    async def waiting(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """See Transport. Cancelling the task cancels the call, and the daemon takes it out of its queue."""
        return await self.unary(rpc, request, seconds)

    async def download(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> list[Response]:
        """See Transport."""
        call = self._stub(rpc, self._channel.unary_stream)(request, timeout=seconds)
        return [piece async for piece in call]

    async def upload(self, rpc: Rpc[Request, Response], requests: Iterable[Request], seconds: float) -> Response:
        """See Transport."""
        response: Response = await self._stub(rpc, self._channel.stream_unary)(requests, timeout=seconds)
        return response

    async def sleep(self, seconds: float) -> None:
        """See Transport."""
        await asyncio.sleep(seconds)

    async def do(self, blocking: Callable[[], T]) -> T:
        """See Transport."""
        return await asyncio.to_thread(blocking)

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """See Transport."""
        async with self._exclusive:
            yield

    def start(self, housekeeping: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """See Transport."""
        self._housekeeping = self._loop.create_task(housekeeping(), name=name)

    async def wait(self, seconds: float | None) -> None:
        """See Transport."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._alarm.wait()
        self._alarm.clear()

    def wake(self) -> None:
        """See Transport."""
        with suppress(RuntimeError):  # the loop is closed: nobody is left to wake
            self._loop.call_soon_threadsafe(self._alarm.set)

    async def close(self) -> None:
        """See Transport."""
        await self._channel.close()

    def _stub(self, rpc: Rpc[Request, Response], kind: Callable[..., Any]) -> Any:
        if asyncio.get_running_loop() is not self._loop:
            raise WrongEventLoop("an asyncio pool belongs to the event loop it was opened on: open one on each loop")
        if (stub := self._stubs.get(rpc.name)) is None:
            stub = kind(
                rpc.path,
                request_serializer=rpc.request.SerializeToString,
                response_deserializer=rpc.response.FromString,
            )
            self._stubs[rpc.name] = stub
        return stub
