"""The gRPC servers: one for whoever may connect, one for operators. Bound, started, and stopped together.

gRPC tells a handler neither who is on the other side of a unix connection nor on which of a server's sockets a call
came in (`context.peer()` is "unix:" for all of them). So what a caller may do is a matter of the server that it has
reached, and which ones it can reach is the kernel's decision, by the permissions of their sockets:

    common      slabd.sock, TCP                                   PoolService, health, reflection
    operators   admin.sock, TCP if clients need a certificate     AdminService too

Both serve the same objects through the same layers, but for the Guard, which only the common one has.

Must not decide anything about a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from slabd_proto.v1 import admin_pb2, admin_pb2_grpc, pool_pb2, pool_pb2_grpc
from slabd_server.errors import StartError
from slabd_server.interceptors import Guard, Layers, Meter, Narrator, Translator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from grpc_health.v1._async import HealthServicer
    from prometheus_client import CollectorRegistry

    from slabd_server.admin import AdminService
    from slabd_server.config import Config
    from slabd_server.rundir import RuntimeDir
    from slabd_server.service import PoolService

_POOL: Final = pool_pb2.DESCRIPTOR.services_by_name["PoolService"]
_ADMIN: Final = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
_HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]
POOL: Final[str] = _POOL.full_name
ADMIN: Final[str] = _ADMIN.full_name
_STOP_GRACE_SECONDS: Final = 1.0
# Two daemons must not share a TCP port: without this the kernel spreads clients over both.
_OPTIONS: Final = (("grpc.so_reuseport", 0),)


class _Served(NamedTuple):
    """A server, its unix socket with its permissions, and the services that reflection lists."""

    server: grpc.aio.Server
    socket: Path
    mode: int
    names: tuple[str, ...]


class Servers:
    """Both servers. `bind`, `serve`, `start`, `stop`, in this order; `stop` at any time."""

    def __init__(self, config: Config, rundir: RuntimeDir, registry: CollectorRegistry) -> None:
        self._config = config
        meter = Meter(registry)
        meter.expect((_POOL, _ADMIN, _HEALTH))
        layers = (meter, Narrator(), Translator())
        common, operators = Layers(*layers, Guard()), Layers(*layers)
        names = (POOL, _HEALTH.full_name, reflection.SERVICE_NAME)
        self._common = _Served(_server(common), rundir.grpc_socket, config.socket_mode, names)
        self._operators = _Served(_server(operators), rundir.admin_socket, config.admin_socket_mode, (*names, ADMIN))
        self._both = (self._common, self._operators)

    def bind(self) -> list[str]:
        """Take the addresses, and return those at which clients are answered.

        Raises:
            StartError: one of them cannot be had.
        """
        for each in self._both:
            with _creating(each.mode):
                _bind(each.server, f"unix:{each.socket}", None)
        credentials = _credentials(self._config)
        # Every client that gets through has shown a certificate: gRPC refuses the others in the handshake.
        tcp = self._common if self._config.tls_client_ca is None else self._operators
        return [
            f"unix:{self._common.socket}",
            *(_bind(tcp.server, str(address), credentials) for address in self._config.listen),
        ]

    def serve(self, pool: PoolService, admin: AdminService, health: HealthServicer) -> None:
        """Say what is served."""
        for each in self._both:
            pool_pb2_grpc.add_PoolServiceServicer_to_server(pool, each.server)
            # On the common server too, although nobody gets past its guard: who asks there is told where to ask.
            admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, each.server)
            health_pb2_grpc.add_HealthServicer_to_server(health, each.server)
            reflection.enable_server_reflection(each.names, each.server)

    async def start(self) -> None:
        """Answer."""
        for each in self._both:
            with _creating(each.mode):
                await each.server.start()
            each.socket.chmod(each.mode)

    async def stop(self) -> None:
        """Hang up, after a moment for the answers under way."""
        await asyncio.gather(*(each.server.stop(_STOP_GRACE_SECONDS) for each in self._both))


def _server(layers: Layers) -> grpc.aio.Server:
    return grpc.aio.server(interceptors=[layers], options=_OPTIONS)


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise StartError(f"cannot listen on {address}: {error}; choose another --listen or --runtime-dir") from None
    return f"{address.rsplit(':', 1)[0]}:{port}"


@contextlib.contextmanager
def _creating(mode: int) -> Iterator[None]:
    """Let the sockets that are made meanwhile have these permissions from their first moment."""
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def _credentials(config: Config) -> grpc.ServerCredentials | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    try:
        pair = (config.tls_key.read_bytes(), config.tls_cert.read_bytes())
        client_ca = None if config.tls_client_ca is None else config.tls_client_ca.read_bytes()
    except OSError as error:
        raise StartError(f"cannot read {error.filename}: {error.strerror}") from None
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)
