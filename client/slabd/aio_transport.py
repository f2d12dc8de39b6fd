"""The asyncio transport: the same channel as the blocking one, its calls as futures, for one event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from slabd.channels import Channel
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
        self._channel = Channel(target, tls)
        self._exclusive = asyncio.Lock()
        self._alarm = asyncio.Event()
        self._housekeeping: asyncio.Task[None] | None = None

    async def unary(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """See Transport. Cancelling the task cancels the call, and the daemon takes it out of its queue."""
        self._check_loop()
        done = asyncio.Event()
        call = self._channel.future(rpc, request, seconds, lambda: self._soon(done.set))
        try:
            await done.wait()
        except asyncio.CancelledError:
            call.cancel()
            raise
        return call.result()

    async def waiting(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """See Transport."""
        return await self.unary(rpc, request, seconds)

    async def download(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> list[Response]:
        """See Transport."""
        cancel: list[Callable[[], object]] = []
        return await self._stream(lambda: self._channel.download(rpc, request, seconds, cancel), cancel)

    async def upload(self, rpc: Rpc[Request, Response], requests: Iterable[Request], seconds: float) -> Response:
        """See Transport."""
        cancel: list[Callable[[], object]] = []
        return await self._stream(lambda: self._channel.upload(rpc, requests, seconds, cancel), cancel)

    async def _stream(self, job: Callable[[], T], cancel: list[Callable[[], object]]) -> T:
        self._check_loop()
        try:
            return await asyncio.to_thread(job)
        except asyncio.CancelledError:
            for cancel_call in cancel:
                cancel_call()
            raise

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
        self._soon(self._alarm.set)

    async def close(self) -> None:
        """See Transport."""
        self._channel.close()

    def _soon(self, callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to hear of it
            self._loop.call_soon_threadsafe(callback)

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise WrongEventLoop("an asyncio pool belongs to the event loop it was opened on: open one on each loop")
