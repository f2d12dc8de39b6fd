"""slabctl against a live daemon: every command, both outputs, every exit code that needs one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import slabd
from slabd.ctl.__main__ import main
from slabd.ctl.exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Ctl = Callable[..., tuple[int, str, str]]

MIB = 1 << 20


@pytest.fixture(scope="module")
def private() -> Iterator[slabd.PrivateDaemon]:
    """A private daemon with a heap of 4 MiB, for all tests of this module."""
    with slabd.start(4 * MIB) as daemon:
        yield daemon


@pytest.fixture
def pool(private: slabd.PrivateDaemon) -> Iterator[slabd.Pool]:
    """A client of it."""
    with private.connect(name="decoder") as connected:
        yield connected


@pytest.fixture
def ctl(private: slabd.PrivateDaemon, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """Run slabctl in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--address", str(private.runtime_dir), *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def of(ctl: Ctl, *arguments: str) -> Any:
    """Return what a command says with -o json."""
    code, out, err = ctl(*arguments, "-o", "json")
    assert (code, err) == (ExitCode.OK, "")
    return json.loads(out)


def test_status(private: slabd.PrivateDaemon, pool: slabd.Pool, ctl: Ctl) -> None:
    """The daemon and its books, for people and for scripts."""
    with pool.lease(MIB):
        code, out, _ = ctl("status")
        status = of(ctl, "status")
    assert code == ExitCode.OK
    assert "serving" in out
    assert "1 MiB" in out
    assert (status["pid"], status["draining"], status["runtime_dir"]) == (
        private.pid,
        False,
        str(private.runtime_dir),
    )
    (heap,) = status["heaps"]
    assert (heap["total_bytes"], heap["used_bytes"], heap["available_bytes"]) == (4 * MIB, MIB, 3 * MIB)
    assert sum(heap["states"].values()) == heap["total_bytes"]


def test_sessions(pool: slabd.Pool, ctl: Ctl) -> None:
    """Who is there, and what they hold."""
    with pool.lease(100):
        (session,) = of(ctl, "sessions")["sessions"]
        _, out, _ = ctl("sessions")
    assert (session["name"], session["pid"], session["uid"]) == ("decoder", os.getpid(), os.geteuid())
    assert (session["leases"], session["used_bytes"], session["state"], session["attached"]) == (1, 128, "active", True)
    assert isinstance(session["age"], float)
    assert "decoder" in out
    assert of(ctl, "sessions", "--heap", "default")["sessions"]


def test_leases(private: slabd.PrivateDaemon, pool: slabd.Pool, ctl: Ctl) -> None:
    """Who holds what, for what, from which line, and who reads it."""
    with pool.lease(100, label="frame") as lease, private.connect(name="reader", read_only=True) as reader:
        handle = lease.share(opens=2)
        with reader.open(handle):
            (listed,) = of(ctl, "leases")["leases"]
            _, out, _ = ctl("leases")
            reader.open(handle).release()
    assert (listed["label"], listed["state"], listed["pending_opens"]) == ("frame", "shared", 1)
    assert listed["block"]["requested_size"] == 100
    assert listed["block"]["offset"] == lease.offset
    assert "test_slabctl.py" in listed["call_site"]
    assert "test_slabctl.py" in out
    assert len(listed["opened_by"]) == 1


def test_leases_by_session_and_limit(private: slabd.PrivateDaemon, ctl: Ctl) -> None:
    """What is not shown is counted."""
    pool = private.connect(lane=False)  # a lane would bring some for later, which are listed as cached
    leases = pool.lease_many([64] * 5)
    (session,) = of(ctl, "sessions")["sessions"]
    mine = of(ctl, "leases", "--session", str(session["id"]), "--limit", "2")
    assert (len(mine["leases"]), mine["total"]) == (2, 5)
    assert "the oldest 2 of 5; --limit 5 shows all" in ctl("leases", "--limit", "2")[1]
    with private.connect(lane=False) as other, other.lease(64):
        assert of(ctl, "leases")["total"] == 6
        assert of(ctl, "leases", "--session", str(session["id"]))["total"] == 5
    pool.release_many(leases)
    assert ctl("leases")[1] == "no leases\n"
    pool.close()


