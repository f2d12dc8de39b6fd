"""The crew: one reader, one checker, N workers; who is free, who has died, who replaces whom."""

from __future__ import annotations

from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Final

from slabd.ctl.demo.children import READER_IN_FLIGHT, Child, ChildFailed, kill_all, stop_all
from slabd.ctl.demo.messages import Start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd.ctl.demo.children import Programs

# More than that, and something is wrong with the machine rather than with a worker.
_DEATHS_ALLOWED: Final = 10


class Crew:
    """The children of one demo. Nothing here knows what they work on."""

    def __init__(self, programs: Programs, workers: int) -> None:
        self._programs = programs
        self._workers_made = 0
        self._deaths = 0
        self._address = ""
        self.workers: list[Child] = []
        self.reader = Child("reader", programs.reader, READER_IN_FLIGHT)
        self.checker = Child("checker", programs.checker)
        self.checker.ready = True  # it has nobody to connect to
        for _ in range(workers):
            self._hire()

    @property
    def all(self) -> list[Child]:
        """Everybody."""
        return [self.reader, self.checker, *self.workers]

    def start(self, address: str) -> None:
        """Tell everybody where the daemon is; the interpreters have started meanwhile."""
        self._address = address
        for child in (self.reader, *self.workers):
            child.send(Start(address, f"demo {child.name}"))

    def messages(self, seconds: float) -> Iterator[tuple[Child, Any]]:
        """Wait, and yield what has been said by whom; None is the last word of the dead."""
        by_connection = {child.connection: child for child in self.all}
        for connection in wait(list(by_connection), seconds):
            if isinstance(connection, Connection):
                child = by_connection[connection]
                yield child, child.receive()

    def bury(self, dead: Child) -> str:
        """Replace a child that has died, and return the name of the signal that ended it.

        Raises:
            ChildFailed: it ended by itself, with an error, or too many have died.
        """
        signal = dead.wait()
        self._deaths += 1
        if signal is None or self._deaths > _DEATHS_ALLOWED:
            how = f"by {signal}, the {self._deaths}th of all" if signal else "by itself, without having been told to"
            raise ChildFailed(f"{dead.name} (pid {dead.pid}) ended {how}")
        if dead is self.reader:
            self.reader = Child("reader", self._programs.reader, READER_IN_FLIGHT)
            self.reader.send(Start(self._address, "demo reader"))
        elif dead is self.checker:
            self.checker = Child("checker", self._programs.checker)
            self.checker.ready = True
        else:
            self.workers.remove(dead)
            self._hire().send(Start(self._address, f"demo {self.workers[-1].name}"))
        return signal

    def stop(self) -> None:
        """Have everybody end in peace.

        Raises:
            ChildFailed: one of them did not.
        """
        stop_all(self.all)

    def kill(self) -> None:
        """Leave nobody behind."""
        kill_all(self.all)

    def _hire(self) -> Child:
        self._workers_made += 1
        worker = Child(f"worker {self._workers_made}", self._programs.worker)
        self.workers.append(worker)
        return worker
