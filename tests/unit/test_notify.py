"""What the service manager is told: readiness, reloading, the watchdog, and never anything that can fail or wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING

import pytest

from slabd_server.notify import Pulse, notify, notify_reloading, watchdog_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's end of the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield channel


def said(manager: socket.socket) -> dict[str, str]:
    """Return the next message."""
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def test_fields_are_lines(manager: socket.socket) -> None:
    """In one datagram."""
    notify(READY="1", STATUS="serving")
    assert said(manager) == {"READY": "1", "STATUS": "serving"}


def test_abstract_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that begins with @ has no file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"\0slabd-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@slabd-test-{os.getpid()}")
        notify(STOPPING="1")
        assert said(channel) == {"STOPPING": "1"}


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without a service manager nothing is said; one that is gone is logged."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify(READY="1")
    assert not caplog.records
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    notify(READY="1")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_manager_that_does_not_read_stops_nobody(manager: socket.socket) -> None:
    """Messages that find no room are lost."""
    assert manager.fileno() >= 0
    for _ in range(5000):
        notify(STATUS="x" * 1000)


def test_reloading_says_when(manager: socket.socket) -> None:
    """Systemd wants to know by the monotonic clock."""
    notify_reloading()
    message = said(manager)
    assert message["RELOADING"] == "1"
    assert int(message["MONOTONIC_USEC"]) > 0


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_ours_or_not(environ: dict[str, str], seconds: float | None) -> None:
    """It may be meant for another process, as for our parent."""
    assert watchdog_seconds(environ, 7) == seconds


async def test_the_pulse_beats_with_the_status(manager: socket.socket) -> None:
    """At half the watchdog's time, with what there is to say at that moment; stopped, never again."""
    beats = iter(range(1000))
    pulse = Pulse(lambda: f"beat {next(beats)}", {"WATCHDOG_USEC": "20000", "NOTIFY_SOCKET": "set"})
    for number in range(3):
        message = await asyncio.to_thread(said, manager)
        assert message == {"WATCHDOG": "1", "STATUS": f"beat {number}"}
    pulse.stop()
    manager.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while said(manager):
            pass
    await asyncio.sleep(0.05)
    with pytest.raises(BlockingIOError):
        said(manager)


async def test_without_a_watchdog_there_is_a_status(manager: socket.socket) -> None:
    """And without a service manager, nothing."""
    Pulse(lambda: "fine", {"NOTIFY_SOCKET": "set"}).stop()
    assert said(manager) == {"STATUS": "fine"}
    Pulse(lambda: pytest.fail("nobody asked"), {}).stop()
