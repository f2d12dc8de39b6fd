"""What both kinds of gRPC channel have in common: options and credentials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

if TYPE_CHECKING:
    import os

_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_FIRST_BACKOFF_MILLISECONDS: Final = 50
_LAST_BACKOFF_MILLISECONDS: Final = 1000

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # A connection of its own for each channel: a forked child must never touch its parent's.
    ("grpc.use_local_subchannel_pool", 1),
    # Retries are ours: they carry the sequence number.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # A daemon that restarts is back within a second, and its clients notice.
    ("grpc.initial_reconnect_backoff_ms", _FIRST_BACKOFF_MILLISECONDS),
    ("grpc.min_reconnect_backoff_ms", _FIRST_BACKOFF_MILLISECONDS),
    ("grpc.max_reconnect_backoff_ms", _LAST_BACKOFF_MILLISECONDS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Credentials for a daemon over TCP: files in PEM form.

    `ca` are the roots to trust (default: the system's), `certificate` and `key` this client's own (for a daemon that
    asks for one).
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None


def credentials(tls: Tls | None) -> grpc.ChannelCredentials | None:
    """Return gRPC's form of the credentials, None for a connection in the clear.

    Raises:
        OSError: a file cannot be read.
    """
    if tls is None:
        return None
    return grpc.ssl_channel_credentials(_read(tls.ca), _read(tls.key), _read(tls.certificate))


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
