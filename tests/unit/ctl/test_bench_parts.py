"""The other parts of the benchmark that can be looked at alone: order, rounds, frames, counters, messages."""

from __future__ import annotations

import os

import pytest

from slabd.ctl.bench.counters import parse
from slabd.ctl.bench.handoff import WrongFrame, receive_frames, send_frames
from slabd.ctl.bench.kernel import cpu_seconds, resident_bytes
from slabd.ctl.bench.messages import Timed
from slabd.ctl.bench.model import OURS, LeftOut
from slabd.ctl.bench.peers import reason_of
from slabd.ctl.bench.peers.echo import message_sizes, request_for
from slabd.ctl.bench.processes import ChildFailed
from slabd.ctl.bench.road import number_from, number_to_bytes
from slabd.ctl.bench.rounds import Work, samples_of, time_rounds
from slabd.ctl.bench.turns import CaseTurns, Turns, crowd_values, leave_out, merged, rotated, timed_values


def timed(*nanoseconds: int, began: int = 0, ended: int = 10**9) -> Timed:
    """Return what a worker says."""
    return Timed(b"".join(each.to_bytes(8, "little") for each in nanoseconds), began, ended)


def case_of(**by_peer: list[list[Timed]]) -> CaseTurns:
    """Return a case whose peers had these repeats, each with an answer of each worker."""
    case = CaseTurns({}, [], 0.0, 2.0)
    for name, repeats in by_peer.items():
        case.by_peer[name] = Turns()
        for answers in repeats:
            case.by_peer[name].add(answers)
    return case


def test_everybody_begins_once() -> None:
    """So none always comes after the same."""
    assert [rotated(["a", "b", "c"], repeat) for repeat in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
    assert rotated([], 1) == []


def test_rounds_are_done_once_at_least_and_so_often_at_most() -> None:
    """And what they leave is settled after each turn."""
    done: list[str] = []
    work = Work(lambda: done.append("round"), lambda: done.append("settled"))
    assert len(samples_of(time_rounds(work, 0.0))) == 1
    assert len(samples_of(time_rounds(work, 3600.0, 3))) == 3
    assert done == ["round", "settled", "round", "round", "round", "settled"]


def test_a_row_compares_with_slabd() -> None:
    """Calls are slabd's alone, ratios the others'."""
    case = case_of(slabd=[[timed(2000, 2000)], [timed(4000)]], other=[[timed(1000)], [timed(1000)]])
    ours, theirs = timed_values(case, OURS), timed_values(case, "other")
    assert ours is not None
    assert theirs is not None
    assert (ours["calls_per_round"], ours["ratio"], ours["median_us"]) == (2.0, None, 2.0)
    assert (theirs["ratio"], theirs["ratio_range"]) == (2.0, (2.0, 4.0))


def test_clients_add_up() -> None:
    """Over the time from the first to the last; ratios are of times."""
    repeat = [timed(1000, 1000, ended=5 * 10**8), timed(1000, began=10**8, ended=6 * 10**8)]
    case = case_of(slabd=[repeat], other=[[timed(500, 500, ended=2 * 10**8)]])
    ours, theirs = crowd_values(case, OURS), crowd_values(case, "other")
    assert ours is not None
    assert theirs is not None
    assert (ours["pairs_per_second"], ours["rounds"]) == (5.0, 3)
    assert (theirs["pairs_per_second"], theirs["ratio"]) == (10.0, 2.0)


def test_who_fails_is_left_out_and_slabd_cannot_be() -> None:
    """There would be nothing to compare."""
    case = case_of(slabd=[], other=[])
    leave_out(case, LeftOut("other", "reason"))
    leave_out(case, LeftOut("other", "again"))
    assert (list(case.by_peer), case.left_out) == ([OURS], [LeftOut("other", "reason")])
    with pytest.raises(ChildFailed, match="slabd: reason"):
        leave_out(case, LeftOut(OURS, "reason"))


def test_what_is_left_out_everywhere_is_said_once() -> None:
    """What is left out in one case, with the case."""
    everywhere = [LeftOut("a", "missing", case) for case in ("1", "2")]
    assert merged([*everywhere, LeftOut("b", "no room", "2")], 2) == (
        LeftOut("a", "missing"),
        LeftOut("b", "no room", "2"),
    )


def test_a_missing_package_comes_with_how_to_get_it() -> None:
    """Any other error in one line."""
    assert reason_of(ModuleNotFoundError("x", name="iceoryx2")) == "not installed: pip install 'slabd[bench]'"
    assert reason_of(ModuleNotFoundError("no\nother", name="other")) == "ModuleNotFoundError: no other"


class Wire:
    """Both sides of a hand-off in one place, without processes."""

    def __init__(self) -> None:
        self.frames: list[int | None] = []
        self.most_in_flight = 0
        self._in_flight = 0

    def send(self, number: int) -> None:
        """Take a frame."""
        self.frames.append(number)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)

    def take_answer(self) -> None:
        """Answer."""
        self._in_flight -= 1

    def end(self) -> None:
        """End the turn."""
        self.frames.append(None)

    def receive(self) -> int | None:
        """Return the next frame."""
        return self.frames.pop(0)


@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_producer_keeps_to_what_may_be_in_flight_and_waits_for_all_answers(in_flight: int) -> None:
    """The consumer gets as many as were sent."""
    wire = Wire()
    sent = send_frames(wire, 0.005, in_flight)
    assert wire.most_in_flight <= in_flight
    assert wire.frames == [*range(sent.frames), None]
    assert receive_frames(wire).frames == sent.frames


def test_a_producer_that_fails_ends_its_turn() -> None:
    """So that the consumer does not wait for ever."""

    class Broken(Wire):
        def send(self, number: int) -> None:
            raise RuntimeError(f"frame {number}")

    wire = Broken()
    with pytest.raises(RuntimeError):
        send_frames(wire, 1.0, 1)
    assert wire.frames == [None]


def test_a_frame_that_is_not_the_one_sent_is_found_out() -> None:
    """A benchmark of wrong bytes is worth nothing."""
    wire = Wire()
    wire.frames = [0, 2, None]
    with pytest.raises(WrongFrame, match="frame 2 came where 1 was sent"):
        receive_frames(wire)
    assert number_from(memoryview(number_to_bytes(12345) + b"rest")) == 12345


def test_the_echo_has_messages_as_long_as_ours() -> None:
    """A batch is longer, but not 64 times: the session is in it once."""
    (lease, granted), (release, released) = message_sizes(1)
    (leases, grants), _ = message_sizes(64)
    assert 0 < released < release < lease < leases < 64 * lease
    assert granted < grants
    assert request_for(10, 3) == b"\0\0\0\3" + bytes(6)


def test_calls_are_those_of_clients() -> None:
    """Health checks and operators' calls are others."""
    text = """\
# TYPE grpc_server_started_total counter
grpc_server_started_total{grpc_method="Lease",grpc_service="slabd.v1.PoolService",grpc_type="unary"} 12.0
grpc_server_started_total{grpc_method="Release",grpc_service="slabd.v1.PoolService",grpc_type="unary"} 1e+03
grpc_server_started_total{grpc_method="GetStatus",grpc_service="slabd.v1.AdminService",grpc_type="unary"} 7.0
grpc_server_handled_total{grpc_method="Lease",grpc_service="slabd.v1.PoolService",grpc_type="unary"} 5.0
"""
    assert parse(text) == 1012
    assert parse("") == 0


def test_the_kernel_knows_this_process() -> None:
    """It has used time and memory."""
    assert cpu_seconds(os.getpid()) > 0
    assert resident_bytes(os.getpid()) > 1 << 20
