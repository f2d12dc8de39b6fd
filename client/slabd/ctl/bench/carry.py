"""The hand-off, as the parent runs it: two processes and a road between them, all peers in turns."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from statistics import median
from typing import TYPE_CHECKING

from slabd.ctl.bench import handoff
from slabd.ctl.bench.carriers import MOST_IN_FLIGHT
from slabd.ctl.bench.catalogue import FRAME_BYTES
from slabd.ctl.bench.kernel import cpu_seconds
from slabd.ctl.bench.messages import Carried, Carry, Open, Opened
from slabd.ctl.bench.model import OURS, LeftOut, Outcome, Row
from slabd.ctl.bench.processes import SPAWN, ChildFailed
from slabd.ctl.bench.road import Road
from slabd.ctl.bench.statistics import Measured, per_thousand, ratio
from slabd.ctl.bench.turns import rotated
from slabd.ctl.interrupts import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd.ctl.bench.model import Figure, Value, Values
    from slabd.ctl.bench.processes import Child
    from slabd.ctl.bench.stage import Stage


@dataclass(slots=True)
class Trips:
    """What one peer's turns have brought: seconds for a frame in each repeat, and CPU seconds of all of them."""

    frames: int = 0
    seconds_per_frame: list[float] = field(default_factory=list)
    producer: float = 0.0
    consumer: float = 0.0
    daemon: float = 0.0

    def add(self, sent: Carried, received: Carried, daemon: float) -> None:
        """Add a repeat."""
        self.frames += sent.frames
        self.seconds_per_frame.append(sent.seconds / sent.frames)
        self.producer += sent.cpu_seconds
        self.consumer += received.cpu_seconds
        self.daemon += daemon


def run_handoff(stage: Stage, figure: Figure) -> Outcome:
    """Run the figure.

    Raises:
        ChildFailed, PeerFailed: it did not work.
    """
    with _pair(stage) as (producer, consumer):
        left_out = _open(figure, producer, consumer)
        peers = [peer.name for peer in figure.peers if peer.name not in {each.peer for each in left_out}]
        rows: list[Row] = []
        for case in figure.cases:
            trips = {peer: Trips() for peer in peers}
            for repeat in range(stage.options.pace.repeats + 1):
                for peer in rotated(peers, repeat):
                    stage.display.step(f"{case.label} in flight: {peer}")
                    made = _carry(stage, producer, consumer, Carry(peer, _seconds(stage, repeat), case.number))
                    if repeat:
                        trips[peer].add(*made)
            rows += [Row(case, peer, values(trips, peer)) for peer in peers]
    return Outcome(figure, tuple(rows), tuple(left_out))


def values(trips: dict[str, Trips], peer: str) -> Values:
    """Return the values of a row."""
    mine = trips[peer]
    found: dict[str, Value] = {
        "frames_per_second": round(1 / median(mine.seconds_per_frame), 1),
        "producer_cpu_seconds": per_thousand(mine.producer, mine.frames),
        "consumer_cpu_seconds": per_thousand(mine.consumer, mine.frames),
        "daemon_cpu_seconds": per_thousand(mine.daemon, mine.frames) if peer == OURS else None,
        "frames": mine.frames,
    }
    if peer == OURS:
        return {**found, "ratio": None, "ratio_range": None}
    return {**found, **ratio(*(Measured.of_repeats(each.seconds_per_frame) for each in (trips[OURS], mine)))}


def _seconds(stage: Stage, repeat: int) -> float:
    return stage.options.pace.handoff_seconds if repeat else stage.options.pace.warm_up_seconds


def _carry(stage: Stage, producer: Child, consumer: Child, task: Carry) -> tuple[Carried, Carried, float]:
    before = cpu_seconds(stage.daemon_pid)
    consumer.send(task)
    producer.send(task)
    # The consumer's first: if it fails, the producer waits for answers in vain.
    received = consumer.receive(Carried)
    sent = producer.receive(Carried)
    return sent, received, cpu_seconds(stage.daemon_pid) - before


def _open(figure: Figure, *sides: Child) -> list[LeftOut]:
    left_out: dict[str, LeftOut] = {}
    for peer in figure.peers:
        # The consumer first: a publisher does not wait for subscribers.
        for side in reversed(sides):
            if peer.name in left_out:
                continue
            for each in side.ask(Open(figure.name, 0, (peer.name,)), Opened).left_out:
                left_out[peer.name] = each
    if OURS in left_out:
        raise ChildFailed(f"{OURS}: {left_out[OURS].reason}")
    return list(left_out.values())


@contextmanager
def _pair(stage: Stage) -> Iterator[tuple[Child, Child]]:
    """Start a producer and a consumer, and end them, and leave nothing of what is between them."""
    with ExitStack() as stack:
        with uninterrupted():
            memory = SharedMemory(create=True, size=FRAME_BYTES * MOST_IN_FLIGHT)
            stack.callback(memory.unlink)
            stack.callback(memory.close)
        queue = SPAWN.Queue()
        stack.callback(queue.close)
        ends = SPAWN.Pipe()
        sides = zip(("producer", "consumer"), (handoff.produce, handoff.consume), ends, strict=True)
        pair = [stage.start(name, serve, stage.place, Road(end, queue, memory.name)) for name, serve, end in sides]
        stack.callback(stage.end, *pair)
        for end in ends:
            end.close()  # so that each side notices when the other is gone
        yield pair[0], pair[1]
