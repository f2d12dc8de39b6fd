"""The parent between its children: hand out, take in, show. What to do, `work` decides; this is the I/O around it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from slabd.ctl.demo import scene
from slabd.ctl.demo.files import stamp_of
from slabd.ctl.demo.messages import Checked, Digests, Failure, Holding, Ready, Shared, Stale
from slabd.ctl.demo.progress import Progress
from slabd.ctl.demo.scene import Stage
from slabd.ctl.demo.work import BATCH_ITEMS, Work
from slabd.ctl.units import human_bytes, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slabd.ctl.connection import Connection
    from slabd.ctl.demo.children import Child
    from slabd.ctl.demo.crew import Crew
    from slabd.ctl.demo.files import Found
    from slabd.ctl.demo.options import DemoOptions
    from slabd.ctl.demo.progress import Display
    from slabd.ctl.demo.scene import Killed
    from slabd.ctl.demo.work import FileRecord

_TICK_SECONDS: Final = 0.1
_STUCK_SECONDS: Final = 120.0
_STAGED_BATCHES: Final = 2


class Stuck(Exception):
    """Nothing has moved for a long time."""


class Loop:
    """One demo's main loop."""

    def __init__(
        self, options: DemoOptions, files: Sequence[Found], crew: Crew, connection: Connection, display: Display
    ) -> None:
        self.work = Work(files, options.heap_bytes)
        self.killed: list[Killed] = []
        self.other_deaths = 0
        self._crew = crew
        self._connection = connection
        self._display = display
        self._total_bytes = sum(found.stamp.size for found in files)
        self._stage = Stage.BEFORE if options.kill else Stage.AFTER
        self._began: float | None = None
        self._ended: float | None = None
        self._moved = time.monotonic()
        self._painted = 0.0

    @property
    def seconds(self) -> float:
        """From the first file handed to the reader to the last digest."""
        if self._began is None:
            return 0.0
        return (self._ended or time.perf_counter()) - self._began

    def run(self) -> None:
        """Work until every file has its outcome.

        Raises:
            Stuck: nothing moves any more.
            ChildFailed: a child ended with an error.
        """
        while not self.work.finished:
            self._hand_out()
            for child, message in self._crew.messages(_TICK_SECONDS):
                self._take_in(child, message)
                self._moved = time.monotonic()
            for file in self.work.take_changed():
                self._look_again(file)
            if time.monotonic() - self._moved > _STUCK_SECONDS:
                raise Stuck(f"nothing has moved for {_STUCK_SECONDS:.0f} s, with {self.work.files_done} files done")
            self._show()
        self._show(last=True)

    # Handing out

    def _hand_out(self) -> None:
        self._give_checks()
        match self._stage:
            case Stage.BEFORE if (left := self.work.pieces_planned // 2 - self.work.pieces_taken) > 0:
                self._give_reads(left)
            case Stage.BEFORE:
                self._stage = Stage.CLEARING
            case Stage.CLEARING if self.work.quiet and self._crew.reader.idle:
                self._stage_scene()
            case Stage.STAGING if not self.work.reading:
                self._begin_to_hold()
            case Stage.AFTER:
                self._give_reads(BATCH_ITEMS)
        if self._stage not in {Stage.STAGING, Stage.HOLDING}:
            self._give_digests()

    def _give_reads(self, most: int) -> None:
        reader = self._crew.reader
        while most > 0 and reader.has_room and (read := self.work.take_read(most)) is not None:
            self._began = self._began or time.perf_counter()
            reader.in_flight.append(read.batch)
            reader.send(read)
            most -= len(read.pieces)

    def _give_digests(self) -> None:
        # One batch to each before a second one to anybody: the least busy first.
        while self.work.ready and (free := [worker for worker in self._crew.workers if worker.has_room]):
            self._give_digest(min(free, key=lambda worker: len(worker.in_flight)))

    def _give_digest(self, worker: Child, *, hold: bool = False) -> bool:
        if (digest := self.work.take_digest(hold=hold)) is None:
            return False
        worker.in_flight.append(digest.batch)
        worker.send(digest)
        return True

    def _give_checks(self) -> None:
        checker = self._crew.checker
        while checker.has_room and (check := self.work.take_check()) is not None:
            batch, pieces = check
            checker.in_flight.append(batch)
            # Plain tuples: the checker does not know our classes.
            checker.send((batch, [(p.id, p.path, p.offset, p.length, tuple(p.stamp)) for p in pieces]))

    # The scene

    def _stage_scene(self) -> None:
        """With the heap empty, have batches read: one for the victim to hold, one that must survive its death."""
        self._stage = Stage.STAGING if self.work.something_to_read else Stage.AFTER
        self.work.small_first()
        for _ in range(_STAGED_BATCHES if self._stage is Stage.STAGING else 0):
            self._give_reads(1 if self.work.pieces_planned <= BATCH_ITEMS else BATCH_ITEMS)

    def _begin_to_hold(self) -> None:
        idle = [worker for worker in self._crew.workers if worker.idle]
        if idle:
            self._stage = Stage.HOLDING if self._give_digest(idle[-1], hold=True) else Stage.CLEARING

    def _kill(self, victim: Child) -> None:
        killed = scene.kill(self._connection, victim, self.work.blocks_of(victim.in_flight[0]))
        self.killed.append(killed)
        self._stage = Stage.AFTER
        self._display.event(
            f"{killed.name} (pid {killed.pid}) killed holding {human_bytes(killed.held_bytes)} in "
            f"{plural(killed.blocks, 'block')}; free after {killed.milliseconds:.1f} ms",
            loud=True,
        )

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

    def _bury(self, dead: Child) -> None:
        signal = self._crew.bury(dead)
        for batch in dead.in_flight:
            self.work.lost(batch)
        if dead.pid in {killed.pid for killed in self.killed}:
            return
        self.other_deaths += 1
        self._display.event(f"{dead.name} (pid {dead.pid}) was ended by {signal}: others do its work", loud=True)
        if self._stage is Stage.HOLDING:  # somebody was faster than we
            self._stage = Stage.CLEARING

    def _look_again(self, file: FileRecord) -> None:
        try:
            stamp = stamp_of(os.lstat(file.path))
        except OSError as error:
            self.work.skip(file, error.strerror or str(error))
        else:
            self.work.plan_again(file, stamp)

    # Showing

    def _doing(self, worker: Child) -> str:
        if not worker.ready:
            return "starts"
        return plural(sum(self.work.blocks_of(batch) for batch in worker.in_flight), "block")

    def _show(self, *, last: bool = False) -> None:
        if not last and time.monotonic() - self._painted < _TICK_SECONDS:
            return
        self._painted = time.monotonic()
        heap = self._connection.books().heaps[0]
        self._display.paint(
            Progress(
                files_done=self.work.files_done,
                files=len(self.work.files),
                done_bytes=self.work.totals.bytes_through_heap,
                total_bytes=self._total_bytes,
                seconds=time.perf_counter() - self._began if self._began else 0.0,
                used_bytes=heap.used_bytes,
                available_bytes=heap.available_bytes,
                waiting=heap.waiters > 0,
                workers=tuple((worker.name, self._doing(worker)) for worker in self._crew.workers),
            ),
            last=last,
        )
