"""One demo from start to end: the daemon, the crew, the loop between them, and the count at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import slabd
from slabd.address import resolve
from slabd.ctl.connection import Connection
from slabd.ctl.demo import scene
from slabd.ctl.demo.crew import Crew
from slabd.ctl.demo.messages import Checked, Digest, Digests, Failure, Holding, Ready, Shared, Stale
from slabd.ctl.demo.progress import Progress, WorkerLine
from slabd.ctl.demo.scene import Stage
from slabd.ctl.demo.summary import Ending, Summary
from slabd.ctl.demo.work import BATCH_ITEMS, Work
from slabd.ctl.units import human_bytes, plural

if TYPE_CHECKING:
    import os

    from slabd.ctl.demo.children import Child
    from slabd.ctl.demo.files import Scan
    from slabd.ctl.demo.options import DemoOptions
    from slabd.ctl.demo.progress import Display
    from slabd.ctl.demo.scene import Killed

_TICK_SECONDS: Final = 0.1
_STUCK_SECONDS: Final = 120.0
_LEAVING_SECONDS: Final = 5.0
_STAGED_BATCHES: Final = 2


class Stuck(Exception):  # noqa: N818  # it ends the demo, and is no error of the caller
    """Nothing has moved for a long time."""


def run_demo(options: DemoOptions, found: Scan, display: Display) -> Summary:
    """Run the demo over the files found, and return what there is to say about it.

    Raises:
        slabd.SlabdError: the private daemon did not start, or went away.
        ChildFailed: a child ended with an error.
        Stuck: nothing moved any more.
    """
    crew = Crew(options.programs, options.workers)  # first: the interpreters start while the daemon does
    try:
        with slabd.start(options.heap_bytes) as daemon, Connection(resolve(daemon.address)) as connection:
            display.event(
                f"daemon pid {daemon.pid}, heap {human_bytes(options.heap_bytes)}; reader pid {crew.reader.pid}; "
                + ", ".join(f"{worker.name} pid {worker.pid}" for worker in crew.workers)
            )
            crew.start(daemon.address)
            loop = _Loop(options, found, crew, connection, display)
            loop.run()
            crew.stop()
            return loop.summary(_ending(connection))
    finally:
        crew.kill()
        display.close()


class _Loop:
    """The parent between its children: hand out, take in, show."""

    def __init__(
        self, options: DemoOptions, found: Scan, crew: Crew, connection: Connection, display: Display
    ) -> None:
        self.work = Work(found.files, options.heap_bytes)
        self._options = options
        self._found = found
        self._crew = crew
        self._connection = connection
        self._display = display
        self._stage = Stage.BEFORE if options.kill else Stage.AFTER
        self._victim: Child | None = None
        self._killed: list[Killed] = []
        self._deaths = 0
        self._moved = time.monotonic()
        self._painted = 0.0
        self._began: float | None = None
        self._ended = 0.0

    def run(self) -> None:
        """Work until every file has its outcome."""
        while not self.work.finished:
            self._hand_out()
            for child, message in self._crew.messages(_TICK_SECONDS):
                self._take_in(child, message)
                self._moved = time.monotonic()
            for file in self.work.take_changed():
                self._look_again(file)
            self._show()
        self._show(last=True)

    # Taking in

    def _take_in(self, child: Child, message: object) -> None:
        match message:
            case Ready():
                child.ready = True
            case Shared():
                child.in_flight.remove(message.batch)
                self.work.shared(message)
            case Digests():
                child.in_flight.remove(message.batch)
                self.work.digested(message)
                self._ended = time.perf_counter()
            case Stale(batch):
                child.in_flight.remove(batch)
                self.work.stale(batch)
            case Holding():
                self._kill(child)
            case (int(batch), dict(digests), dict(failures)):
                child.in_flight.remove(batch)
                reasons = {piece: Failure(*failure) for piece, failure in failures.items()}
                self.work.checked(Checked(batch, digests, reasons))
            case None:
                self._bury(child)
            case _:
                raise TypeError(f"{child.name} said {message!r}")

    def _kill(self, victim: Child) -> None:
        blocks = self.work.blocks_of(victim.in_flight[0])
        killed = scene.kill(self._connection, victim, blocks)
        self._killed.append(killed)
        self._stage = Stage.AFTER
        self._display.event(
            f"{killed.name} (pid {killed.pid}) killed with SIGKILL, holding {plural(killed.blocks, 'block')} of "
            f"{human_bytes(killed.held_bytes)}: back in available_bytes after {killed.milliseconds:.1f} ms"
        )

    def _bury(self, dead: Child) -> None:
        expected = any(killed.pid == dead.pid for killed in self._killed)
        signal = self._crew.bury(dead)
        for batch in dead.in_flight:
            self.work.lost(batch)
        if dead is self._victim:
            self._victim = None
            if self._stage is Stage.HOLDING:  # somebody else was faster
                self._stage = Stage.CLEARING
        if not expected:
            self._deaths += 1
            self._display.event(f"{dead.name} (pid {dead.pid}) was ended by {signal}: another does its work")

    def _look_again(self, file: FileRecord) -> None:
        try:
            stamp = current_stamp(file.path)
        except OSError as error:
            self.work.skip(file, error.strerror or str(error))
        else:
            self.work.plan_again(file, stamp)
