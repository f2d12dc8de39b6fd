"""The hand-off: a producer and a consumer, each a child process, and a pipe between them for all peers alike.

Both sides of a peer answer to the same four things: the producer sends frame after frame, numbered in place, and takes
back what the consumer's answers free; the consumer receives one at a time, checks its number, and answers. An empty
message ends a turn.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from slabd.ctl.bench.carriers import CARRIERS
from slabd.ctl.bench.messages import Carried, Carry, Done, Failed, Open, Opened, Shut
from slabd.ctl.bench.model import LeftOut
from slabd.ctl.bench.peers import reason_of

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from slabd.ctl.bench.messages import Place
    from slabd.ctl.bench.road import Carrier, Consumer, Producer, Road


class WrongFrame(Exception):
    """A frame that came out is not the one that went in."""


def produce(pipe: Connection, place: Place, road: Road) -> None:
    """Be the producer, until the parent hangs up."""
    _serve(pipe, place, road, producing=True)


def consume(pipe: Connection, place: Place, road: Road) -> None:
    """Be the consumer, until the parent hangs up."""
    _serve(pipe, place, road, producing=False)


def _serve(pipe: Connection, place: Place, road: Road, *, producing: bool) -> None:
    with ExitStack() as stack:
        open_now: dict[str, Producer | Consumer] = {}
        while True:
            message = pipe.recv()
            try:
                pipe.send(_answer(message, open_now, stack, (place, road), producing=producing))
            except (OSError, EOFError):
                raise
            except Exception as error:  # noqa: BLE001  # whatever a peer raises is for the parent to tell
                pipe.send(Failed(reason_of(error)))


def _answer(
    message: object,
    open_now: dict[str, Producer | Consumer],
    stack: ExitStack,
    where: tuple[Place, Road],
    *,
    producing: bool,
) -> Opened | Carried | Done:
    match message:
        case Open(peers=(name,)):
            carrier: Carrier = CARRIERS[name]
            try:
                if producing:
                    open_now[name] = stack.enter_context(carrier.producer(*where))
                else:
                    open_now[name] = stack.enter_context(carrier.consumer(*where))
            except Exception as error:  # noqa: BLE001  # a peer that is not there is left out
                return Opened((), (LeftOut(name, reason_of(error)),), 0)
            return Opened((name,), (), 0)
        case Carry(peer, seconds, in_flight):
            side: Any = open_now[peer]
            return send_frames(side, seconds, in_flight) if producing else receive_frames(side)
        case Shut():
            open_now.clear()
            stack.close()
            return Done()
    raise TypeError(f"nobody in a hand-off understands {message!r}")


def send_frames(producer: Producer, seconds: float, in_flight: int) -> Carried:
    """Send for so many seconds, never more in flight than allowed, and wait for the last answer."""
    cpu, began = time.process_time(), time.perf_counter()
    sent = answered = 0
    going = True
    try:
        while going or answered < sent:
            while going and sent - answered < in_flight:
                producer.send(sent)
                sent += 1
                going = time.perf_counter() - began < seconds
            producer.take_answer()
            answered += 1
        return Carried(sent, time.perf_counter() - began, time.process_time() - cpu)
    finally:
        producer.end()


def receive_frames(consumer: Consumer) -> Carried:
    """Receive until the producer ends its turn; its frames are numbered from 0."""
    cpu, began = time.process_time(), time.perf_counter()
    frames = 0
    while (number := consumer.receive()) is not None:
        if number != frames:
            raise WrongFrame(f"frame {number} came where {frames} was sent")
        frames += 1
    return Carried(frames, time.perf_counter() - began, time.process_time() - cpu)
