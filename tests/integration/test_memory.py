"""Memory given back to the system, taken again, and cleared between sessions: on real pages."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemons import DaemonProcess, eventually

import slabd
from slabd_proto.v1 import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


@pytest.fixture
def giving() -> Iterator[DaemonProcess]:
    """A daemon that gives memory back after a tenth of a second."""
    with DaemonProcess("--give-back-seconds", "0.1", heap_size="64MiB") as daemon:
        yield daemon
        daemon.check()


def resident(daemon: DaemonProcess) -> int:
    """Return how many bytes of the heap have memory behind them."""
    return int(daemon.admin.ListHeaps(admin_pb2.ListHeapsRequest()).heaps[0].resident_bytes)


def test_a_burst_does_not_hold_memory_for_ever(giving: DaemonProcess) -> None:
    """Free memory goes back to the system; leased neighbours keep every byte."""
    with slabd.connect(giving.address) as pool:
        leases = pool.lease_many([MIB] * 60)
        for number, lease in enumerate(leases):
            lease.view[:] = bytes([number]) * MIB
        kept = leases[::7]
        pool.release_many([lease for lease in leases if lease not in kept])
        eventually(lambda: resident(giving) <= len(kept) * MIB + MIB, "the rest goes back")
        for lease in kept:
            assert set(bytes(lease.view)) == {leases.index(lease)}
        again = pool.lease_many([MIB] * 40)
        assert resident(giving) >= (len(kept) + 40) * MIB  # before the client has touched a byte
        for lease in again:
            lease.view[:] = b"x" * MIB
        for lease in kept:
            assert set(bytes(lease.view)) == {leases.index(lease)}
        pool.release_many([*kept, *again])
        eventually(lambda: resident(giving) == 0, "everything goes back")


def test_slabs_go_back_too(giving: DaemonProcess) -> None:
    """The pages of small blocks go the same way."""
    with slabd.connect(giving.address) as pool:
        for _ in range(3):
            leases = pool.lease_many([100] * 4000)
            for lease in leases[:10]:
                lease.view[:] = os.urandom(100)
            pool.release_many(leases)
        eventually(lambda: resident(giving) == 0, "everything goes back")
        with pool.lease(64 * MIB) as whole:
            whole.view[::4096] = b"y" * (64 * MIB // 4096)


def test_without_the_option_memory_stays(daemon: DaemonProcess) -> None:
    """By default a heap's memory is the daemon's for as long as it lives."""
    with slabd.connect(daemon.address) as pool:
        pool.lease(8 * MIB).release()
        assert resident(daemon) == 16 * MIB


@pytest.mark.parametrize(("clear", "found"), [("sessions", {0}), ("users", {7})])
def test_leftovers(clear: str, found: set[int]) -> None:
    """What one session left in a block, another one of the same user finds, or not, as the option says."""
    with DaemonProcess("--clear", clear) as daemon:
        with slabd.connect(daemon.address) as first:
            lease = first.lease(16 * MIB)
            lease.view[:] = b"\x07" * (16 * MIB)
        with slabd.connect(daemon.address) as second, second.lease(16 * MIB) as lease:
            assert set(bytes(lease.view)) == found


def test_a_stranger_finds_nothing() -> None:
    """A session over gRPC alone, which no user vouches for, is a stranger: what others left is cleared."""
    with DaemonProcess("--listen", "127.0.0.1:0", "--remote", "read-write") as daemon:
        with slabd.connect(daemon.address) as pool, pool.lease(16 * MIB) as lease:
            lease.view[:] = b"\x07" * (16 * MIB)
        _, address = daemon.status().addresses
        with slabd.connect(f"tcp://{address}") as pool, pool.lease(MIB) as lease:
            assert lease.read() == bytes(MIB)
