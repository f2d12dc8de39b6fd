"""Clients that lie, scribble or talk nonsense: each harms itself and nobody else."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.fixtures.daemons import DaemonProcess, eventually

from slabd_proto.attach import HEADER_BYTES, MAGIC, pack_frame, unpack_header
from slabd_proto.v1 import attach_pb2, error_pb2, pool_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.puppets import Puppet

    MakePuppet = Callable[..., Puppet]


def reason_of(error: grpc.RpcError) -> str:
    """Return the reason in an error's details."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "slabd"
    return str(info.reason)


def test_noise_over_the_whole_heap(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """A client overwrites every byte it can reach, its lane too; the daemon goes on allocating correctly."""
    vandal, worker = puppet(), puppet()
    kept = [worker.do("lease", size) for size in (64, 1000, 4096, 100_000)]
    assert vandal.do("scribble") > 16 << 20
    daemon.check()
    numbers = [worker.do("lease", size) for size in (1, 100, 4096, 5000, 1 << 20, 64)]
    for byte, number in enumerate(numbers):
        worker.do("fill", number, byte)
    for byte, number in enumerate(numbers):
        assert set(bytes.fromhex(worker.do("read", number))) == {byte}
    for number in kept + numbers:
        worker.do("release", number)
    assert daemon.used == 0
    number = worker.do("lease", 16 << 20)
    assert daemon.used == 16 << 20
    worker.do("release", number)


def attach(daemon: DaemonProcess) -> socket.socket:
    """Connect to the attach socket and say nothing yet."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(60)
    connection.connect(f"{daemon.runtime_dir}/attach.sock")
    return connection


def reply(connection: socket.socket) -> attach_pb2.AttachReply:
    """Read the daemon's frame."""
    header = unpack_header(connection.recv(HEADER_BYTES, socket.MSG_WAITALL))
    return attach_pb2.AttachReply.FromString(connection.recv(header.payload_bytes, socket.MSG_WAITALL))


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", error_pb2.ERROR_REASON_INVALID_ARGUMENT),
        (bytes(16), error_pb2.ERROR_REASON_INVALID_ARGUMENT),
        (os.urandom(4096), error_pb2.ERROR_REASON_INVALID_ARGUMENT),
        (struct.pack("<8sII", MAGIC, 1, 2**32 - 1), error_pb2.ERROR_REASON_INVALID_ARGUMENT),
        (struct.pack("<8sII", MAGIC, 99, 0), error_pb2.ERROR_REASON_UNSUPPORTED_VERSION),
        (pack_frame(b"\xff" * 100), error_pb2.ERROR_REASON_INVALID_ARGUMENT),
        (
            pack_frame(attach_pb2.AttachHello(heap="no such heap").SerializeToString()),
            error_pb2.ERROR_REASON_UNKNOWN_HEAP,
        ),
        (
            pack_frame(attach_pb2.AttachHello(name="x" * 500).SerializeToString()),
            error_pb2.ERROR_REASON_INVALID_ARGUMENT,
        ),
    ],
)
def test_garbage_on_the_attach_socket(
    daemon: DaemonProcess, garbage: bytes, reason: error_pb2.ErrorReason.ValueType
) -> None:
    """Whatever is sent in place of a hello is refused with a reason, and nothing else happens."""
    with attach(daemon) as connection:
        connection.sendall(garbage)
        answer = reply(connection)
        assert (answer.reason, bool(answer.message)) == (reason, True)
        with contextlib.suppress(ConnectionResetError):  # what it had not read yet
            assert connection.recv(1) == b""
    assert not daemon.sessions()


