"""What each command shows of an answer, and what it makes of it."""

from __future__ import annotations

from argparse import Namespace

from google.protobuf.duration_pb2 import Duration
from grpc_health.v1.health_pb2 import HealthCheckResponse

from slabd.ctl.commands.check import CHECK
from slabd.ctl.commands.drain import DRAIN
from slabd.ctl.commands.heaps import CLASSES, HEAPS
from slabd.ctl.commands.leases import LEASES
from slabd.ctl.commands.sessions import EVICT, SESSIONS
from slabd.ctl.commands.status import HEALTH, STATUS
from slabd.ctl.exits import ExitCode
from slabd.ctl.terminal import PLAIN
from slabd_proto.v1 import admin_pb2, pool_pb2

MIB = 1 << 20


def books(**changes: int) -> pool_pb2.HeapStats:
    """Return the books of a heap of 64 MiB with 16 in use."""
    numbers = {
        "total_bytes": 64 * MIB,
        "used_bytes": 16 * MIB,
        "available_bytes": 48 * MIB,
        "requested_bytes": 15 * MIB,
        "largest_free_block_bytes": 32 * MIB,
        "used_peak_bytes": 20 * MIB,
        "leases": 1200,
        "waiters": 0,
        "sessions": 3,
        **changes,
    }
    states = pool_pb2.StateBytes(leased=16 * MIB, free=48 * MIB)
    return pool_pb2.HeapStats(name="default", states=states, **numbers)


def session(**fields: object) -> admin_pb2.SessionInfo:
    """Return a session."""
    base = admin_pb2.SessionInfo(
        id=7,
        name="decoder",
        heap="default",
        pid=4242,
        uid=1000,
        access=pool_pb2.ACCESS_MODE_READ_WRITE,
        attached=True,
        state=admin_pb2.SESSION_STATE_ACTIVE,
        age=Duration(seconds=240),
        leases=2,
        used_bytes=MIB,
    )
    for name, value in fields.items():
        setattr(base, name, value)
    return base


def lease(session_id: int = 7, pending_opens: int = 0, opened_by: tuple[int, ...] = ()) -> admin_pb2.LeaseInfo:
    """Return a granted block."""
    block = pool_pb2.Block(ref=pool_pb2.BlockRef(slot=3, generation=9), offset=4096, requested_size=5000, size=8192)
    return admin_pb2.LeaseInfo(
        block=block,
        heap="default",
        state=admin_pb2.BLOCK_STATE_SHARED,
        session_id=session_id,
        pid=4242 if session_id else 0,
        session_name="decoder" if session_id else "",
        label="frame",
        call_site="app.py:3 in main",
        age=Duration(seconds=3, nanos=200_000_000),
        pending_opens=pending_opens,
        opened_by=opened_by,
    )


def test_status() -> None:
    """Who, how, where, and the books."""
    answer = admin_pb2.GetStatusResponse(
        version="0.1.0",
        pid=9,
        uptime=Duration(seconds=7500),
        addresses=["unix:/run/slabd/slabd.sock", "127.0.0.1:50051"],
        runtime_dir="/run/slabd",
        heaps=[books()],
    )
    assert STATUS.lines(answer, Namespace(), PLAIN) == [
        "daemon       slabd 0.1.0, pid 9",
        "state        serving, up 2 h 5 min",
        "runtime dir  /run/slabd",
        "grpc         unix:/run/slabd/slabd.sock",
        "grpc 2       127.0.0.1:50051",
        "metrics      off",
        "",
        "HEAP       SIZE    USED  USED %  AVAILABLE    PEAK  LEASES  WAITERS  SESSIONS",
        "default  64 MiB  16 MiB    25 %     48 MiB  20 MiB   1,200        0         3",
    ]


def test_status_of_a_draining_daemon() -> None:
    """It says so."""
    lines = STATUS.lines(admin_pb2.GetStatusResponse(draining=True), Namespace(), PLAIN)
    assert "state        draining: no new work is taken, up 0 ms" in lines


def test_sessions() -> None:
    """One line each; what is unknown is a dash."""
    remote = session(id=8, name="", pid=0, attached=False, state=admin_pb2.SESSION_STATE_QUARANTINED)
    remote.ClearField("uid")
    lines = SESSIONS.lines(admin_pb2.ListSessionsResponse(sessions=[session(), remote]), Namespace(), PLAIN)
    assert lines[1].split() == (
        [
            "7",
            "decoder",
            "4242",
            "1000",
            "default",
            "read-write",
            "yes",
            "active",
            "1",
            "MiB",
            "0",
            "B",
            "2",
            "0",
            "0",
            "-",
            "4",
            "min",
        ]
    )
    assert lines[2].split() == [
        "8",
        "-",
        "-",
        "-",
        "default",
        "read-write",
        "no",
        "quarantined",
        "1",
        "MiB",
        "0",
        "B",
        "2",
        "0",
        "0",
        "-",
        "4",
        "min",
    ]
    assert SESSIONS.lines(admin_pb2.ListSessionsResponse(), Namespace(), PLAIN) == ["no sessions"]


