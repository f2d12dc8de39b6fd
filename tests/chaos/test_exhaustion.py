"""A daemon that has run out of something refuses for a while, and recovers."""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.fixtures.daemons import DaemonProcess, eventually

import slabd
from slabd_proto.v1 import pool_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def connected(daemon: DaemonProcess, most: int, seconds: float = 60.0) -> Iterator[list[slabd.Pool]]:
    """Connect until it fails, or takes so long, at most so often."""
    pools: list[slabd.Pool] = []
    try:
        with contextlib.suppress(slabd.SlabdError):
            while len(pools) < most:
                pools.append(slabd.connect(daemon.address, connect_timeout=seconds, call_timeout=seconds))
                pools[-1].lease(64).release()
        yield pools
    finally:
        for pool in pools:
            pool.close()


def test_too_few_descriptors(daemon: DaemonProcess) -> None:
    """Without descriptors new clients wait or give up, those that are there go on, and afterwards all is well."""
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (60, 60))
    with connected(daemon, 60, seconds=5.0) as pools:
        assert 0 < len(pools) < 60
        pools[0].lease(64).release()
    eventually(lambda: not daemon.sessions())
    with slabd.connect(daemon.address) as pool:
        pool.lease(64).release()
    assert "Traceback" not in daemon.log_text


def test_too_many_sessions() -> None:
    """The limit of sessions is an error with its own class, and one that ends makes room."""
    with DaemonProcess("--session-limit", "3") as daemon, connected(daemon, 3) as pools:
        with pytest.raises(slabd.TooManySessions):
            slabd.connect(daemon.address)
        pools.pop().close()
        slabd.connect(daemon.address).close()


def test_readers_that_do_not_read(daemon: DaemonProcess) -> None:
    """Streams that nobody drains hold no block: their right to it is looked at again before each piece."""
    key = daemon.pool.OpenSession(pool_pb2.OpenSessionRequest()).session.key
    request = pool_pb2.LeaseRequest(session=key, items=[pool_pb2.LeaseItem(size=8 << 20)])
    block = daemon.pool.Lease(request).blocks[0]
    streams = [daemon.pool.ReadBlock(pool_pb2.ReadBlockRequest(session=key, block=block.ref)) for _ in range(20)]
    for stream in streams:
        next(stream)
    daemon.pool.Release(pool_pb2.ReleaseRequest(session=key, blocks=[block.ref]))
    assert daemon.used == 0
    for stream in streams:
        with pytest.raises(grpc.RpcError) as caught:
            for _ in stream:
                pass
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