def test_heaps_and_classes(pool: slabd.Pool, ctl: Ctl) -> None:
    """By size class."""
    with pool.lease(100):
        (heap,) = of(ctl, "heaps")["heaps"]
        assert ctl("heaps")[0] == ExitCode.OK
        assert ctl("classes")[0] == ExitCode.OK
    used = {each["size"]: each["used_blocks"] for each in heap["size_classes"]}
    assert used[128] == 1
    assert heap["stats"]["name"] == "default"
    assert of(ctl, "classes") == of(ctl, "heaps")


def test_check_and_health(ctl: Ctl) -> None:
    """Both are what probes call."""
    assert ctl("check")[:2] == (ExitCode.OK, "ok: every invariant holds, 0 blocks looked at\n")
    assert of(ctl, "check") == {"ok": True, "problems": [], "blocks": 0}
    assert ctl("health")[:2] == (ExitCode.OK, "slabd: serving\n")
    assert of(ctl, "health", "--service", "slabd.v1.PoolService") == {"status": "serving"}
    assert ctl("health", "--service", "nope")[0] == ExitCode.WRONG


def test_drain_and_resume(pool: slabd.Pool, ctl: Ctl) -> None:
    """A block that is held makes a drain with a timeout exit with 5; nothing new is granted until --resume."""
    lease = pool.lease(64)
    try:
        assert ctl("drain")[0] == ExitCode.OK
        code, out, _ = ctl("drain", "--timeout", "50ms")
        assert (code, "still 1 lease" in out) == (ExitCode.TIMED_OUT, True)
        assert "draining" in ctl("status")[1]
        with pytest.raises(slabd.Draining):
            pool.lease(64)
        lease.release()
        assert ctl("drain", "--timeout", "5s")[:2] == (
            ExitCode.OK,
            "drained: nothing is held any more, no new work is taken\n",
        )
    finally:
        assert ctl("drain", "--resume")[:2] == (ExitCode.OK, "serving: the daemon takes new work\n")
    pool.lease(64).release()


def test_evict(private: slabd.PrivateDaemon, ctl: Ctl) -> None:
    """A session is ended by force; it lives and has the heap mapped, so its blocks wait for its process."""
    code = (
        "import slabd, sys; pool = slabd.connect(sys.argv[1]); b = pool.lease(64); print('ready', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, private.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        (session,) = (each for each in of(ctl, "sessions")["sessions"] if each["pid"] == victim.pid)
        answer = of(ctl, "evict", str(session["id"]))
        assert answer == {"reclaimed_bytes": 0, "quarantined_bytes": 64}
        victim.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evict", "999999"), "no session 999999"),
        (("sessions", "--heap", "nope"), "no heap 'nope'"),
        (("leases", "--heap", "nope"), "no heap 'nope'"),
    ],
)
def test_what_the_daemon_refuses_is_exit_code_4(ctl: Ctl, arguments: tuple[str, ...], message: str) -> None:
    """With the daemon's own words, on stderr alone."""
    code, out, err = ctl(*arguments)
    assert (code, out) == (ExitCode.REFUSED, "")
    assert err.startswith("slabctl: the daemon refused: ")
    assert message in err


def test_the_address_may_come_from_the_environment(
    private: slabd.PrivateDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """$SLABD_ADDRESS, as for clients."""
    monkeypatch.setenv("SLABD_ADDRESS", private.address)
    assert main(["health"]) == ExitCode.OK
    assert "serving" in capsys.readouterr().out


def test_a_daemon_that_has_gone_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    """Killed, with its socket left behind."""
    with slabd.start(MIB) as daemon:
        os.kill(daemon.pid, 9)
        while daemon.running:
            pass
        assert main(["--address", daemon.address, "status"]) == ExitCode.UNREACHABLE
    message = capsys.readouterr().err
    assert "start one with `slabd serve`" in message
    assert "nobody listens on admin.sock" in message  # in our words, not in gRPC's


def test_a_daemon_that_does_not_answer_at_once_is_waited_for(private: slabd.PrivateDaemon, ctl: Ctl) -> None:
    """One that is stopped for a second, or has no time for its newcomers, is not unreachable."""
    os.kill(private.pid, signal.SIGSTOP)
    timer = threading.Timer(1.0, os.kill, (private.pid, signal.SIGCONT))
    timer.start()
    try:
        assert of(ctl, "status")["pid"] == private.pid
    finally:
        timer.join()


def test_a_reader_that_has_seen_enough_is_no_error(private: slabd.PrivateDaemon) -> None:
    """`slabctl ... | head -0` leaves nothing on stderr."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "slabd.ctl", "--address", private.address, "status"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (ExitCode.OK, b"")
