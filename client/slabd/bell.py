"""The lane's bell on an event loop: tasks that wait for the daemon's answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slabd.lane import Lane


class Bell:
    """Waits for one lane's bell, for as many tasks as there are, and for its connection's hang-up."""

    def __init__(self, lane: Lane, connection: int) -> None:
        """Belong to the event loop that runs."""
        self._lane = lane
        self._numbers = lane.bell.number, connection
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[bool]] = set()

    async def wait(self, seconds: float) -> bool:
        """Wait until the bell rings; False when it did not, or when the daemon has hung up."""
        if self._closed:
            return False
        future: asyncio.Future[bool] = self._loop.create_future()
        if not self._waiting:
            bell, connection = self._numbers
            self._loop.add_reader(bell, self._rung)
            self._loop.add_reader(connection, self._wake, False)
        self._waiting.add(future)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    return await future
            return False
        finally:
            self._waiting.discard(future)
            if not self._waiting:
                self._forget()

    def close(self) -> None:
        """Let nobody wait any more, before the descriptors are closed."""
        self._wake(False)
        self._forget()
        self._closed = True

    def _forget(self) -> None:
        if not self._closed and not self._loop.is_closed():
            for number in self._numbers:
                self._loop.remove_reader(number)

    def _rung(self) -> None:
        self._lane.quiet()
        self._wake(True)

    def _wake(self, rang: bool) -> None:  # noqa: FBT001  # what the waiting tasks return
        for future in self._waiting:
            if not future.done():
                future.set_result(rang)
