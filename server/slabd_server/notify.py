"""Telling the service manager: sd_notify(3), whoever reads the socket at $NOTIFY_SOCKET.

`notify` says that something has changed: READY, RELOADING, STOPPING. `Pulse` says again and again that the event loop
turns, and how full the heaps are: WATCHDOG, as often as the service manager has asked for it, and STATUS. A loop that
hangs sends nothing, and is killed and started again.

Nothing here may fail, or wait: a service manager that is gone, or does not read, is logged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STATUS_SECONDS: Final = 10.0

log = logging.getLogger(__name__)


def notify(**fields: str) -> None:
    """Send `NAME=value` lines to the service manager, if there is one. It being gone is logged, never raised."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={value}" for name, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
            channel.connect(address)
            channel.send(message.encode())
    except OSError as error:
        log.warning("cannot notify the service manager at %s: %s", address, error)


def notify_reloading() -> None:
    """Say that the configuration is being read again; READY=1 says that it has been."""
    notify(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """Return within which time the service manager wants to hear from this process, None if it does not."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None


class Pulse:
    """Tells the service manager how the daemon is, from the event loop it is made on, until `stop`.

    It beats at half the time that the watchdog allows, so that one beat may be late.
    """

    def __init__(self, status: Callable[[], str], environ: Mapping[str, str] = os.environ) -> None:
        allowed = watchdog_seconds(environ, os.getpid())
        self._status = status
        self._fields = {} if allowed is None else {"WATCHDOG": "1"}
        self._period = STATUS_SECONDS if allowed is None else min(STATUS_SECONDS, allowed / 2)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if environ.get("NOTIFY_SOCKET"):
            self._beat()

    def _beat(self) -> None:
        notify(**self._fields, STATUS=self._status())
        self._timer = self._loop.call_later(self._period, self._beat)

    def stop(self) -> None:
        """Say nothing more: what is said about stopping stays."""
        if self._timer is not None:
            self._timer.cancel()
