"""The bare echo: a grpc.aio server that does nothing with what it gets, and calls to it with messages as long as ours.

Bytes go in and come out, without protobuf. The server has uvloop, as the daemon does; the client is a blocking channel
with the options of slabd's own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import grpc

from slabd.channels import CHANNEL_OPTIONS
from slabd.ctl.bench.peers.ours import SMALL
from slabd.ctl.bench.rounds import Work
from slabd_proto.v1 import pool_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from slabd.ctl.bench.messages import Place

_SERVICE: Final = "slabd.bench.Echo"
_METHOD: Final = "Echo"
_SECONDS: Final = 30.0
_SOCKET_BYTES: Final = 64
# How long the answer shall be stands in the request's first bytes.
_LENGTH_BYTES: Final = 4
_SECRET: Final = bytes(16)
_SOME_SLOT: Final = 1000
_SOME_OFFSET: Final = 1 << 20
_CALL_SITE: Final = f"{__file__}:100 in do"


def serve(pipe: Connection, target: str) -> None:
    """Run the server until the parent hangs up. Runs in a child process of its own."""
    import uvloop  # noqa: PLC0415  # as the daemon: only the process that runs it needs it

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(pipe, target))


async def _serve(pipe: Connection, target: str) -> None:
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
    server.add_insecure_port(target)
    await server.start()
    pipe.send("ready")
    hung_up = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), hung_up.set)
    await hung_up.wait()
    asyncio.get_running_loop().remove_reader(pipe.fileno())
    await server.stop(None)


async def _echo(request: bytes, _context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return bytes(int.from_bytes(request[:_LENGTH_BYTES], "big"))


@contextmanager
def calls(place: Place, blocks: int) -> Iterator[Work]:
    """Make two calls, as long as those that lease and release so many blocks."""
    lease, release = message_sizes(blocks)
    first, second = request_for(*lease), request_for(*release)
    with grpc.insecure_channel(place.echo_target, CHANNEL_OPTIONS) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{_SERVICE}/{_METHOD}")

        def do() -> None:
            call(first, timeout=_SECONDS)
            call(second, timeout=_SECONDS)

        yield Work(do)


@contextmanager
def through_a_socket(_place: Place, _blocks: int) -> Iterator[Work]:
    """Send 64 bytes to a process that sends them back."""
    ours, theirs = socket.socketpair()
    # Never by fork: this process has gRPC's threads.
    child = multiprocessing.get_context("spawn").Process(target=send_back, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    message = bytes(_SOCKET_BYTES)
    with ours:

        def do() -> None:
            ours.sendall(message)
            ours.recv(_SOCKET_BYTES)

        do()
        yield Work(do)
    child.join()


def send_back(connection: socket.socket) -> None:
    """Send back what comes, until the other side hangs up."""
    with connection:
        while data := connection.recv(_SOCKET_BYTES):
            connection.sendall(data)


def request_for(request_bytes: int, answer_bytes: int) -> bytes:
    """Return a request of that length which asks for an answer of that length."""
    return answer_bytes.to_bytes(_LENGTH_BYTES, "big").ljust(request_bytes, b"\0")


def message_sizes(blocks: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the bytes of request and answer, of a lease and of a release of so many blocks of 64 bytes."""
    key = pool_pb2.SessionKey(id=os.getpid(), secret=_SECRET)
    refs = [pool_pb2.BlockRef(slot=_SOME_SLOT + at, generation=_SOME_SLOT) for at in range(blocks)]
    items = [pool_pb2.LeaseItem(size=SMALL, alignment=1)] * blocks
    granted = [
        pool_pb2.Block(ref=ref, offset=_SOME_OFFSET + SMALL * at, requested_size=SMALL, size=SMALL)
        for at, ref in enumerate(refs)
    ]
    lease = pool_pb2.LeaseRequest(session=key, sequence=_SOME_SLOT, items=items, call_site=_CALL_SITE)
    release = pool_pb2.ReleaseRequest(session=key, sequence=_SOME_SLOT, blocks=refs)
    released = pool_pb2.ReleaseResponse(results=[pool_pb2.ItemResult()] * blocks)
    return (
        (lease.ByteSize(), pool_pb2.LeaseResponse(blocks=granted).ByteSize()),
        (release.ByteSize(), released.ByteSize()),
    )
