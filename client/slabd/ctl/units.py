"""Numbers as people read and write them: sizes, rates, ages, counts. Pure."""

from __future__ import annotations

import math
import re
from typing import Final

_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_STEP: Final = 1024
_SIZE: Final = re.compile(r"(?P<number>\d+)\s*(?P<unit>[kmgt]?)(?:i?b)?\Z", re.IGNORECASE)
_TIME: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|min|m|h)?\Z")
_FACTOR: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_GIGABYTE: Final = 1e9
_A_TENTH: Final = 0.1

_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_A_FEW: Final = 10


def human_bytes(count: int) -> str:
    """Return a size: "64 MiB" when it is exactly that, "64.0 MiB" when it is nearly."""
    unit = 0
    while unit + 1 < len(_BINARY) and count >= _STEP ** (unit + 1):
        unit += 1
    whole, rest = divmod(count, _STEP**unit)
    # 1,023.97 KiB would round to 1,024.0 KiB: take the larger unit then.
    if rest and round(count / _STEP**unit, 1) >= _STEP and unit + 1 < len(_BINARY):
        return f"1.0 {_BINARY[unit + 1]}"
    return f"{whole} {_BINARY[unit]}" if not rest else f"{count / _STEP**unit:.1f} {_BINARY[unit]}"


def human_count(count: int) -> str:
    """Return a number with its thousands apart."""
    return f"{count:,}"


def plural(count: int, noun: str) -> str:
    """Return "1 file", "2 files", "1,000 files"."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "sh", "ch")) else "s"
    return f"{count:,} {noun}{ending}"


def human_age(seconds: float) -> str:
    """Return how long: "40 ms", "3.2 s", "45 s", "4 min", "2 h 5 min", "3 d 4 h"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < _A_FEW:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < _DAY:
        return _two(whole, _HOUR, "h", _MINUTE, "min")
    return _two(whole, _DAY, "d", _HOUR, "h")


def human_rate(count: int, seconds: float) -> str:
    """Return bytes per second in GB/s, the unit in which memory is sold: 10**9 bytes."""
    if seconds <= 0:
        return "- GB/s"
    rate = count / seconds / _GIGABYTE
    return f"{rate:.2f} GB/s" if rate >= _A_TENTH else f"{rate:.3f} GB/s"


def percent(part: int, whole: int) -> str:
    """Return a share, rounded down, so that 100 % means all."""
    return "-" if whole == 0 else f"{math.floor(100 * part / whole)} %"


def parse_size(text: str) -> int:
    """Read a size: "67108864", "64MiB", "64M" (all binary).

    Raises:
        ValueError: it is none.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: write bytes, or a number with KiB, MiB, GiB or TiB")
    power = " kmgt".index(match["unit"].lower() or " ")
    return int(match["number"]) << (10 * power)


def parse_seconds(text: str) -> float:
    """Read a time: "30", "30s", "500ms", "2min", "1h".

    Raises:
        ValueError: it is none.
    """
    match = _TIME.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no time: write seconds, or a number with ms, s, min or h")
    return float(match["number"]) * _FACTOR[match["unit"] or "s"]


def _two(whole: int, large: int, large_name: str, small: int, small_name: str) -> str:
    rest = whole % large // small
    return f"{whole // large} {large_name}" + (f" {rest} {small_name}" if rest else "")
