"""One demo from start to end: the daemon, the crew, the loop between them, and the count when everybody is gone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import slabd
from slabd.address import resolve
from slabd.ctl.connection import Connection
from slabd.ctl.demo.children import ChildFailed
from slabd.ctl.demo.crew import Crew
from slabd.ctl.demo.loop import Loop
from slabd.ctl.demo.messages import HANDLE_SECONDS
from slabd.ctl.demo.summary import Ending, Summary
from slabd.ctl.last_words import gone, log_tail
from slabd.ctl.units import human_bytes
from slabd.errors import DaemonUnavailable

if TYPE_CHECKING:
    from slabd.ctl.demo.files import Scan
    from slabd.ctl.demo.options import DemoOptions
    from slabd.ctl.demo.progress import Display

_LEAVING_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.01


def run_demo(options: DemoOptions, found: Scan, display: Display) -> Summary:
    """Run the demo over the files found, and return what there is to say about it.

    Raises:
        slabd.SlabdError: the private daemon did not start, or went away.
        ChildFailed: a child ended with an error.
        Stuck: nothing moved any more.
    """
    crew = Crew(options.programs, options.workers)  # first: its interpreters start while the daemon does
    try:
        with slabd.start(options.heap_bytes) as daemon:
            try:
                return _run_with(daemon, crew, options, found, display)
            except (ChildFailed, DaemonUnavailable) as error:
                raise _explained(error, daemon) from error
            finally:
                crew.kill()  # before the daemon is asked to stop: it waits for its clients
    finally:
        crew.kill()
        display.close()


def _run_with(daemon: slabd.PrivateDaemon, crew: Crew, options: DemoOptions, found: Scan, display: Display) -> Summary:
    display.event(
        f"heap {human_bytes(options.heap_bytes)}; pids: daemon {daemon.pid}, "
        + ", ".join(f"{child.name} {child.pid}" for child in crew.all)
    )
    with Connection(resolve(daemon.address)) as connection:
        crew.start(daemon.address)
        loop = Loop(options, found.files, crew, connection, display)
        loop.run()
        crew.stop()
        # A reader that died may have made handles and told nobody: their blocks return when they expire.
        patience = _LEAVING_SECONDS + (HANDLE_SECONDS if loop.other_deaths else 0)
        return Summary(
            work=loop.work,
            scan=found,
            heap_bytes=options.heap_bytes,
            workers=options.workers,
            seconds=loop.seconds,
            killed=tuple(loop.killed),
            kill_wanted=options.kill,
            other_deaths=loop.other_deaths,
            ending=_ending(connection, patience),
        )


def _explained(error: ChildFailed | DaemonUnavailable, daemon: slabd.PrivateDaemon) -> Exception:
    """Return the error with what the daemon has to say to it."""
    return gone(daemon, error) or ChildFailed(f"{error}; the daemon's log ends with: {log_tail(daemon)}")


def _ending(connection: Connection, patience: float) -> Ending:
    """Return what is left, when the daemon has seen all clients go. All their processes are gone already."""
    until = time.monotonic() + patience
    (heap,) = connection.books().heaps
    while (heap.used_bytes or heap.sessions) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
        (heap,) = connection.books().heaps
    check = connection.check()
    return Ending(
        used_bytes=heap.used_bytes,
        leases=heap.leases,
        sessions=heap.sessions,
        largest_free_block_bytes=heap.largest_free_block_bytes,
        total_bytes=heap.total_bytes,
        used_peak_bytes=heap.used_peak_bytes,
        check_ok=check.ok,
        check_problems=tuple(check.problems),
    )
