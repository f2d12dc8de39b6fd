"""Sizes as people write them: `1GiB`, `64MiB`, `1048576`.

Units are binary, as in systemd and Docker: K is KiB. Decimal units (GB) are refused, for no heap is a multiple of them.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

_PREFIXES: Final = "KMGTP"
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGTP])(?:iB)?|B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes of `text`, as `1GiB`, `1.5 GiB`, `64M` or `1048576`.

    Raises:
        ValueError: it is no size, or no whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size")
    number, prefix = match.groups()
    size = Decimal(number) * (1 << 10 * (_PREFIXES.index(prefix.upper()) + 1) if prefix else 1)
    if size != size.to_integral_value():
        raise ValueError(f"{text!r} is no size")
    return int(size)


def exact_size(size: int) -> str:
    """Write `size` so that `parse_size` reads the same: `1GiB`, `96KiB`, `1000`."""
    for power in range(len(_PREFIXES), 0, -1):
        unit = 1 << 10 * power
        if size and not size % unit:
            return f"{size // unit}{_PREFIXES[power - 1]}iB"
    return str(size)


def readable_size(size: int) -> str:
    """Write `size` to be read by people, to a tenth of its unit: `23.1 GiB`, `64 KiB`, `12 bytes`."""
    for power in range(len(_PREFIXES), 0, -1):
        unit = 1 << 10 * power
        if abs(size) >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {_PREFIXES[power - 1]}iB"
    return f"{size} bytes"
