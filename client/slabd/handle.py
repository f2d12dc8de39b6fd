"""The handle: what a consumer needs to open a shared block.

Plain data of 48 bytes that may travel by any road: a queue, a pipe, a file name, JSON. It holds nothing and keeps
nothing alive; the block waits for the promised opens, or until the handle's time to live is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slabd.errors import InvalidHandle
from slabd_proto.handle import (
    HandleFields,
    HandleFormatError,
    handle_from_text,
    handle_text,
    pack_handle,
    unpack_handle,
)
from slabd_proto.v1 import pool_pb2

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, repr=False)
class Handle:
    """A shared block's name. Compare it, hash it, pickle it, take its `bytes()` or its `str()`."""

    heap_id: int
    slot: int
    generation: int
    offset: int
    size: int
    transfer: bool
    usable_size: int = 0

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Handle:
        """Read a handle from what `bytes(handle)` returned.

        Raises:
            InvalidHandle: the bytes are no handle, or are damaged.
        """
        try:
            fields = unpack_handle(bytes(data))
        except HandleFormatError as error:
            raise InvalidHandle(str(error)) from None
        return cls(
            fields.heap_id,
            fields.slot,
            fields.generation,
            fields.offset,
            fields.requested_size,
            fields.transfer,
            fields.size,
        )

    @classmethod
    def parse(cls, text: str) -> Handle:
        """Read a handle from what `str(handle)` returned.

        Raises:
            InvalidHandle: the text is no handle, or is damaged.
        """
        try:
            return cls.from_bytes(handle_from_text(text))
        except HandleFormatError as error:
            raise InvalidHandle(str(error)) from None

    @classmethod
    def coerce(cls, value: Handle | bytes | bytearray | memoryview | str) -> Handle:
        """Return the handle that `value` is, or is a form of.

        Raises:
            InvalidHandle: it is none.
        """
        match value:
            case Handle():
                return value
            case str():
                return cls.parse(value)
            case bytes() | bytearray() | memoryview():
                return cls.from_bytes(value)
        raise InvalidHandle(f"a handle is a Handle, its bytes or its text, not {type(value).__name__}")

    @classmethod
    def from_proto(cls, message: pool_pb2.Handle) -> Handle:
        """Return the handle that a message of the contract describes."""
        block = message.block
        return cls(
            message.heap_id,
            block.slot,
            block.generation,
            message.offset,
            message.requested_size,
            message.transfer,
            message.size,
        )

    def to_proto(self) -> pool_pb2.Handle:
        """Return the handle as a message of the contract."""
        return pool_pb2.Handle(
            heap_id=self.heap_id,
            block=pool_pb2.BlockRef(slot=self.slot, generation=self.generation),
            offset=self.offset,
            requested_size=self.size,
            transfer=self.transfer,
            size=self.usable_size,
        )

    def __bytes__(self) -> bytes:
        fields = HandleFields(
            self.heap_id, self.slot, self.generation, self.offset, self.size, self.transfer, self.usable_size
        )
        return pack_handle(fields)

    def __str__(self) -> str:
        return handle_text(bytes(self))

    def __repr__(self) -> str:
        kind = "transfer" if self.transfer else "share"
        return f"<slabd.Handle {kind} of {self.size} bytes at {self.offset:#x}, block {self.slot}.{self.generation}>"

    def __reduce__(self) -> tuple[Callable[[bytes], Handle], tuple[bytes]]:
        # 48 bytes that check themselves, instead of the fields: a pickle from another version fails clearly.
        return Handle.from_bytes, (bytes(self),)
