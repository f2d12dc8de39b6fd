"""The frames of the attach socket: what a client and the daemon say before descriptors change hands, and at the end.

A frame is a sixteen-byte header and a payload: the magic b"SLABDATT", a little-endian uint32 version, a little-endian
uint32 payload length. The payload is an `AttachHello` (client) or an `AttachReply` (daemon); the client's goodbye has
none. proto/slabd/v1/attach.proto describes the exchange. Pure: bytes in, bytes out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"SLABDATT"
VERSION: Final = 1
MAX_PAYLOAD_BYTES: Final = 64 * 1024
MAX_DESCRIPTORS: Final = 8

_HEADER: Final = struct.Struct("<8sII")
HEADER_BYTES: Final = _HEADER.size


class FrameError(ValueError):
    """The bytes on the attach socket are no frame."""


class FrameVersionError(FrameError):
    """The bytes are a frame of a version that this side does not speak."""


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The header of a frame: `payload_bytes` more bytes follow it."""

    version: int
    payload_bytes: int


def pack_frame(payload: bytes, version: int = VERSION) -> bytes:
    """Return the frame that carries `payload`, at most MAX_PAYLOAD_BYTES long.

    Raises:
        FrameError: the payload is too long.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise FrameError(f"a payload of {len(payload)} bytes is longer than {MAX_PAYLOAD_BYTES}")
    return _HEADER.pack(MAGIC, version, len(payload)) + payload


GOODBYE: Final = pack_frame(b"")


def unpack_header(header: bytes) -> FrameHeader:
    """Read a frame's header from exactly HEADER_BYTES bytes.

    Raises:
        FrameVersionError: the other side speaks another version.
        FrameError: the bytes are no frame header, or announce a payload longer than MAX_PAYLOAD_BYTES.
    """
    if len(header) != HEADER_BYTES:
        raise FrameError(f"a frame header has {HEADER_BYTES} bytes, not {len(header)}")
    magic, version, payload_bytes = _HEADER.unpack(header)
    if magic != MAGIC:
        raise FrameError(f"a frame begins with {MAGIC!r}, not {magic!r}")
    if version != VERSION:
        raise FrameVersionError(f"this side speaks version {VERSION} of the attach protocol, the other {version}")
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise FrameError(f"a payload of {payload_bytes} bytes is longer than {MAX_PAYLOAD_BYTES}")
    return FrameHeader(version, payload_bytes)
