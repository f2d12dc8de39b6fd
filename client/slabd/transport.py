"""What the operations need from the world: the one interface that a blocking and an asyncio implementation share.

Every operation is written once, as a coroutine over a `Transport`. The blocking transport never suspends, so `run`
drives such a coroutine to its end in one step; asyncio drives the other one as it drives any coroutine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast

from google.protobuf.message import Message

from slabd.errors import InternalError
from slabd_proto.v1 import pool_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Rpc(Generic[Request, Response]):
    """One call of the contract."""

    name: str
    request: type[Request]
    response: type[Response]

    @property
    def path(self) -> str:
        """What gRPC calls it."""
        return f"/slabd.v1.PoolService/{self.name}"


def _rpc(name: str, request: type[Request], response: type[Response]) -> Rpc[Request, Response]:
    return Rpc(name, request, response)


OPEN_SESSION: Final = _rpc("OpenSession", pool_pb2.OpenSessionRequest, pool_pb2.OpenSessionResponse)
KEEP_ALIVE: Final = _rpc("KeepSessionAlive", pool_pb2.KeepSessionAliveRequest, pool_pb2.KeepSessionAliveResponse)
CLOSE_SESSION: Final = _rpc("CloseSession", pool_pb2.CloseSessionRequest, pool_pb2.CloseSessionResponse)
LEASE: Final = _rpc("Lease", pool_pb2.LeaseRequest, pool_pb2.LeaseResponse)
RELEASE: Final = _rpc("Release", pool_pb2.ReleaseRequest, pool_pb2.ReleaseResponse)
SHARE: Final = _rpc("Share", pool_pb2.ShareRequest, pool_pb2.ShareResponse)
OPEN: Final = _rpc("Open", pool_pb2.OpenRequest, pool_pb2.OpenResponse)
CLOSE: Final = _rpc("Close", pool_pb2.CloseRequest, pool_pb2.CloseResponse)
READ_BLOCK: Final = _rpc("ReadBlock", pool_pb2.ReadBlockRequest, pool_pb2.ReadBlockResponse)
WRITE_BLOCK: Final = _rpc("WriteBlock", pool_pb2.WriteBlockRequest, pool_pb2.WriteBlockResponse)
GET_STATS: Final = _rpc("GetStats", pool_pb2.GetStatsRequest, pool_pb2.GetStatsResponse)
GET_USABLE_SIZE: Final = _rpc("GetUsableSize", pool_pb2.GetUsableSizeRequest, pool_pb2.GetUsableSizeResponse)


class Deadline:
    """A moment on the monotonic clock, or never."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds

    @property
    def remaining(self) -> float | None:
        """How many seconds are left, not below zero; None for ever."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether nothing is left."""
        return self._at is not None and time.monotonic() >= self._at


class Transport(Protocol):
    """A connection to the daemon, and what else differs between threads and asyncio.

    Failed calls raise `grpc.RpcError`; slabd.calls translates them. Every method may be called from any thread of a
    blocking pool, or on the event loop of an asyncio one; `wake` from anywhere, even inside the garbage collector.
    """

    @property
    def target(self) -> str:
        """Where the daemon is, for messages."""

    async def unary(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """Make a call that the daemon answers at once."""

    async def waiting(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """Make a call that the daemon may let wait, and that ends on the daemon's side when it is given up here.

        Raises:
            Interrupted: the call was cut short by this process (a fork) and is to be made again.
        """

    async def download(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> list[Response]:
        """Make a call whose answer comes in pieces."""

    async def upload(self, rpc: Rpc[Request, Response], requests: Iterable[Request], seconds: float) -> Response:
        """Make a call whose request goes in pieces."""

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""

    async def do(self, blocking: Callable[[], T]) -> T:
        """Do something that blocks."""

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Keep others out of the one section that has to be single: giving back what was collected."""

    def start(self, housekeeping: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Run a coroutine in the background until it returns."""

    async def wait(self, seconds: float | None) -> None:
        """In the background: wait for `wake`, but not longer than this."""

    def wake(self) -> None:
        """End the background's `wait`. Takes no lock that its caller could hold."""

    async def close(self) -> None:
        """Hang up."""


class Interrupted(Exception):  # no error: the call goes on after it
    """A waiting call was cut short by this process and is to be made again."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Drive a coroutine over a blocking transport to its end, and return what it returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    coroutine.close()
    raise InternalError("a blocking transport must not suspend")
