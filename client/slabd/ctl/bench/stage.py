"""What a run stands on: the private daemon, the children, where things are; and that all of it goes away again."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import slabd
from slabd.address import resolve
from slabd.ctl.bench import worker
from slabd.ctl.bench.counters import calls_made
from slabd.ctl.bench.messages import Place
from slabd.ctl.bench.options import HEAP_BYTES
from slabd.ctl.bench.peers import echo
from slabd.ctl.bench.processes import Child, ChildFailed, PeerFailed, end_all
from slabd.ctl.connection import Connection
from slabd.ctl.interrupts import uninterrupted
from slabd.ctl.last_words import gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slabd.ctl.bench.options import BenchOptions
    from slabd.ctl.bench.progress import Display

_NAMED: Final = Path("/dev/shm")  # noqa: S108  # where the kernel has named shared memory


class Stage:
    """The daemon and the children of one run. Use `set_stage`."""

    def __init__(self, options: BenchOptions, display: Display, daemon: slabd.PrivateDaemon, place: Place) -> None:
        self.options = options
        self.display = display
        self.place = place
        self.daemon_pid = daemon.pid
        with Connection(resolve(daemon.address)) as connection:
            self._metrics_address = connection.status().metrics_address
        self._children: list[Child] = []
        self._workers: list[Child] = []

    def start(self, name: str, target: Callable[..., None], *arguments: Any) -> Child:
        """Start a child that is ended with the stage, if not before."""
        with uninterrupted():
            child = Child(name, target, *arguments)
            self._children.append(child)
        return child

    def workers(self, count: int) -> list[Child]:
        """Return the first workers, started when they are first needed."""
        while len(self._workers) < count:
            self._workers.append(self.start(f"worker {len(self._workers) + 1}", worker.serve, self.place))
        return self._workers[:count]

    def end(self, *children: Child) -> None:
        """End children before the stage does."""
        self._children = [child for child in self._children if child not in children]
        end_all(children)

    def calls(self) -> int:
        """Return how many gRPC calls clients have made."""
        return calls_made(self._metrics_address)

    def close(self) -> None:
        """End all children."""
        end_all(self._children)


@contextmanager
def set_stage(options: BenchOptions, display: Display) -> Iterator[Stage]:
    """Start what a run needs, and leave nothing of it behind.

    Raises:
        slabd.SlabdError: the private daemon did not start.
        ChildFailed: the echo server did not.
        DaemonUnavailable: the private daemon has ended while it was used.
    """
    with ExitStack() as stack:
        prefix = f"slabd_bench_{os.getpid()}_"
        with uninterrupted():
            scratch = tempfile.mkdtemp(prefix="slabd-bench-")
            # Last of all: iceoryx2 keeps a file in /dev/shm for as long as the machine runs.
            stack.callback(_clear, scratch, prefix)
        daemon = stack.enter_context(slabd.start(HEAP_BYTES, prefault=True, metrics_listen="127.0.0.1:0"))
        # Abstract, so that it has no file, and no length that a path could exceed.
        place = Place(daemon.address, f"unix-abstract:slabd-bench-{os.getpid()}-{time.monotonic_ns()}", scratch, prefix)
        stage = Stage(options, display, daemon, place)
        stack.callback(stage.close)
        if {"grpc", "miss"} & set(options.names):
            stage.start("echo server", echo.serve, place.echo_target).receive(str)
        try:
            yield stage
        except (ChildFailed, PeerFailed, OSError) as error:
            if (end := gone(daemon, error)) is None:
                raise
            raise end from error


def _clear(scratch: str, prefix: str) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    for path in _NAMED.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)
