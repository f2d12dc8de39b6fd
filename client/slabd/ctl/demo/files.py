"""Which files the demo reads: regular ones below its paths, links not followed, the same order every time."""

from __future__ import annotations

import os
import stat
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slabd.ctl.demo.messages import Stamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Below the standard library's directory, but not part of it.
_NOT_STANDARD: Final = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file."""

    path: str
    stamp: Stamp


@dataclass(slots=True)
class Scan:
    """What is below the paths."""

    files: list[Found] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    links: int = 0
    special: int = 0
    limited: bool = False

    @property
    def total_bytes(self) -> int:
        """How many bytes the files have."""
        return sum(found.stamp.size for found in self.files)


def stdlib() -> str:
    """Return the directory of the running Python's standard library."""
    return sysconfig.get_paths()["stdlib"]


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file from its status."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def scan(paths: Sequence[str], limit: int | None = None) -> Scan:
    """Find regular files below `paths`, at most `limit`; no path means the standard library.

    Raises:
        OSError: one of the paths itself is not there, or cannot be looked at.
    """
    result = Scan()
    for root in paths or [stdlib()]:
        # The path itself may be a link, as `find -H` has it; what is below it may not.
        real = Path(root).resolve(strict=True)
        for entry in _walk(str(real), result, skip=frozenset() if paths else _NOT_STANDARD):
            if limit is not None and len(result.files) >= limit:
                result.limited = True
                return result
            result.files.append(entry)
    return result


def _walk(root: str, result: Scan, skip: frozenset[str]) -> Iterator[Found]:
    # A stack of paths and not of calls: a tree may be deeper than Python's recursion limit.
    stack = [root]
    while stack:
        path = stack.pop()
        try:
            status = os.lstat(path)
            names = sorted(os.listdir(path), reverse=True) if stat.S_ISDIR(status.st_mode) else []  # noqa: PTH208  # names are wanted, not paths
        except OSError as error:
            result.unreadable[path] = error.strerror or str(error)
            continue
        if stat.S_ISREG(status.st_mode):
            yield Found(path, stamp_of(status))
        elif stat.S_ISLNK(status.st_mode):
            result.links += 1
        elif not stat.S_ISDIR(status.st_mode):
            result.special += 1
        stack += (f"{path.rstrip('/')}/{name}" for name in names if name not in skip)
