"""The parent's side of its children: start them, speak with them, know when they are gone, leave none behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slabd.ctl.demo.messages import BatchId

# For each thing that a child does at a time, it has a second one waiting; and no pipe can fill up in both directions.
IN_FLIGHT: Final = 2
READER_IN_FLIGHT: Final = 4
_GRACE_SECONDS: Final = 5.0


def _module(name: str) -> tuple[str, ...]:
    # -P: no module of the user's working directory may stand in for one of ours.
    return (sys.executable, "-P", "-m", f"{__package__}.{name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """What the children run, without the two arguments that each gets: its pipe's descriptor and the parent's pid."""

    reader: tuple[str, ...] = _module("reader")
    worker: tuple[str, ...] = _module("worker")
    checker: tuple[str, ...] = (sys.executable, "-I", str(Path(__file__).with_name("checker.py")))


class ChildFailed(Exception):
    """A child ended by itself, with what it said."""


class Child:
    """A child process, its pipe, and what it has in flight."""

    def __init__(self, name: str, program: Sequence[str], in_flight: int = IN_FLIGHT) -> None:
        self.name = name
        self._most_in_flight = in_flight
        self.ready = False
        self.in_flight: list[BatchId] = []
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the child
        self.connection, theirs = Pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, no shell
                [*program, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                # Not in the terminal's foreground group: Ctrl-C reaches the parent alone.
                process_group=0,
            )
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def idle(self) -> bool:
        """Whether it is ready and has nothing to do."""
        return self.ready and not self.in_flight

    @property
    def has_room(self) -> bool:
        """Whether it may be given one more batch."""
        return self.ready and len(self.in_flight) < self._most_in_flight

    def send(self, message: object) -> None:
        """Send a message; when it is dead already, its pipe will say so."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def receive(self) -> Any:
        """Return its next message, None when there will be no more."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            return None

    def kill(self) -> None:
        """Kill it: SIGKILL."""
        self._process.kill()

    def hang_up(self) -> None:
        """Tell it that there is nothing more to do; it ends by itself."""
        self.connection.close()

    def wait(self) -> str | None:
        """Wait until it is gone, by force if it takes too long; return the signal's name that ended it.

        Raises:
            ChildFailed: it ended by itself, with an error.
        """
        try:
            code = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        said = self._said()
        self._errors.close()
        self.connection.close()
        if code > 0:
            raise ChildFailed(f"{self.name} (pid {self.pid}) failed: {said or f'exit status {code}, no message'}")
        return signal.Signals(-code).name if code < 0 else None

    def _said(self) -> str:
        """Return the last line it wrote to its standard error: of a traceback, the one that matters."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def stop_all(children: Iterable[Child]) -> None:
    """Have all children end by themselves, and wait for them.

    Raises:
        ChildFailed: one of them ended with an error; all are gone all the same.
    """
    children = list(children)
    failed: list[ChildFailed] = []
    for child in children:
        child.hang_up()
    for child in children:
        try:
            child.wait()
        except ChildFailed as error:
            failed.append(error)
    if failed:
        raise failed[0]


def kill_all(children: Iterable[Child]) -> None:
    """Leave none behind, whatever state they are in."""
    children = list(children)
    for child in children:
        child.kill()
    for child in children:
        with suppress(ChildFailed, ValueError):  # ValueError: it had been waited for
            child.wait()
