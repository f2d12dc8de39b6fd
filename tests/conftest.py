"""Fixtures that every kind of test may use: a daemon, and clients in processes of their own."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import hypothesis
import pytest
from tests.fixtures.daemons import DaemonProcess
from tests.fixtures.puppets import Puppet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("slabd", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("slabd")


@pytest.fixture(scope="session", autouse=True)
def heard_signals() -> Iterator[None]:
    """Let processes that tests start hear Ctrl-C and hang-ups, which `nohup` and background shells have us ignore."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: lambda _number, _frame: None}
    ignored = [number for number in handlers if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, handlers[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    """A fresh daemon with a heap of 16 MiB; afterwards its books must balance, if it still lives."""
    with DaemonProcess() as running:
        yield running
        if running.process.poll() is None:
            running.check()


@pytest.fixture
def puppet(daemon: DaemonProcess) -> Iterator[Callable[..., Puppet]]:
    """Make clients of `daemon` in processes of their own; they are killed afterwards."""
    made: list[Puppet] = []

    def make(*, read_only: bool = False, **options: object) -> Puppet:
        made.append(Puppet(daemon.address, read_only=read_only, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
