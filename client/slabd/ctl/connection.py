"""The line to a daemon for operators: AdminService, PoolService's books and gRPC health, with slabd's errors.

It opens no session, so it can look without being seen among the sessions. No `grpc.RpcError` gets past here.
"""

from __future__ import annotations

import stat
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
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from slabd.address import Address

Request = TypeVar("Request")
Response = TypeVar("Response")
CALL_SECONDS: Final = 10.0


class Connection:
    """A line to one daemon. Each method makes one call and raises SlabdError when it fails."""

    def __init__(self, address: Address, tls: Tls | None = None, seconds: float = CALL_SECONDS) -> None:
        self.address = address
        self._seconds = seconds
        if isinstance(address, LocalAddress):
            _check_socket(address)
        channel = _channel(address, tls)
        self._channel = channel
        self._admin = admin_pb2_grpc.AdminServiceStub(channel)
        self._pool = pool_pb2_grpc.PoolServiceStub(channel)
        # grpc_health's stub makes its methods where type checkers do not look.
        self._health: Callable[..., health_pb2.HealthCheckResponse] = vars(health_pb2_grpc.HealthStub(channel))["Check"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

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


def _channel(address: Address, tls: Tls | None) -> grpc.Channel:
    try:
        secure = credentials(tls)
    except OSError as error:
        raise InvalidArgument(f"TLS: {error}") from None
    if secure is None:
        return grpc.insecure_channel(address.target, CHANNEL_OPTIONS)
    return grpc.secure_channel(address.target, secure, CHANNEL_OPTIONS)


def _check_socket(address: LocalAddress) -> None:
    """Say what is missing, before gRPC says "failed to connect to all addresses"."""
    path = Path(address.runtime_dir / runtime.GRPC_SOCKET)
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise DaemonUnavailable(f"{path} is no socket: is {address.runtime_dir} the daemon's runtime directory?")
    except (FileNotFoundError, NotADirectoryError):
        raise DaemonUnavailable(f"no daemon in {address.runtime_dir}: there is no {path.name}") from None
    except PermissionError:
        raise AccessDenied(f"{path}: permission denied; the daemon runs as another user") from None