def test_clients_that_never_say_hello(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """Connections that stay silent, or hang up in the middle, keep nobody else out."""
    silent = [attach(daemon) for _ in range(300)]
    silent[0].sendall(MAGIC)
    silent[1].close()
    puppet().do("lease", 64)
    for connection in silent:
        connection.close()


def test_talking_after_the_hello_is_ignored(daemon: DaemonProcess) -> None:
    """An attached client that writes without end keeps its session, waits for itself, and is mentioned once."""
    with attach(daemon) as connection:
        connection.sendall(pack_frame(attach_pb2.AttachHello(name="chatty").SerializeToString()))
        _, descriptors, _, _ = socket.recv_fds(connection, 65536, 8)
        assert len(descriptors) == 1
        for _ in range(5):
            connection.sendall(os.urandom(1_000_000))
        assert daemon.log_text.count("is to be silent") == 1
        assert [session.name for session in daemon.sessions()] == ["chatty"]
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                connection.send(bytes(100_000))
        os.close(descriptors[0])
    # It lives and has hung up, behind bytes that nobody has read yet.
    eventually(lambda: [session.state for session in daemon.sessions()] == [2])


def session(
    daemon: DaemonProcess, access: pool_pb2.AccessMode.ValueType = pool_pb2.ACCESS_MODE_READ_WRITE
) -> pool_pb2.SessionKey:
    """Open a session over gRPC alone."""
    return daemon.pool.OpenSession(pool_pb2.OpenSessionRequest(access=access, name="raw")).session.key


BAD_LEASES = [
    (pool_pb2.LeaseItem(size=0), "INVALID_SIZE", grpc.StatusCode.INVALID_ARGUMENT),
    (pool_pb2.LeaseItem(size=2**64 - 1), "INVALID_SIZE", grpc.StatusCode.INVALID_ARGUMENT),
    (pool_pb2.LeaseItem(size=2**62), "TOO_LARGE", grpc.StatusCode.RESOURCE_EXHAUSTED),
    (pool_pb2.LeaseItem(size=17 << 20), "TOO_LARGE", grpc.StatusCode.RESOURCE_EXHAUSTED),
    (pool_pb2.LeaseItem(size=1, alignment=3), "INVALID_ALIGNMENT", grpc.StatusCode.INVALID_ARGUMENT),
    (pool_pb2.LeaseItem(size=1, alignment=2**63 + 1), "INVALID_ALIGNMENT", grpc.StatusCode.INVALID_ARGUMENT),
]


@pytest.mark.parametrize(("item", "reason", "code"), BAD_LEASES)
def test_bad_leases_over_the_wire(
    daemon: DaemonProcess, item: pool_pb2.LeaseItem, reason: str, code: grpc.StatusCode
) -> None:
    """Each unusable request has its reason and its code, and takes nothing."""
    key = session(daemon)
    with pytest.raises(grpc.RpcError) as caught:
        daemon.pool.Lease(pool_pb2.LeaseRequest(session=key, items=[pool_pb2.LeaseItem(size=1), item]))
    assert (reason_of(caught.value), caught.value.code()) == (reason, code)
    assert daemon.used == 0


def test_bad_keys_over_the_wire(daemon: DaemonProcess) -> None:
    """No session, an unknown one, a missing secret and a wrong one are told apart."""
    key = session(daemon)
    for bad, reason in (
        (None, "UNKNOWN_SESSION"),
        (pool_pb2.SessionKey(id=key.id + 1, secret=key.secret), "UNKNOWN_SESSION"),
        (pool_pb2.SessionKey(id=key.id), "WRONG_SECRET"),
        (pool_pb2.SessionKey(id=key.id, secret=bytes(16)), "WRONG_SECRET"),
    ):
        for call in (
            lambda bad=bad: daemon.pool.Lease(pool_pb2.LeaseRequest(session=bad, items=[pool_pb2.LeaseItem(size=1)])),
            lambda bad=bad: daemon.pool.CloseSession(pool_pb2.CloseSessionRequest(session=bad)),
            lambda bad=bad: daemon.pool.Release(pool_pb2.ReleaseRequest(session=bad, blocks=[pool_pb2.BlockRef()])),
            lambda bad=bad: list(daemon.pool.ReadBlock(pool_pb2.ReadBlockRequest(session=bad))),
            lambda bad=bad: list(daemon.pool.Watch(pool_pb2.WatchRequest(session=bad))),
            lambda bad=bad: daemon.pool.WriteBlock(iter([pool_pb2.WriteBlockRequest(session=bad, data=b"x")])),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert reason_of(caught.value) == reason
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_bad_items_over_the_wire(daemon: DaemonProcess) -> None:
    """In itemised batches each unusable item has its own reason, and the good ones are done."""
    mine, other = session(daemon), session(daemon)
    lease = pool_pb2.LeaseRequest(session=mine, items=[pool_pb2.LeaseItem(size=1)] * 2)
    good, stale = (block.ref for block in daemon.pool.Lease(lease).blocks)
    daemon.pool.Release(pool_pb2.ReleaseRequest(session=mine, blocks=[stale]))
    refs = [good, good, stale, pool_pb2.BlockRef(slot=2**32 - 1, generation=2**32 - 1), pool_pb2.BlockRef()]
    foreign = daemon.pool.Release(pool_pb2.ReleaseRequest(session=other, blocks=[good])).results
    assert [result.reason for result in foreign] == [error_pb2.ERROR_REASON_UNKNOWN_BLOCK]
    results = daemon.pool.Release(pool_pb2.ReleaseRequest(session=mine, blocks=refs)).results
    assert [result.reason for result in results] == [0] + [error_pb2.ERROR_REASON_UNKNOWN_BLOCK] * 4
    handles = [pool_pb2.Handle(), pool_pb2.Handle(heap_id=1, block=good)]
    opened = daemon.pool.Open(pool_pb2.OpenRequest(session=mine, handles=handles)).results
    assert [item.result.reason for item in opened] == [error_pb2.ERROR_REASON_STALE_HANDLE] * 2
    closed = daemon.pool.Close(pool_pb2.CloseRequest(session=mine, blocks=[good])).results
    assert [result.reason for result in closed] == [error_pb2.ERROR_REASON_UNKNOWN_BLOCK]


def test_empty_and_endless_batches(daemon: DaemonProcess) -> None:
    """A batch has 1 to 4,096 items."""
    key = session(daemon)
    for number in (0, 4097):
        with pytest.raises(grpc.RpcError) as caught:
            daemon.pool.Lease(pool_pb2.LeaseRequest(session=key, items=[pool_pb2.LeaseItem(size=1)] * number))
        assert reason_of(caught.value) == "INVALID_ARGUMENT"
        with pytest.raises(grpc.RpcError) as caught:
            daemon.pool.Release(pool_pb2.ReleaseRequest(session=key, blocks=[pool_pb2.BlockRef()] * number))
        assert reason_of(caught.value) == "INVALID_ARGUMENT"


def test_bytes_past_the_end(daemon: DaemonProcess) -> None:
    """Reading and writing stop at the block's end."""
    key = session(daemon)
    block = daemon.pool.Lease(pool_pb2.LeaseRequest(session=key, items=[pool_pb2.LeaseItem(size=100)])).blocks[0]
    for offset, length in ((0, 129), (128, 1), (2**63, 1), (2**64 - 1, 2**64 - 1)):
        with pytest.raises(grpc.RpcError) as caught:
            list(
                daemon.pool.ReadBlock(
                    pool_pb2.ReadBlockRequest(session=key, block=block.ref, offset=offset, length=length)
                )
            )
        assert reason_of(caught.value) == "OUT_OF_RANGE"
        request = pool_pb2.WriteBlockRequest(session=key, block=block.ref, offset=offset, data=bytes(129))
        with pytest.raises(grpc.RpcError) as caught:
            daemon.pool.WriteBlock(iter([request]))
        assert reason_of(caught.value) == "OUT_OF_RANGE"
    with pytest.raises(grpc.RpcError) as caught:
        daemon.pool.WriteBlock(iter([]))
    assert reason_of(caught.value) == "INVALID_ARGUMENT"


def test_read_only_sessions_over_the_wire(daemon: DaemonProcess) -> None:
    """A read-only session may not lease or write."""
    key = session(daemon, pool_pb2.ACCESS_MODE_READ_ONLY)
    with pytest.raises(grpc.RpcError) as caught:
        daemon.pool.Lease(pool_pb2.LeaseRequest(session=key, items=[pool_pb2.LeaseItem(size=1)]))
    assert reason_of(caught.value) == "READ_ONLY"


def test_unparsable_grpc_payloads(daemon: DaemonProcess) -> None:
    """Bytes that are no message end their own call, and nothing else."""
    call: Any = daemon.channel.unary_unary("/slabd.v1.PoolService/Lease")
    missing: Any = daemon.channel.unary_unary("/slabd.v1.PoolService/Nothing")
    with pytest.raises(grpc.RpcError):
        call(b"\xff" * 1000, timeout=60)
    with pytest.raises(grpc.RpcError) as caught:
        missing(b"", timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    session(daemon)
