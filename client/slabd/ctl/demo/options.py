"""What the demo is told to do, in one frozen record."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from slabd.ctl.demo.children import Programs

DEFAULT_HEAP: Final = "16MiB"
_FEW: Final = 2
_MANY: Final = 8


def default_workers() -> int:
    """Return one worker for each CPU that this process may use, at least 2 and at most 8."""
    return max(_FEW, min(_MANY, len(os.sched_getaffinity(0))))


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The options of one demo."""

    paths: tuple[str, ...] = ()
    workers: int = field(default_factory=default_workers)
    heap_bytes: int = 16 << 20
    kill: bool = True
    limit: int | None = None
    programs: Programs = field(default_factory=Programs)
