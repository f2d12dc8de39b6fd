"""Fixtures that every kind of test may use: a daemon, and clients in processes of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemons import DaemonProcess
from tests.fixtures.puppets import Puppet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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

    def make(*, read_only: bool = False) -> Puppet:
        made.append(Puppet(daemon.address, read_only=read_only))
        return made[-1]

    yield make
    for each in made:
        each.close()
