"""The blocking transport: threads. It never suspends, so `slabd.transport.run` can drive it.

Calls that may wait in the daemon's queue are futures, because only those can be cut short from another thread; the
others block in place, which is faster. None of this is for the main thread, which signal handlers may interrupt
anywhere: `slabd.helpers.complete` sees to that.
"""

from __future__ import annotations

import queue
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from slabd.channels import Channel
from slabd.helpers import cancel_by
from slabd.transport import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    from slabd.channels import Tls
    from slabd.transport import Request, Response, Rpc, T


class BlockingTransport:
    """A `Transport` for threads."""

    def __init__(self, target: str, tls: Tls | None = None) -> None:
        self.target = target
        self._channel = Channel(target, tls)
        self._exclusive = threading.Lock()
        self._alarm: queue.SimpleQueue[None] = queue.SimpleQueue()

    async def unary(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """See Transport."""
        return self._channel.unary(rpc, request, seconds)

    async def waiting(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """See Transport."""
        done: queue.SimpleQueue[None] = queue.SimpleQueue()
        call = self._channel.future(rpc, request, seconds, lambda: done.put(None))
        # Nobody shall keep a place in the daemon's queue who has gone on after a KeyboardInterrupt.
        cancel_by(call.cancel)
        done.get()
        return call.result()

    async def download(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> list[Response]:
        """See Transport."""
        return self._channel.download(rpc, request, seconds, [])

    async def upload(self, rpc: Rpc[Request, Response], requests: Iterable[Request], seconds: float) -> Response:
        """See Transport."""
        return self._channel.upload(rpc, requests, seconds, [])

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
        self._channel.close()
