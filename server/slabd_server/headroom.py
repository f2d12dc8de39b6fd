"""How much memory this process can still take before the kernel kills somebody.

Shared memory is charged to whoever touches it first, and allocating it past a limit does not fail: it calls the OOM
killer. So the daemon asks here first. Two kinds of limit count, and the narrowest wins: what the machine has available,
and the limit of every memory control group around the process, version 1 or 2.

Reads /proc and /sys/fs/cgroup (below `root`, for tests); never writes, never fails: what cannot be read does not limit.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple

from slabd_server.units import readable_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNLIMITED: Final = 1 << 62  # version 1 says "no limit" with the largest multiple of a page below 2**63


class Headroom(NamedTuple):
    """How many bytes are left, and in words what says so."""

    available_bytes: int
    limit: str


class _Files(NamedTuple):
    """The names that a version of control groups gives to its limit, its use and the caches it can drop."""

    limit: str
    usage: str
    droppable: tuple[str, ...]


_VERSION_1: Final = _Files(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_VERSION_2: Final = _Files("memory.max", "memory.current", ("inactive_file", "active_file"))


def headroom(root: Path = Path("/")) -> Headroom:
    """Return the narrowest limit on further memory for this process."""
    limits = [*_machine(root), *_control_groups(root)]
    return min(limits, default=Headroom(UNLIMITED, "no known limit"))


class Allowance:
    """What may be taken piece by piece. Asking for the headroom costs 0.2 ms, so not every page asks anew.

    An answer is good for a sixteenth of what it says, and for ALLOWED_SECONDS, while others may take memory too.
    Threads take turns.
    """

    ALLOWED_SECONDS: Final = 0.1
    ALLOWED_PART: Final = 16

    def __init__(self, ask: Callable[[], Headroom] = headroom, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._left = 0
        self._until = 0.0
        self._turn = threading.Lock()

    def take(self, size: int) -> Headroom | None:
        """Take `size` bytes; return None, or the limit that they would not fit, and then nothing is taken."""
        with self._turn:
            now = self._clock()
            if size > self._left or now >= self._until:
                room = self._ask()
                if size > room.available_bytes:
                    self._left = 0
                    return room
                self._left = max(size, room.available_bytes // self.ALLOWED_PART)
                self._until = now + self.ALLOWED_SECONDS
            self._left -= size
            return None


def _machine(root: Path) -> Iterator[Headroom]:
    """Give what the machine has: free memory and what the kernel can drop for it. Swap does not count."""
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield Headroom(int(line.split()[1]) << 10, "MemAvailable in /proc/meminfo")


def _control_groups(root: Path) -> Iterator[Headroom]:
    """Give what each memory control group around this process has left."""
    for mount, version, group in _hierarchies(root):
        for path in (mount / group, *(mount / parent for parent in group.parents)):
            yield from _group(root, path, version)


def _group(root: Path, path: PurePosixPath, version: _Files) -> Iterator[Headroom]:
    directory = root / path.relative_to("/")
    limit, usage = _number(directory / version.limit), _number(directory / version.usage)
    if limit is None or usage is None or limit >= UNLIMITED:
        return
    stat = dict(line.split(maxsplit=1) for line in _lines(directory / "memory.stat") if " " in line)
    droppable = sum(int(stat.get(key, 0)) for key in version.droppable)
    left = max(0, limit - usage + min(droppable, usage))
    yield Headroom(left, f"{path / version.limit} is {readable_size(limit)}, {readable_size(usage)} used")


def _hierarchies(root: Path) -> Iterator[tuple[PurePosixPath, _Files, PurePosixPath]]:
    """Give where each hierarchy that may control memory is mounted, and this process' group relative to there."""
    groups = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup") if line.count(":") > 1]
    mine = {
        version: PurePosixPath(path)
        for _, controllers, path in groups
        for version in ("cgroup2" if not controllers else "cgroup",)
        if not controllers or "memory" in controllers.split(",")
    }
    for line in _lines(root / "proc/self/mountinfo"):
        # mountinfo: id parent major:minor root mount-point options optional... - type source super-options (proc(5))
        before, _, after = line.partition(" - ")
        place, kind = before.split(), after.split()
        if len(place) < 5 or len(kind) < 3 or kind[0] not in mine:  # noqa: PLR2004 -- the fields named above
            continue
        if kind[0] == "cgroup" and "memory" not in kind[2].split(","):
            continue
        version = _VERSION_2 if kind[0] == "cgroup2" else _VERSION_1
        yield PurePosixPath(place[4]), version, _below(mine[kind[0]], PurePosixPath(place[3]))


def _below(group: PurePosixPath, mounted: PurePosixPath) -> PurePosixPath:
    """Return `group` relative to the group that is mounted; in a container that sees only its own, the mount itself."""
    if ".." not in group.parts and group.is_relative_to(mounted):
        return group.relative_to(mounted)
    return PurePosixPath()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """Return the number in a file; None when there is none, as in an unlimited group."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None
