"""SIGHUP reads the configuration file again: what can change then does, and the rest is named in the log."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemons import DaemonProcess, eventually

import slabd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file."""
    path = tmp_path / "slabd.toml"
    path.write_text('log_level = "info"\n', encoding="utf-8")
    return path


@pytest.fixture
def daemon(file: Path) -> Iterator[DaemonProcess]:
    """A daemon that has read it."""
    with DaemonProcess("--config", str(file)) as running:
        yield running


def reread(daemon: DaemonProcess, file: Path, text: str, expected: str) -> None:
    """Change the file, tell the daemon, and wait until it has said something."""
    file.write_text(text, encoding="utf-8")
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: expected in daemon.log_text, expected)


def test_the_log_changes_and_nothing_else_does(daemon: DaemonProcess, file: Path) -> None:
    """Leases live on through it."""
    with slabd.connect(daemon.address) as pool, pool.lease(64):
        reread(
            daemon, file, 'log_format = "json"\n', '"message": "the configuration was read again; changed: log_format"'
        )
        reread(daemon, file, "session_limit = 7\n", "these change only with a restart: session_limit")
        reread(daemon, file, "session_limit = 7\n", "changed: nothing")
        assert daemon.used == 64


def test_a_file_that_cannot_be_used_changes_nothing(daemon: DaemonProcess, file: Path) -> None:
    """The daemon says why and goes on."""
    reread(daemon, file, "lock_level = 3\n", "the configuration stays as it was: ")
    assert daemon.used == 0
    reread(daemon, file, 'log_format = "json"\n', "changed: log_format")


def test_a_terminal_that_hangs_up_ends_a_daemon_without_a_file() -> None:
    """There is nothing to read again."""
    with DaemonProcess() as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.process.wait(60) == -signal.SIGHUP
