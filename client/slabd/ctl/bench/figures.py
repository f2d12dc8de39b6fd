"""How each figure is run: most take turns; the hand-off, the daemon's counters and the kernel's have their own ways."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import slabd
from slabd.ctl.bench import worker
from slabd.ctl.bench.carry import run_handoff
from slabd.ctl.bench.kernel import cpu_seconds, resident_bytes
from slabd.ctl.bench.messages import Done, Shut, Time, Timed
from slabd.ctl.bench.model import OURS, Outcome, Row
from slabd.ctl.bench.rounds import samples_of
from slabd.ctl.bench.statistics import ratio, summarize
from slabd.ctl.bench.turns import Turns, ask_all, open_case, run_clients, run_timed

if TYPE_CHECKING:
    from collections.abc import Callable

    from slabd.ctl.bench.model import Figure, Value
    from slabd.ctl.bench.processes import Child
    from slabd.ctl.bench.stage import Stage
    from slabd.ctl.bench.statistics import Summary

_PERCENT: Final = 100
_LEASES_A_TURN: Final = 2000
_LIVE_HEAP_BYTES: Final = 32 << 20


def run_calls(stage: Stage, figure: Figure) -> Outcome:
    """Count the gRPC calls of many leases after a warm-up, by the daemon's own counters."""
    (case,) = figure.cases
    workers, pace = stage.workers(1), stage.options.pace
    open_case(figure, case, workers)
    stage.display.step("warm-up")
    ask_all(workers, Time(OURS, pace.warm_up_seconds), Timed)
    stage.display.step("counting")
    before = stage.calls()
    (timed,) = ask_all(workers, Time(OURS, pace.steady_seconds, case.number), Timed)
    calls, leases = stage.calls() - before, len(samples_of(timed))
    ask_all(workers, Shut(), Done)
    values: dict[str, Value] = {"leases": leases, "calls": calls, "calls_per_lease": round(calls / leases, 4)}
    return Outcome(figure, (Row(case, OURS, values),))


def run_idle(stage: Stage, figure: Figure) -> Outcome:
    """Read the CPU time of processes that have nothing to do."""
    (case,) = figure.cases
    workers, pace = stage.workers(case.number), stage.options.pace
    open_case(figure, case, workers)
    stage.display.step(f"{case.number} clients wait")
    time.sleep(pace.settle_seconds)
    pids = (stage.daemon_pid, *(each.pid for each in workers))
    began, before = time.monotonic(), [cpu_seconds(pid) for pid in pids]
    time.sleep(pace.idle_seconds)
    took = time.monotonic() - began
    shares = [_PERCENT * (cpu_seconds(pid) - start) / took for pid, start in zip(pids, before, strict=True)]
    ask_all(workers, Shut(), Done)
    values: dict[str, Value] = {
        "daemon_percent": round(shares[0], 3),
        "clients_percent": round(sum(shares[1:]), 3),
        "seconds": round(took, 3),
    }
    return Outcome(figure, (Row(case, OURS, values),))


def run_live(stage: Stage, figure: Figure) -> Outcome:
    """Lease, and keep, among few and among many live blocks, in a fresh process each; and weigh what a block takes.

    The daemon is a fresh one too: who has leased before has memory to spare, and would seem to need none. Its heap is
    resident from the start, and clients do not touch theirs, so what processes grow by is not the heap.
    """
    with slabd.start(_LIVE_HEAP_BYTES, prefault=True) as daemon:
        return _among_live(stage, figure, daemon)


def _among_live(stage: Stage, figure: Figure, daemon: slabd.PrivateDaemon) -> Outcome:
    few, many = figure.cases
    place = replace(stage.place, address=daemon.address)
    holders = {case: stage.start(f"holder of {case.label}", worker.serve, place) for case in figure.cases}
    grown: list[tuple[int, int]] = []
    clock = 0.0
    for case, holder in holders.items():
        stage.display.step(f"{case.label} blocks are leased")
        # The first session, the first leases: what they take is taken once.
        open_case(figure, few, [holder])
        ask_all([holder], Shut(), Done)
        before = _weights(daemon, holder)
        clock = open_case(figure, case, [holder]).clock_ns
        grown.append(_difference(_weights(daemon, holder), before))
    turns = {case: Turns() for case in figure.cases}
    for repeat in range(stage.options.pace.repeats + 1):
        for case in (few, many)[:: 1 if repeat % 2 else -1]:
            stage.display.step(f"among {case.label}")
            answers = ask_all([holders[case]], Time(OURS, stage.options.pace.turn_seconds, _LEASES_A_TURN), Timed)
            if repeat:
                turns[case].add(answers)
    stage.end(*holders.values())
    among_few, among_many = (_summary(turns[case], clock) for case in figure.cases)
    # What a session takes by itself is in both, and so in neither.
    in_daemon, in_client = (max(byte, 0) / (many.number - few.number) for byte in _difference(grown[1], grown[0]))
    weights: dict[str, Value] = {
        "daemon_bytes_per_block": round(in_daemon, 1),
        "client_bytes_per_block": round(in_client, 1),
    }
    compared = ratio(among_many.measured, among_few.measured)
    return Outcome(
        figure,
        (
            Row(few, OURS, {**among_few.values(), "ratio": None, "ratio_range": None}),
            Row(many, OURS, {**among_many.values(), **compared, **weights}),
        ),
    )


def _summary(turns: Turns, clock_ns: float) -> Summary:
    summary = summarize(turns.samples, clock_ns)
    assert summary is not None  # noqa: S101  # every turn makes a round
    return summary


def _weights(daemon: slabd.PrivateDaemon, holder: Child) -> tuple[int, int]:
    return resident_bytes(daemon.pid), resident_bytes(holder.pid)


def _difference(after: tuple[int, int], before: tuple[int, int]) -> tuple[int, int]:
    return after[0] - before[0], after[1] - before[1]


RUNS: Final[dict[str, Callable[[Stage, Figure], Outcome]]] = {
    "untouched": lambda stage, figure: run_timed(stage, figure, stage.options.pace.turn_seconds),
    "miss": lambda stage, figure: run_timed(stage, figure, stage.options.pace.turn_seconds),
    "grpc": lambda stage, figure: run_timed(stage, figure, stage.options.pace.write_seconds),
    "write": lambda stage, figure: run_timed(stage, figure, stage.options.pace.write_seconds),
    "handoff": run_handoff,
    "clients": lambda stage, figure: run_clients(stage, figure, stage.options.pace.crowd_seconds),
    "calls": run_calls,
    "idle": run_idle,
    "live": run_live,
}
