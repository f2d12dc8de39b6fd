"""The bytes of a handle: 48 of them, fixed, little-endian, with a checksum.

magic "SH" · version u8 · flags u8 (bit 0: transfer) · crc32 u32 of the rest · heap_id u64 · slot u32 · generation u32 ·
offset u64 · requested_size u64 · size u64 (the block's, 0 when not known). Its text form is base64url of the same
bytes. Pure.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from dataclasses import dataclass
from typing import Final

_HEAD: Final = struct.Struct("<2sBBI")
_BODY: Final = struct.Struct("<QIIQQQ")
_MAGIC: Final = b"SH"
_VERSION: Final = 1
_TRANSFER: Final = 1
HANDLE_BYTES: Final = _HEAD.size + _BODY.size


class HandleFormatError(ValueError):
    """The bytes or the text are no handle."""


@dataclass(frozen=True, slots=True)
class HandleFields:
    """What a handle says; the same fields as `slabd.v1.Handle`. Sizes and offsets are in bytes."""

    heap_id: int
    slot: int
    generation: int
    offset: int
    requested_size: int
    transfer: bool
    size: int = 0


def pack_handle(fields: HandleFields) -> bytes:
    """Return the HANDLE_BYTES bytes of a handle."""
    body = _BODY.pack(fields.heap_id, fields.slot, fields.generation, fields.offset, fields.requested_size, fields.size)
    flags = _TRANSFER if fields.transfer else 0
    return _HEAD.pack(_MAGIC, _VERSION, flags, zlib.crc32(body, flags)) + body


def unpack_handle(data: bytes) -> HandleFields:
    """Read a handle's bytes.

    Raises:
        HandleFormatError: they are no handle, of another version, or damaged.
    """
    if len(data) != HANDLE_BYTES:
        raise HandleFormatError(f"a handle has {HANDLE_BYTES} bytes, not {len(data)}")
    magic, version, flags, checksum = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if magic != _MAGIC or version != _VERSION or flags & ~_TRANSFER:
        raise HandleFormatError(f"no handle of version {_VERSION}: it begins with {data[:4]!r}")
    if checksum != zlib.crc32(body, flags):
        raise HandleFormatError("the handle is damaged: its checksum does not match")
    heap_id, slot, generation, offset, requested_size, size = _BODY.unpack(body)
    return HandleFields(heap_id, slot, generation, offset, requested_size, bool(flags & _TRANSFER), size)


def handle_text(data: bytes) -> str:
    """Return the text form of a handle's bytes: 64 characters that survive URLs, JSON and shells."""
    return base64.urlsafe_b64encode(data).decode("ascii")


def handle_from_text(text: str) -> bytes:
    """Return the bytes of a handle's text form.

    Raises:
        HandleFormatError: the text is not base64url.
    """
    try:
        return base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise HandleFormatError(f"no handle: {text[:80]!r}") from error
