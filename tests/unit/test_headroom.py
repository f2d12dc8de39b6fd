"""How much memory is left: against made-up machines, whose /proc and /sys are directories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slabd_server.headroom import UNLIMITED, Allowance, Headroom, headroom
from slabd_server.units import GIB, MIB, exact_size, parse_size, readable_size

if TYPE_CHECKING:
    from pathlib import Path

V1_UNLIMITED = "9223372036854771712"


class Machine:
    """A made-up machine below a directory."""

    def __init__(self, root: Path, available: int = 8 * GIB) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: 99 kB\nMemAvailable:   {available >> 10} kB\nSwapFree: 99999999 kB\n")

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def place(self, groups: str, mounts: str) -> None:
        """Put this process into control groups."""
        self.write("proc/self/cgroup", groups)
        self.write("proc/self/mountinfo", f"25 24 0:23 / /dev rw - tmpfs tmpfs rw\n{mounts}\nodd line\n")

    def group(self, path: str, limit: str, used: int, inactive: int = 0, active: int = 0) -> None:
        """Make a group of version 2."""
        self.write(f"{path}/memory.max", f"{limit}\n")
        self.write(f"{path}/memory.current", f"{used}\n")
        self.write(f"{path}/memory.stat", f"anon 5\ninactive_file {inactive}\nactive_file {active}\n")

    def group_v1(self, path: str, limit: str, used: int, inactive: int = 0) -> None:
        """Make a group of version 1."""
        self.write(f"{path}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{path}/memory.usage_in_bytes", f"{used}\n")
        self.write(f"{path}/memory.stat", f"inactive_file 9\ntotal_inactive_file {inactive}\ntotal_active_file 0\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with 8 GiB available and no control groups."""
    return Machine(tmp_path)


def test_the_machine_itself_has_headroom() -> None:
    """The real /proc is understood."""
    found = headroom()
    assert 0 < found.available_bytes < UNLIMITED


def test_without_control_groups_the_machine_is_the_limit(machine: Machine) -> None:
    """MemAvailable counts, swap does not."""
    assert headroom(machine.root) == Headroom(8 * GIB, "MemAvailable in /proc/meminfo")


def test_what_cannot_be_read_does_not_limit(tmp_path: Path) -> None:
    """Without /proc there is no known limit."""
    assert headroom(tmp_path) == Headroom(UNLIMITED, "no known limit")


def test_the_group_of_version_2_limits(machine: Machine) -> None:
    """What a group has left is its limit less its use, and what it could drop of that."""
    machine.place("0::/app\n", "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    machine.group("sys/fs/cgroup/app", str(2 * GIB), GIB, inactive=100 * MIB, active=156 * MIB)
    assert headroom(machine.root) == Headroom(GIB + 256 * MIB, "/sys/fs/cgroup/app/memory.max is 2 GiB, 1 GiB used")


def test_the_groups_around_limit_too(machine: Machine) -> None:
    """A narrower limit further out counts; `max` is none."""
    machine.place("0::/pod/app\n", "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    machine.group("sys/fs/cgroup/pod/app", "max", GIB)
    machine.group("sys/fs/cgroup/pod", str(3 * GIB), GIB)
    assert headroom(machine.root).available_bytes == 2 * GIB


def test_a_container_sees_its_own_group_as_the_root(machine: Machine) -> None:
    """With a namespace of its own the group is `/`, with somebody else's it begins with `..`."""
    for group in ("/", "/../../other"):
        machine.place(f"0::{group}\n", "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
        machine.group("sys/fs/cgroup", str(GIB), 0)
        assert headroom(machine.root).available_bytes == GIB


def test_the_group_of_version_1_limits(machine: Machine) -> None:
    """The hierarchy that has the memory controller counts, relative to what is mounted of it."""
    machine.place(
        "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc/job\n0::/\n",
        "34 31 0:31 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
    )
    machine.group_v1("sys/fs/cgroup/memory/job", V1_UNLIMITED, 5)
    machine.group_v1("sys/fs/cgroup/memory", str(GIB), 512 * MIB, inactive=12 * MIB)
    assert headroom(machine.root) == Headroom(
        524 * MIB, "/sys/fs/cgroup/memory/memory.limit_in_bytes is 1 GiB, 512 MiB used"
    )


def test_a_group_over_its_limit_has_nothing_left(machine: Machine) -> None:
    """Never a negative number."""
    machine.place("0::/app\n", "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    machine.group("sys/fs/cgroup/app", "4096", 8192)
    assert headroom(machine.root).available_bytes == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", MIB),
        ("1024B", 1024),
        ("64MiB", 64 * MIB),
        ("64 mib", 64 * MIB),
        ("64M", 64 * MIB),
        (" 1.5GiB ", 3 * GIB // 2),
        ("2TiB", 2 << 40),
        ("1P", 1 << 50),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    """Binary units, by their whole name or their first letter, in any case, with or without a fraction."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1GB", "1.5", "0.3KiB", "1e9", "1 G i B", "0x10", "1,5GiB", "ten"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Decimal units, fractions of a byte, signs and words are refused."""
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "exact", "readable"),
    [
        (0, "0", "0 bytes"),
        (1000, "1000", "1000 bytes"),
        (96 << 10, "96KiB", "96 KiB"),
        (GIB, "1GiB", "1 GiB"),
        (GIB + 1024, "1048577KiB", "1 GiB"),
        (3 * GIB // 2, "1536MiB", "1.5 GiB"),
        (5 << 50, "5PiB", "5 PiB"),
    ],
)
def test_sizes_are_written(size: int, exact: str, readable: str) -> None:
    """`exact_size` is what `parse_size` reads; `readable_size` is for people."""
    assert (exact_size(size), readable_size(size), parse_size(exact)) == (exact, readable, size)


def test_an_allowance_asks_now_and_then() -> None:
    """A sixteenth of what is available is handed out without asking again, and no longer than its time."""
    asked: list[float] = []
    now = 0.0

    def ask() -> Headroom:
        asked.append(now)
        return Headroom(1600, "made up")

    allowance = Allowance(ask, lambda: now)
    assert [allowance.take(50), allowance.take(50)] == [None, None]
    assert len(asked) == 1
    assert allowance.take(1) is None
    assert len(asked) == 2
    now = Allowance.ALLOWED_SECONDS
    assert allowance.take(1) is None
    assert len(asked) == 3
    assert allowance.take(1600) is None
    assert allowance.take(1601) == Headroom(1600, "made up")


def test_a_refused_allowance_has_nothing_left() -> None:
    """After a refusal the next piece is asked for, however small."""
    answers = iter([Headroom(1600, "first"), Headroom(10, "second"), Headroom(10, "third")])
    allowance = Allowance(lambda: next(answers), lambda: 0.0)
    assert allowance.take(10) is None
    assert allowance.take(1000) == Headroom(10, "second")
    assert allowance.take(11) == Headroom(10, "third")
