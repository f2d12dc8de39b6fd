"""Where the daemon is: what a user may write, read into one of two addresses. Pure: the environment is a parameter.

A runtime directory (a path, or `unix:/dir`) means the unix sockets in it and a mapping; the path of one of these
sockets means its directory. `tcp://host:port`, or `host:port`, means gRPC alone.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from slabd.errors import InvalidAddress
from slabd_proto import runtime

if TYPE_CHECKING:
    from collections.abc import Mapping

ADDRESS_VARIABLE: Final = "SLABD_ADDRESS"
_HOST_PORT: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^/\[\]:\s]+):(?P<port>[0-9]{1,5})\Z")
_SCHEME: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
_MAX_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """A runtime directory of this machine."""

    runtime_dir: PurePosixPath

    @property
    def attach_path(self) -> PurePosixPath:
        """The socket that hands out descriptors."""
        return self.runtime_dir / runtime.ATTACH_SOCKET

    @property
    def target(self) -> str:
        """What gRPC calls the daemon's socket for clients."""
        return self.target_of(runtime.GRPC_SOCKET)

    def target_of(self, name: str) -> str:
        """Return what gRPC calls a socket: a URI, so that blanks and percent signs in a path survive."""
        return "unix:" + quote(str(self.runtime_dir / name))

    def __str__(self) -> str:
        return f"unix:{self.runtime_dir}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A daemon over TCP: its heap cannot be mapped."""

    host: str
    port: int

    @property
    def target(self) -> str:
        """What gRPC calls it."""
        return f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"tcp://{self.target}"


Address = LocalAddress | TcpAddress


def resolve(address: str | os.PathLike[str] | None, environ: Mapping[str, str] | None = None) -> Address:
    """Return the address that `address` names, or, when it is None, `$SLABD_ADDRESS`, or the default runtime directory.

    Raises:
        InvalidAddress: it names no place where a daemon could be.
    """
    environ = os.environ if environ is None else environ
    if address is None:
        address = environ.get(ADDRESS_VARIABLE) or None
    if address is None:
        return _local(str(runtime.default_runtime_dir(environ, os.geteuid(), runtime.find_temporary_dir())))
    try:
        return parse(os.fsdecode(address))
    except TypeError as error:
        raise InvalidAddress(f"an address is a path or a text: {error}") from None


def parse(text: str) -> Address:
    """Read an address.

    Raises:
        InvalidAddress: it names no place where a daemon could be.
    """
    if not text:
        raise InvalidAddress("an address is a runtime directory or host:port, not an empty text")
    if text.startswith("tcp://"):
        return _tcp(text.removeprefix("tcp://"), text)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        # The URI form: unix:///run/slabd.
        return _local("/" + path.lstrip("/") if path.startswith("//") else path)
    if scheme := _SCHEME.match(text):
        raise InvalidAddress(f"{text!r}: slabd speaks unix: and tcp://, not {scheme['scheme']}://")
    return _tcp(text, text) if _HOST_PORT.match(text) else _local(text)


def _tcp(authority: str, text: str) -> TcpAddress:
    match = _HOST_PORT.match(authority)
    if match is None or not 0 < int(match["port"]) <= _MAX_PORT:
        raise InvalidAddress(f"{text!r}: a TCP address is host:port with a port from 1 to {_MAX_PORT}")
    return TcpAddress(match["host"], int(match["port"]))


def _local(path: str) -> LocalAddress:
    if not path or "\0" in path:
        raise InvalidAddress(f"{path!r} is no directory's name")
    # Absolute from the start: the process may change its directory before a forked child connects anew.
    directory = PurePosixPath(os.path.abspath(path))  # noqa: PTH100  # a path of text, and resolve() would follow links
    if directory.name in runtime.SOCKETS:
        directory = directory.parent
    longest = str(directory / runtime.LONGEST_SOCKET)
    if len(os.fsencode(longest)) > runtime.MAX_SOCKET_PATH_BYTES:
        raise InvalidAddress(
            f"{longest} has {len(os.fsencode(longest))} bytes; "
            f"a socket's path has at most {runtime.MAX_SOCKET_PATH_BYTES}: use a shorter runtime directory"
        )
    return LocalAddress(directory)