def test_leases() -> None:
    """Whose, who else, since when, what for, from where."""
    answer = admin_pb2.ListLeasesResponse(
        leases=[lease(), lease(session_id=0, pending_opens=1, opened_by=(4, 5))], total=2
    )
    lines = LEASES.lines(answer, Namespace(), PLAIN)
    assert "3.9" in lines[1]
    assert "7 decoder pid 4242" in lines[1]
    assert "0x1000" in lines[1]
    assert "released" in lines[2]
    assert "4, 5 + 1 to come" in lines[2]
    assert lines[2].endswith("3.2 s  frame  app.py:3 in main")
    assert len(lines) == 3


def test_leases_that_are_not_shown_are_counted() -> None:
    """Nothing is left out silently."""
    answer = admin_pb2.ListLeasesResponse(leases=[lease()], total=5231)
    assert LEASES.lines(answer, Namespace(), PLAIN)[-1] == "the oldest 1 of 5,231; --limit 5231 shows all"
    assert LEASES.lines(admin_pb2.ListLeasesResponse(), Namespace(), PLAIN) == ["no leases"]


def test_heaps_and_classes() -> None:
    """Fragmentation, backing, classes; a class of size 0 stands for pages."""
    classes = [
        admin_pb2.SizeClassInfo(size=0, used_blocks=5),
        admin_pb2.SizeClassInfo(size=128, slabs=2, used_blocks=3, free_blocks=61),
    ]
    heap = admin_pb2.HeapInfo(
        stats=books(),
        size_classes=classes,
        free_ranges=4,
        page_backing="4KiB pages",
        prefault=True,
        resident_bytes=32 << 20,
    )
    answer = admin_pb2.ListHeapsResponse(heaps=[heap])
    text = "\n".join(HEAPS.lines(answer, Namespace(), PLAIN))
    assert "free ranges  4, the largest 32 MiB" in text
    assert "memory       32 MiB resident, 4KiB pages, touched at start" in text
    lines = CLASSES.lines(answer, Namespace(), PLAIN)
    assert lines[1].split() == ["default", "pages", "-", "5", "-", "-"]
    assert lines[2].split() == ["default", "128", "B", "2", "3", "61", "384", "B"]


def test_check_finds_nothing_or_says_what() -> None:
    """Exit code 0 or 1."""
    good = admin_pb2.CheckResponse(ok=True, blocks=3)
    bad = admin_pb2.CheckResponse(ok=False, problems=["used 5, counted 6"], blocks=3)
    assert CHECK.lines(good, Namespace(), PLAIN) == ["ok: every invariant holds, 3 blocks looked at"]
    assert CHECK.lines(bad, Namespace(), PLAIN) == ["wrong: 1 problem, 3 blocks looked at", "  used 5, counted 6"]
    assert [CHECK.verdict(good, Namespace()), CHECK.verdict(bad, Namespace())] == [ExitCode.OK, ExitCode.WRONG]


def test_drain_is_timed_out_only_when_it_waited_in_vain() -> None:
    """Without --timeout it does not wait, so it cannot be late."""
    held = admin_pb2.DrainResponse(draining=True, leases=3, sessions=1)
    empty = admin_pb2.DrainResponse(draining=True)
    resumed = admin_pb2.DrainResponse(draining=False, leases=3)
    waiting, not_waiting = Namespace(timeout=2.0, resume=False), Namespace(timeout=None, resume=False)
    assert DRAIN.verdict(held, waiting) is ExitCode.TIMED_OUT
    assert DRAIN.verdict(held, not_waiting) is ExitCode.OK
    assert DRAIN.verdict(empty, waiting) is ExitCode.OK
    assert DRAIN.verdict(resumed, not_waiting) is ExitCode.OK
    assert DRAIN.lines(held, waiting, PLAIN) == [
        "draining: still 3 leases held by 1 session after 2.0 s; `slabctl leases` says by whom"
    ]
    assert DRAIN.lines(held, not_waiting, PLAIN) == ["draining: 3 leases held by 1 session; --timeout waits for them"]
    assert DRAIN.lines(empty, waiting, PLAIN) == ["drained: nothing is held any more, no new work is taken"]
    assert DRAIN.lines(resumed, not_waiting, PLAIN) == ["serving: the daemon takes new work"]


def test_evict_says_what_stays_in_quarantine() -> None:
    """And until when."""
    answer = admin_pb2.EndSessionResponse(reclaimed_bytes=0, quarantined_bytes=MIB)
    assert EVICT.lines(answer, Namespace(session=7), PLAIN) == [
        "session 7 can do nothing any more",
        "1 MiB stay in quarantine until its process has exited or closed its pool: it has them mapped",
    ]


def test_health_is_ok_only_when_it_serves() -> None:
    """For probes."""
    serving = HealthCheckResponse(status=HealthCheckResponse.SERVING)
    not_serving = HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
    unknown = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
    everything = Namespace(service="")
    assert HEALTH.lines(serving, everything, PLAIN) == ["slabd: serving"]
    assert HEALTH.lines(not_serving, everything, PLAIN) == ["slabd: not serving"]
    assert HEALTH.lines(unknown, Namespace(service="x"), PLAIN) == ["x: service unknown"]
    assert HEALTH.verdict(serving, everything) is ExitCode.OK
    assert HEALTH.verdict(not_serving, everything) is ExitCode.WRONG
    assert HEALTH.verdict(unknown, everything) is ExitCode.WRONG
