"""A worker: does the rounds of one peer at a time, and says how long each took. Runs in a child process."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from slabd.ctl.bench.messages import Done, Failed, Open, Opened, Shut, Time, Timed
from slabd.ctl.bench.model import LeftOut
from slabd.ctl.bench.peers import OPENINGS, reason_of
from slabd.ctl.bench.rounds import clock_ns, time_rounds

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from slabd.ctl.bench.messages import Place
    from slabd.ctl.bench.rounds import Work


def serve(pipe: Connection, place: Place) -> None:
    """Answer until the parent hangs up, and leave nothing open."""
    with ExitStack() as stack:
        case = Bench(place, stack)
        while True:
            message = pipe.recv()
            pipe.send(case.answer(message))


class Bench:
    """The peers that are open."""

    def __init__(self, place: Place, stack: ExitStack) -> None:
        self._place = place
        self._stack = stack
        self._open: dict[str, Work] = {}

    def answer(self, message: object) -> Opened | Timed | Done | Failed:
        """Do what the parent asks; an error in a peer is an answer too."""
        try:
            match message:
                case Open():
                    return self._enter(message)
                case Time():
                    return self._time(message)
                case Shut():
                    self._shut()
                    return Done()
        except Exception as error:  # noqa: BLE001  # whatever a peer raises is for the parent to tell
            return Failed(reason_of(error))
        raise TypeError(f"a worker does not understand {message!r}")

    def _enter(self, message: Open) -> Opened:
        self._shut()
        left_out: list[LeftOut] = []
        for peer in message.peers:
            opening = OPENINGS[message.figure, peer]
            try:
                self._open[peer] = self._stack.enter_context(opening(self._place, message.case))
            except Exception as error:  # noqa: BLE001  # a peer that is not there is left out
                left_out.append(LeftOut(peer, reason_of(error)))
        return Opened(tuple(self._open), tuple(left_out), clock_ns())

    def _time(self, message: Time) -> Timed:
        if (early := message.start - time.monotonic()) > 0:
            time.sleep(early)
        # Who could not begin in time ends with the others all the same: they are counted together.
        late = time.monotonic() - message.start if message.start else 0.0
        return time_rounds(self._open[message.peer], message.seconds - late, message.most)

    def _shut(self) -> None:
        self._open.clear()
        self._stack.close()
