"""What the kernel says about a process: the CPU time it has had, the memory it has. proc(5)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_NANO: Final = 1e-9
_KIBIBYTE: Final = 1024
_TICKS: Final = os.sysconf("SC_CLK_TCK")
# Fields 14 and 15 of stat, counted from the state, which follows the name in parentheses.
_USER, _SYSTEM = 11, 12


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and all its living threads, to the nanosecond where the kernel counts so."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) * _NANO
    except (FileNotFoundError, ProcessLookupError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has resident; by counting, because the sums in `status` lag behind."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * _KIBIBYTE
    return 0
