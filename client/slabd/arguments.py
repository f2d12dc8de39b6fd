"""What users pass, checked here so that a mistake costs no call and always raises the same class.

The daemon checks everything again: these checks are for the caller, not for safety.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.duration_pb2 import Duration

from slabd.errors import InvalidAlignment, InvalidArgument, InvalidSize, InvalidType, OutOfRange

if TYPE_CHECKING:
    from types import FrameType

_MAX_UINT64: Final = 2**64 - 1
OPENS_MAX: Final = 65_535
_LABEL_BYTES: Final = 128
_CALL_SITE_BYTES: Final = 256
_MAX_SECONDS: Final = 10 * 365 * 86_400.0
_HERE: Final = str(Path(__file__).parent)


def integer(value: Any, what: str) -> int:
    """Return an integer of any kind (numpy's too) as an int.

    Raises:
        InvalidType: it is no integer; True and 4.0 are none either.
    """
    if isinstance(value, bool):
        raise InvalidType(f"{what} is an integer, not {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise InvalidType(f"{what} is an integer, not {value!r} of type {type(value).__name__}") from None


def size(value: Any) -> int:
    """Return a block size in bytes.

    Raises:
        InvalidSize: it is below 1 or not representable.
        InvalidType: it is no integer.
    """
    number = integer(value, "a size")
    if not 1 <= number <= _MAX_UINT64:
        raise InvalidSize(f"a size is at least 1 byte and below 2**64, not {number}")
    return number


def alignment(value: Any) -> int:
    """Return an alignment in bytes.

    Raises:
        InvalidAlignment: it is no power of two.
        InvalidType: it is no integer.
    """
    number = integer(value, "an alignment")
    if number < 1 or number > _MAX_UINT64 or number & (number - 1):
        raise InvalidAlignment(f"an alignment is a power of two, not {number}")
    return number


def opens(value: Any) -> int:
    """Return how many opens a handle is for.

    Raises:
        InvalidArgument: it is out of bounds, or no integer.
    """
    number = integer(value, "the number of opens")
    if not 1 <= number <= OPENS_MAX:
        raise InvalidArgument(f"a handle is for 1 to {OPENS_MAX} opens, not {number}")
    return number


def window(offset: Any, length: Any, limit: int) -> tuple[int, int]:
    """Return the part [offset, offset + length) of a block of `limit` bytes; a length of None means all the rest.

    Raises:
        OutOfRange: the part reaches past the block's end.
        InvalidType: one of them is no integer.
    """
    start = integer(offset, "an offset")
    if not 0 <= start <= limit:
        raise OutOfRange(f"offset {start} is not inside a block of {limit} bytes")
    count = limit - start if length is None else integer(length, "a length")
    if count < 0 or start + count > limit:
        raise OutOfRange(f"[{start}, {start + count}) reaches past the end of a block of {limit} bytes")
    return start, count


def seconds(value: Any, what: str) -> float | None:
    """Return a time in seconds, None for ever.

    Raises:
        InvalidArgument: it is negative or no number.
    """
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InvalidType(f"{what} is a number of seconds or None, not {value!r}") from None
    if math.isnan(number) or number < 0:
        raise InvalidArgument(f"{what} is a number of seconds from 0, or None, not {value!r}")
    return None if number >= _MAX_SECONDS else number


def duration(value: float) -> Duration:
    """Return seconds as a message of the contract."""
    message = Duration()
    message.FromNanoseconds(round(value * 1e9))
    return message


def label(text: Any) -> str:
    """Return a label.

    Raises:
        InvalidArgument: it is too long, or no text.
    """
    if not isinstance(text, str):
        raise InvalidType(f"a label is a str, not {type(text).__name__}")
    if len(text.encode(errors="replace")) > _LABEL_BYTES:
        raise InvalidArgument(f"a label has at most {_LABEL_BYTES} bytes, not {len(text.encode(errors='replace'))}")
    return text


def caller() -> str:
    """Return the line of code, outside this package, that called into it."""
    return site_of(sys._getframe(1))  # noqa: SLF001  # the documented way, and inspect costs a hundred times more


def site_of(frame: FrameType | None) -> str:
    """Return the line of code that a frame is at, or the first outside this package that called it."""
    while frame is not None and frame.f_code.co_filename.rpartition(os.sep)[0] == _HERE:
        frame = frame.f_back
    if frame is None:
        return ""
    return cut_call_site(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")


def cut_call_site(text: str) -> str:
    """Return a call site cut to what the contract admits; its end says more than its beginning."""
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= _CALL_SITE_BYTES else encoded[-_CALL_SITE_BYTES:].decode(errors="ignore")
