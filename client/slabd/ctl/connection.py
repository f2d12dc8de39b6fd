"""The line to a daemon for operators: AdminService, PoolService's books and gRPC health, with slabd's errors.

It opens no session, so it can look without being seen among the sessions. No `grpc.RpcError` gets past here.

A local daemon has a socket for operators and one for clients. Health and books are asked on the latter, so that a
probe needs no right to operate anything; whoever may reach only the operators' socket is answered there. A socket is
looked at when it is first needed.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from slabd.address import LocalAddress
from slabd.channels import CHANNEL_OPTIONS, Tls, credentials
from slabd.errors import AccessDenied, DaemonUnavailable, InvalidArgument
from slabd.failures import error_of_rpc
from slabd_proto import runtime
from slabd_proto.v1 import admin_pb2, admin_pb2_grpc, pool_pb2, pool_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import PurePath
    from types import TracebackType
    from typing import Self

    from slabd.address import Address
    from slabd.errors import SlabdError

Request = TypeVar("Request")
Response = TypeVar("Response")
CALL_SECONDS: Final = 10.0
_WHERE: Final = "run slabctl where the daemon runs, or give it the whole runtime directory"
_REMEDY: Final = {
    runtime.ADMIN_SOCKET: "be the daemon's own user or root, or have its admin_socket_mode let this user in",
    runtime.GRPC_SOCKET: "be the daemon's own user or root, or have its socket_mode let this user in",
}


class Connection:
    """A line to one daemon. Each method makes one call and raises SlabdError when it fails."""

    def __init__(self, address: Address, tls: Tls | None = None, seconds: float = CALL_SECONDS) -> None:
        self.address = address
        self._seconds = seconds
        self._secure = _credentials(tls)
        self._channels: dict[str, grpc.Channel] = {}

    @cached_property
    def _admin(self) -> admin_pb2_grpc.AdminServiceStub:
        return admin_pb2_grpc.AdminServiceStub(self._channel(runtime.ADMIN_SOCKET))

    @cached_property
    def _pool(self) -> pool_pb2_grpc.PoolServiceStub:
        return pool_pb2_grpc.PoolServiceStub(self._channel(runtime.GRPC_SOCKET, runtime.ADMIN_SOCKET))

    @cached_property
    def _health(self) -> Callable[..., health_pb2.HealthCheckResponse]:
        stub = health_pb2_grpc.HealthStub(self._channel(runtime.GRPC_SOCKET, runtime.ADMIN_SOCKET))
        # grpc_health's stub makes its methods where type checkers do not look.
        check: Callable[..., health_pb2.HealthCheckResponse] = vars(stub)["Check"]
        return check

    def _channel(self, *sockets: str) -> grpc.Channel:
        """Return the channel to the first of these sockets that this user may reach; over TCP there is one channel."""
        target = self.address.target
        if isinstance(self.address, LocalAddress):
            target = self.address.target_of(_reachable(self.address.runtime_dir, sockets))
        if target not in self._channels:
            self._channels[target] = _open(target, self._secure)
        return self._channels[target]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        for channel in self._channels.values():
            channel.close()

    def status(self) -> admin_pb2.GetStatusResponse:
        """Describe the daemon and its heaps."""
        return self._call(self._admin.GetStatus, admin_pb2.GetStatusRequest())

    def sessions(self, heap: str = "") -> admin_pb2.ListSessionsResponse:
        """List sessions, the one that holds most first."""
        return self._call(self._admin.ListSessions, admin_pb2.ListSessionsRequest(heap=heap))

    def leases(self, heap: str = "", session_id: int = 0, limit: int = 0) -> admin_pb2.ListLeasesResponse:
        """List granted blocks, the oldest first."""
        request = admin_pb2.ListLeasesRequest(heap=heap, session_id=session_id, limit=limit)
        return self._call(self._admin.ListLeases, request)

    def heaps(self) -> admin_pb2.ListHeapsResponse:
        """List heaps with their size classes."""
        return self._call(self._admin.ListHeaps, admin_pb2.ListHeapsRequest())

    def check(self) -> admin_pb2.CheckResponse:
        """Check every structure of the daemon."""
        return self._call(self._admin.Check, admin_pb2.CheckRequest())

    def drain(self, timeout: float | None, *, resume: bool) -> admin_pb2.DrainResponse:
        """Stop taking new work and wait `timeout` seconds for the last block, or take work again."""
        request = admin_pb2.DrainRequest(resume=resume)
        if timeout is not None:
            waiting = Duration()
            waiting.FromMilliseconds(round(timeout * 1000))
            request.timeout.CopyFrom(waiting)
        return self._call(self._admin.Drain, request, self._seconds + (timeout or 0))

    def end_session(self, session_id: int) -> admin_pb2.EndSessionResponse:
        """End a session by force."""
        return self._call(self._admin.EndSession, admin_pb2.EndSessionRequest(session_id=session_id))

    def books(self) -> pool_pb2.GetStatsResponse:
        """Read the books of every heap, one consistent snapshot."""
        return self._call(self._pool.GetStats, pool_pb2.GetStatsRequest())

    def health(self, service: str = "") -> health_pb2.HealthCheckResponse:
        """Ask whether the daemon serves; a service it does not know is answered, not raised."""
        try:
            return self._health(health_pb2.HealthCheckRequest(service=service), timeout=self._seconds)
        except grpc.RpcError as failure:
            if cast("grpc.Call", failure).code() == grpc.StatusCode.NOT_FOUND:
                return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            raise error_of_rpc(failure, str(self.address)) from None

    def _call(self, method: Callable[..., Response], request: Request, seconds: float | None = None) -> Response:
        try:
            return method(request, timeout=seconds or self._seconds)
        except grpc.RpcError as failure:
            raise error_of_rpc(failure, str(self.address)) from None


def _credentials(tls: Tls | None) -> grpc.ChannelCredentials | None:
    try:
        return credentials(tls)
    except OSError as error:
        raise InvalidArgument(f"TLS: {error}") from None


def _open(target: str, secure: grpc.ChannelCredentials | None) -> grpc.Channel:
    if secure is None:
        return grpc.insecure_channel(target, CHANNEL_OPTIONS)
    return grpc.secure_channel(target, secure, CHANNEL_OPTIONS)


def _reachable(runtime_dir: PurePath, sockets: Sequence[str]) -> str:
    """Return the first socket that can be connected to; else say what is wrong with the first, before gRPC does.

    gRPC would say "failed to connect to all addresses".
    """
    problems: list[SlabdError] = []
    for name in sockets:
        problem = _problem(Path(runtime_dir, name))
        if problem is None:
            return name
        problems.append(problem)
    raise problems[0]


def _problem(path: Path) -> SlabdError | None:
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return _missing(path)
    except PermissionError:
        return AccessDenied(f"{path}: permission denied; the daemon runs as another user")
    if not is_socket:
        return DaemonUnavailable(f"{path} is no socket: is {path.parent} the daemon's runtime directory?")
    if not os.access(path, os.W_OK, effective_ids=True):
        return AccessDenied(f"{path}: permission denied; {_REMEDY[path.name]}")
    if not _answers(path):
        return DaemonUnavailable(
            f"no daemon in {path.parent}: nobody listens on {path.name}, which a daemon that was killed has left"
        )
    return None


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


def _missing(path: Path) -> SlabdError:
    if path.name != runtime.GRPC_SOCKET and path.with_name(runtime.GRPC_SOCKET).exists():
        return AccessDenied(
            f"{path.parent} has a {runtime.GRPC_SOCKET} but no {path.name}, where operators are answered; {_WHERE}"
        )
    return DaemonUnavailable(f"no daemon in {path.parent}: there is no {path.name}")
