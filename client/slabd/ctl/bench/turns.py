"""The runner: peers of a case take turns in the same processes, and what their rounds took becomes rows."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Final

from slabd.ctl.bench.messages import Done, Open, Opened, Shut, Time, Timed
from slabd.ctl.bench.model import OURS, LeftOut, Outcome, Row
from slabd.ctl.bench.processes import ChildFailed, PeerFailed
from slabd.ctl.bench.rounds import samples_of
from slabd.ctl.bench.statistics import Measured, ratio, summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slabd.ctl.bench.model import Case, Figure, Values
    from slabd.ctl.bench.processes import Child, M
    from slabd.ctl.bench.stage import Stage

# So that all have begun to wait when the first begins.
_START_SECONDS: Final = 0.01
_NANOSECONDS: Final = 1_000_000_000


@dataclass(slots=True)
class Turns:
    """What one peer's turns have brought, a repeat each: the rounds' nanoseconds, and how many there were a second."""

    samples: list[array[int]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def add(self, answers: Sequence[Timed]) -> None:
        """Add a repeat: one answer of each worker."""
        together = array("q")
        for timed in answers:
            together.extend(samples_of(timed))
        # From the first who began to the last who ended: processes that take turns on a core are not counted twice.
        took = max(each.ended_ns for each in answers) - min(each.began_ns for each in answers)
        self.samples.append(together)
        self.rates.append(len(together) / max(took, 1) * _NANOSECONDS)

    @property
    def rounds(self) -> int:
        """How many rounds there were."""
        return sum(len(each) for each in self.samples)


@dataclass(slots=True)
class CaseTurns:
    """What came of one case: turns by peer, the empty round's nanoseconds, and the gRPC calls of one of our rounds."""

    by_peer: dict[str, Turns]
    left_out: list[LeftOut]
    clock_ns: float
    calls_per_round: float | None = None


def rotated(peers: Sequence[str], repeat: int) -> list[str]:
    """Return the order of a repeat: each begins once, so none always comes after the same."""
    at = repeat % len(peers) if peers else 0
    return [*peers[at:], *peers[:at]]


def run_timed(stage: Stage, figure: Figure, seconds: float) -> Outcome:
    """Run a figure in one worker: medians, p99, calls and ratios."""
    return _run(stage, figure, seconds, lambda _: stage.workers(1), timed_values)


def run_clients(stage: Stage, figure: Figure, seconds: float) -> Outcome:
    """Run a figure in as many workers as the case says: rounds a second of all together."""
    return _run(stage, figure, seconds, lambda case: stage.workers(case.number), crowd_values)


def timed_values(turns: CaseTurns, peer: str) -> Values | None:
    """Return the values of a row about one process."""
    summary = summarize(turns.by_peer[peer].samples, turns.clock_ns)
    ours = summarize(turns.by_peer[OURS].samples, turns.clock_ns)
    if summary is None or ours is None:
        return None
    values = summary.values()
    if peer == OURS:
        return {**values, "calls_per_round": turns.calls_per_round, "ratio": None, "ratio_range": None}
    return {**values, **ratio(ours.measured, summary.measured)}


def crowd_values(turns: CaseTurns, peer: str) -> Values | None:
    """Return the values of a row about many processes."""
    summary = summarize(turns.by_peer[peer].samples, turns.clock_ns)
    if summary is None:
        return None
    pairs = {"pairs_per_second": round(median(turns.by_peer[peer].rates), 1)}
    if peer == OURS:
        return {**pairs, **summary.values(), "ratio": None, "ratio_range": None}
    # Times, not rates, as everywhere: below 1, slabd is faster.
    ours, theirs = (Measured.of_repeats([1 / rate for rate in turns.by_peer[each].rates]) for each in (OURS, peer))
    return {**pairs, **summary.values(), **ratio(ours, theirs)}


def _run(
    stage: Stage,
    figure: Figure,
    seconds: float,
    workers_of: Callable[[Case], list[Child]],
    values_of: Callable[[CaseTurns, str], Values | None],
) -> Outcome:
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    for case in figure.cases:
        turns = take_turns(stage, figure, case, workers_of(case), seconds)
        found = ((peer, values_of(turns, peer)) for peer in turns.by_peer)
        rows += [Row(case, peer, values) for peer, values in found if values is not None]
        left_out += [LeftOut(each.peer, each.reason, case.label) for each in turns.left_out]
    return Outcome(figure, tuple(rows), merged(left_out, len(figure.cases)))


def merged(left_out: Sequence[LeftOut], cases: int) -> tuple[LeftOut, ...]:
    """Return who was left out, said once where it is the same in all cases."""
    found: list[LeftOut] = []
    for each in left_out:
        everywhere = LeftOut(each.peer, each.reason)
        same = sum(1 for other in left_out if (other.peer, other.reason) == (each.peer, each.reason))
        found.append(everywhere if same == cases else each)
    return tuple(dict.fromkeys(found))


def take_turns(stage: Stage, figure: Figure, case: Case, workers: Sequence[Child], seconds: float) -> CaseTurns:
    """Open the peers of a case, warm up, and let each have its turn in every repeat.

    Raises:
        ChildFailed: a worker is gone, or slabd itself failed.
    """
    turns = open_case(figure, case, workers)
    pace = stage.options.pace

    def turn(peer: str, repeat: int, length: float) -> None:
        stage.display.step(f"{figure.case_title.lower()} {case.label}: {peer}")
        try:
            answers = ask_all(workers, Time(peer, length, start=time.monotonic() + _START_SECONDS), Timed)
        except PeerFailed as error:
            leave_out(turns, LeftOut(peer, str(error)))
            return
        if repeat:
            turns.by_peer[peer].add(answers)

    for peer in list(turns.by_peer):
        turn(peer, 0, pace.warm_up_seconds)
    calls = 0
    for repeat in range(1, pace.repeats + 1):
        for peer in rotated(list(turns.by_peer), repeat - 1):
            before = stage.calls()
            turn(peer, repeat, seconds)
            if peer == OURS:  # another may be slabd too, asked in another way
                calls += stage.calls() - before
    turns.calls_per_round = round(calls / turns.by_peer[OURS].rounds, 4)
    ask_all(workers, Shut(), Done)
    return turns


def open_case(figure: Figure, case: Case, workers: Sequence[Child]) -> CaseTurns:
    """Open the peers of a case in all workers; who is not open everywhere is left out."""
    answers = ask_all(workers, Open(figure.name, case.number, tuple(peer.name for peer in figure.peers)), Opened)
    turns = CaseTurns({peer.name: Turns() for peer in figure.peers}, [], max(answer.clock_ns for answer in answers))
    for answer in answers:
        for each in answer.left_out:
            leave_out(turns, each)
    return turns


def leave_out(turns: CaseTurns, who: LeftOut) -> None:
    """Go on without a peer. Without slabd there is nothing to compare.

    Raises:
        ChildFailed: it is slabd.
    """
    if who.peer == OURS:
        raise ChildFailed(f"{OURS}: {who.reason}")
    if turns.by_peer.pop(who.peer, None) is not None:
        turns.left_out.append(who)


def ask_all(children: Sequence[Child], message: object, kind: type[M]) -> list[M]:
    """Ask all the same at once, and return their answers, every one of them received even when one is a failure."""
    for child in children:
        child.send(message)
    answers: list[M] = []
    failures: list[PeerFailed] = []
    for child in children:
        try:
            answers.append(child.receive(kind))
        except PeerFailed as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return answers
