"""The parent's side of the benchmark's children: start them deaf to signals, speak with them, leave none behind."""

from __future__ import annotations

import multiprocessing
import signal
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Final, TypeVar

from slabd.ctl.bench.messages import Failed
from slabd.ctl.interrupts import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.connection import Connection

M = TypeVar("M")
# Not fork: this process has threads of gRPC's.
SPAWN: Final = multiprocessing.get_context("spawn")
_GRACE_SECONDS: Final = 15.0
_ANSWER_SECONDS: Final = 120.0


class ChildFailed(Exception):
    """A child is gone, or does not answer."""


class PeerFailed(Exception):
    """A peer's round raised; the child goes on."""


class Child:
    """A child process and its pipe. Of its arguments it gets its end of the pipe first."""

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        self.name = name
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_main, args=(target, theirs, *arguments), name=name)
        try:
            with _signals_blocked():
                self._process.start()
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None  # noqa: S101  # it has been started
        return self._process.pid

    def send(self, message: object) -> None:
        """Ask something."""
        try:
            self._pipe.send(message)
        except OSError as error:
            raise self._gone() from error

    def receive(self, kind: type[M]) -> M:
        """Return the answer.

        Raises:
            PeerFailed: what was asked did not work.
            ChildFailed: there will be no answer.
        """
        try:
            if not self._pipe.poll(_ANSWER_SECONDS):
                raise ChildFailed(f"{self.name} (pid {self.pid}) has not answered for {_ANSWER_SECONDS:.0f} seconds")
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._gone() from error
        if isinstance(answer, Failed):
            raise PeerFailed(answer.reason)
        if not isinstance(answer, kind):
            raise ChildFailed(f"{self.name} answered {answer!r}")
        return answer

    def ask(self, message: object, kind: type[M]) -> M:
        """Ask something, and return the answer."""
        self.send(message)
        return self.receive(kind)

    def hang_up(self) -> None:
        """Tell it that there is nothing more to do."""
        self._pipe.close()

    def wait(self) -> None:
        """Wait until it is gone, by force when it takes too long."""
        self._process.join(_GRACE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _gone(self) -> ChildFailed:
        self._process.join(_GRACE_SECONDS)
        return ChildFailed(f"{self.name} (pid {self.pid}) is gone, exit status {self._process.exitcode}")


def end_all(children: Iterable[Child]) -> None:
    """Have all children end, and wait for them. First all hang up: some wait for others."""
    children = list(children)
    for child in children:
        child.hang_up()
    for child in children:
        child.wait()


def _main(target: Callable[..., None], pipe: Connection, *arguments: Any) -> None:
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        target(pipe, *arguments)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """What is started meanwhile inherits the mask, and so never hears of a Ctrl-C that the whole terminal gets."""
    # It starts itself when it is first needed, and unblocks signals then.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
