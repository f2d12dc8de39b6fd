"""Large blocks that must be cleared or made to exist first, by a real daemon: it serves meanwhile, and loses none."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tests.fixtures.daemons import PATIENCE_SECONDS, DaemonProcess, eventually, soiled
from tests.fixtures.puppets import Puppet

import slabd
from slabd_proto.v1 import admin_pb2, pool_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
LARGE = 192 * MIB


@pytest.fixture
def clearing() -> Iterator[DaemonProcess]:
    """A daemon of a heap of 256 MiB, which clears what somebody has left everywhere in it."""
    with soiled(256 * MIB) as daemon:
        yield daemon


def open_session(daemon: DaemonProcess) -> pool_pb2.SessionKey:
    """Open a session over gRPC alone."""
    request = pool_pb2.OpenSessionRequest(name="asks", access=pool_pb2.ACCESS_MODE_READ_WRITE)
    return daemon.pool.OpenSession(request, timeout=PATIENCE_SECONDS).session.key


def begin_lease(daemon: DaemonProcess, session: pool_pb2.SessionKey) -> Any:
    """Ask for a large block, and return when the daemon has it in the works."""
    request = pool_pb2.LeaseRequest(session=session, items=[pool_pb2.LeaseItem(size=LARGE)])
    call = daemon.pool.Lease.future(request, timeout=PATIENCE_SECONDS)
    eventually(lambda: daemon.used == LARGE or call.done(), "the block is taken")
    return call


def test_nothing_is_found_in_a_large_block(clearing: DaemonProcess) -> None:
    """Every byte that somebody left is gone before it is granted."""
    with slabd.connect(clearing.address) as pool, pool.lease(LARGE) as lease:
        assert not any(lease.view[:: MIB // 4])
        assert len(clearing.leases()) == 1


def test_pages_given_back_exist_when_a_large_block_is_granted() -> None:
    """As its size says, before the client has touched a byte."""
    with DaemonProcess("--give-back-seconds", "0.1", heap_size="256MiB") as daemon:
        heap = daemon.admin.ListHeaps
        with slabd.connect(daemon.address) as pool:
            pool.lease(LARGE).release()

            def resident() -> int:
                return int(heap(admin_pb2.ListHeapsRequest()).heaps[0].resident_bytes)

            eventually(lambda: resident() == 0, "everything goes back")
            with pool.lease(LARGE) as lease:
                assert resident() >= LARGE
                lease.view[::4096] = b"x" * (LARGE // 4096)
        daemon.check()


@pytest.mark.parametrize("attempt", range(3))
def test_a_call_cancelled_meanwhile_leaves_nothing(clearing: DaemonProcess, attempt: int) -> None:
    """Whenever that is: before the thread, in the midst of it, or just as it is done."""
    session = open_session(clearing)
    call = begin_lease(clearing, session)
    for _ in range(attempt * 3):
        clearing.check()
    call.cancel()
    if not call.cancelled():
        clearing.pool.CloseSession(pool_pb2.CloseSessionRequest(session=session), timeout=PATIENCE_SECONDS)
    eventually(lambda: clearing.used == 0, "the block comes back")
    clearing.check()
    with slabd.connect(clearing.address) as pool, pool.lease(256 * MIB) as lease:
        assert not any(lease.view[:: MIB // 4])


def test_a_session_that_ends_meanwhile_leaves_nothing(clearing: DaemonProcess) -> None:
    """Its call is told so at once, and the block comes back when the thread has left it."""
    session = open_session(clearing)
    call = begin_lease(clearing, session)
    clearing.pool.CloseSession(pool_pb2.CloseSessionRequest(session=session), timeout=PATIENCE_SECONDS)
    assert call.exception() is None or call.exception().code() is grpc.StatusCode.UNAUTHENTICATED
    eventually(lambda: clearing.used == 0, "the block comes back")


def test_others_are_served_while_a_block_is_prepared(clearing: DaemonProcess) -> None:
    """Small leases come and go, before the large one is answered as well as after."""
    call = begin_lease(clearing, open_session(clearing))
    with slabd.connect(clearing.address) as pool:
        for _ in range(20):
            with pool.lease(1000) as lease:
                assert not any(lease.view)
    assert call.result().blocks[0].size == LARGE


def test_a_daemon_that_is_stopped_meanwhile_ends(clearing: DaemonProcess) -> None:
    """With the status of an orderly end, and without a word of a defect."""
    call = begin_lease(clearing, open_session(clearing))
    for _ in range(2):
        clearing.process.send_signal(signal.SIGTERM)
    assert clearing.process.wait(PATIENCE_SECONDS) == 0
    assert call.exception() is None or isinstance(call.exception(), grpc.RpcError)
    assert "Traceback" not in clearing.log_text


def test_a_client_killed_meanwhile_leaves_nothing(clearing: DaemonProcess) -> None:
    """Its block is free again once it has been cleared, and not before; the next one finds nothing in it."""
    with Puppet(clearing.address) as puppet:
        puppet.tell("lease", LARGE)
        eventually(lambda: clearing.used >= LARGE, "the block is taken")
        puppet.kill()
    eventually(lambda: clearing.used == 0 and not clearing.sessions(), "the block comes back")
    clearing.check()
    with slabd.connect(clearing.address) as pool, pool.lease(256 * MIB) as lease:
        assert not any(lease.view[:: MIB // 4])
