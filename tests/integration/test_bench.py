"""`slabctl bench` from end to end, small; and what it leaves behind, however it ends: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.daemons import eventually

from slabd.ctl.exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMED = Path("/dev/shm")
SMALL = ("--quick", "--sizes", "64", "--repeats", "1")


class Bench:
    """`slabctl bench` as a process of its own, whose children can be told by a mark in their environment."""

    def __init__(self, directory: Path, *arguments: str, **environ: str) -> None:
        self.mark = f"BENCH_MARK={uuid.uuid4()}".encode()
        self._names_before = set(NAMED.iterdir())
        self.temporary = directory / "t"
        self.temporary.mkdir()
        name, value = self.mark.decode().split("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "slabd.ctl", "bench", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(self.temporary), name: value, **environ},
        )

    def alive(self) -> list[int]:
        """Return the pids of the benchmark and of everything it has started."""
        found = []
        for directory in Path("/proc").iterdir():
            if directory.name.isdigit():
                try:
                    if self.mark in (directory / "environ").read_bytes().split(b"\0"):
                        found.append(int(directory.name))
                except OSError:
                    continue
        return found

    def names(self) -> set[Path]:
        """Return what is in /dev/shm and was not there before; other programs' names come and go."""
        return set(NAMED.iterdir()) - self._names_before

    def ended(self) -> tuple[int, str, str]:
        """Wait for its end, and that nothing of it is left; return its exit code and what it said."""
        out, err = self.process.communicate()
        eventually(lambda: not self.alive(), "the end of all processes")
        eventually(lambda: not self.names(), "the end of all names in /dev/shm")
        assert list(self.temporary.iterdir()) == []
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Start a benchmark."""
    started: list[Bench] = []

    def run(*arguments: str, **environ: str) -> Bench:
        started.append(Bench(tmp_path, *arguments, **environ))
        return started[-1]

    yield run
    for bench in started:
        bench.process.kill()
        bench.process.communicate()


def test_json_has_every_row_and_nothing_is_left(start: Any, tmp_path: Path) -> None:
    """Peers beside slabd, its calls by the daemon's count; and who is missing, with how to get it."""
    (tmp_path / "iceoryx2.py").write_text("raise ModuleNotFoundError('not here', name='iceoryx2')\n")
    only = ("--only", "untouched", "grpc", "handoff", "calls")
    code, out, err = start(*SMALL, *only, "-o", "json", PYTHONPATH=str(tmp_path)).ended()
    assert (code, err) == (ExitCode.OK, "")
    plain = json.loads(out)
    assert (plain["quick"], plain["repeats"]) == (True, 1)
    by_name = {figure["name"]: figure for figure in plain["figures"]}
    assert list(by_name) == ["untouched", "grpc", "handoff", "calls"]
    for figure in plain["figures"]:
        ours = [row for row in figure["rows"] if row["peer"] == "slabd"]
        assert ours
        assert all(set(figure["units"]) <= set(row) for row in figure["rows"])
    untouched = {row["peer"]: row for row in by_name["untouched"]["rows"]}
    assert list(untouched) == ["slabd", "shared_memory", "manager", "list pool"]
    assert all(row["bytes"] == 64 and row["median_us"] >= 0 and row["rounds"] > 0 for row in untouched.values())
    assert untouched["slabd"]["calls_per_round"] is not None
    assert untouched["shared_memory"]["ratio"] > 0
    assert [(row["blocks"], row["peer"]) for row in by_name["grpc"]["rows"]] == [
        (1, "slabd"),
        (1, "bare echo"),
        (64, "slabd"),
        (64, "bare echo"),
    ]
    frames = [(row["in_flight"], row["peer"], row["frames"] > 0) for row in by_name["handoff"]["rows"]]
    carriers = ("slabd", "ideal pool", "pipe", "queue")
    assert frames == [(count, peer, True) for count in (1, 4) for peer in carriers]
    (calls,) = by_name["calls"]["rows"]
    assert calls["calls_per_lease"] == round(calls["calls"] / calls["leases"], 4)
    missing = {"peer": "iceoryx2", "reason": "not installed: pip install 'slabd[bench]'", "case": ""}
    assert by_name["untouched"]["left_out"] == by_name["handoff"]["left_out"] == [missing]


def test_tables_come_with_what_each_peer_does(start: Any) -> None:
    """On a pipe without colours or progress."""
    code, out, err = start(*SMALL, "--only", "write").ended()
    assert (code, err) == (ExitCode.OK, "")
    for part in (
        "Lease, write all of it, release (write)",
        "64 B  slabd",
        "memcpy, warm   floor: the copy into",
        "SLABD/PEER is",
        "cpus ",
    ):
        assert part in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("figure", "number", "code"),
    [
        ("handoff", signal.SIGINT, ExitCode.INTERRUPTED),
        ("untouched", signal.SIGTERM, 128 + signal.SIGTERM),
    ],
)
def test_interrupted_it_leaves_nothing_behind(start: Any, figure: str, number: signal.Signals, code: int) -> None:
    """No process, no file, no name, no traceback; the whole foreground group hears Ctrl-C."""
    bench = start("--quick", "--sizes", "64", "--repeats", "1000", "--only", figure)
    # Itself, the daemon, the resource tracker, and one that measures at least.
    eventually(lambda: len(bench.alive()) >= 4, "children")
    os.killpg(bench.process.pid, number)
    ended, out, err = bench.ended()
    assert (ended, out) == (code, "")
    assert "Traceback" not in err
    assert "interrupted; the daemon and all processes are gone" in err or number != signal.SIGINT


def test_killed_it_leaves_no_process_behind(start: Any) -> None:
    """Its children hear their pipes close; the daemon hears its own."""
    bench = start("--quick", "--sizes", "64", "--repeats", "1000", "--only", "handoff")
    eventually(lambda: len(bench.alive()) >= 5, "children")
    bench.process.kill()
    eventually(lambda: not bench.alive(), "the end of all processes")
    eventually(lambda: not [path for path in bench.names() if path.name.startswith("psm_")], "the end of its segments")


def test_a_daemon_that_dies_ends_it_with_an_error(start: Any) -> None:
    """With its last words, and not with half a table that looks whole."""
    bench = start("--quick", "--sizes", "64", "--repeats", "1000", "--only", "untouched")
    eventually(lambda: len(bench.alive()) >= 4, "children")
    daemons = [pid for pid in bench.alive() if b"slabd_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(daemons[0], signal.SIGKILL)
    code, out, err = bench.ended()
    assert (code, out) == (ExitCode.UNREACHABLE, "")
    assert err.startswith("slabctl: the private daemon has ended; its log ends with: ")
