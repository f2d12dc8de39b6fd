"""`slabctl bench` on the command line: its options, its display, its exit code."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from slabd.ctl.bench.catalogue import figures
from slabd.ctl.bench.figures import RUNS
from slabd.ctl.bench.model import Report
from slabd.ctl.bench.options import LARGEST_SIZE, NAMES, choose
from slabd.ctl.bench.processes import ChildFailed, PeerFailed
from slabd.ctl.bench.progress import FALLBACK_SIZE, Lines, Region, nothing
from slabd.ctl.bench.show import legend, outcome_lines, report_plain
from slabd.ctl.bench.stage import set_stage
from slabd.ctl.exits import ExitCode, complain
from slabd.ctl.interrupts import one_interrupt
from slabd.ctl.plain import to_json
from slabd.ctl.reading import whole
from slabd.ctl.terminal import style_for
from slabd.ctl.units import human_bytes, parse_size
from slabd.errors import DaemonUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from slabd.ctl.bench.model import Figure, Outcome
    from slabd.ctl.bench.options import BenchOptions
    from slabd.ctl.bench.progress import Display, Show

NAME: Final = "bench"
SUMMARY: Final = "measure what slabd costs on this machine, beside what people would use instead"
DESCRIPTION: Final = """\
Start a private daemon and a few processes, and measure slabd beside others that do the same work, in turns, in the same
run: named shared memory, iceoryx2 (pip install 'slabd[bench]'), a bare gRPC echo, pipes and queues; and floors that no
pool can beat. It takes about a minute, and needs nothing else.

figures:
  untouched   lease, look at the view, release
  miss        lease and release when nothing is at hand
  grpc        the same over gRPC, one block and many
  write       lease, write all of it, release
  handoff     a frame from process to process
  clients     many clients at once
  calls       gRPC calls in the steady state
  idle        CPU time while nobody does anything
  live        a lease among many live blocks, and what a live block takes

Ratios are what holds: other load on the machine hits all peers alike, but not for the same number of microseconds.

-o json prints one object when all is done:
  quick, repeats, seconds, machine {cpus, kernel, python, slabd, grpcio, iceoryx2},
  figures [{name, title, what, seconds, units {KEY: unit}, peers [{name, what}], rows [{CASE, peer, KEY...}],
  left_out [{peer, reason, case}]}]
where CASE is bytes, blocks, in_flight, clients, leases_at_most or live_blocks, and what is absent is null."""

_MOST_REPEATS: Final = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the benchmark."""
    parser.add_argument("--quick", action="store_true", help="about ten seconds, for a first impression")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, metavar="NAME", help="only these figures (default: all, see above)"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_block_bytes,
        metavar="SIZE",
        help="the sizes of untouched and write (default: 64 B to 16 MiB)",
    )
    parser.add_argument(
        "--repeats", type=whole(1, _MOST_REPEATS), metavar="N", help="turns of each peer (default: 7, with --quick 3)"
    )


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the benchmark and show what came of it.

    Raises:
        slabd.SlabdError: the private daemon refused something.
    """
    options = choose(arguments.only, arguments.sizes, arguments.repeats, quick=arguments.quick)
    chosen = figures(options)
    display = _display(arguments.output, chosen)
    began = time.monotonic()
    try:
        with one_interrupt():
            outcomes = _measure(options, chosen, display)
    except DaemonUnavailable as error:
        return complain(" ".join(str(error).split()), ExitCode.UNREACHABLE)
    except (ChildFailed, PeerFailed) as error:
        return complain(str(error), ExitCode.WRONG)
    except KeyboardInterrupt:
        return complain("interrupted; the daemon and all processes are gone", ExitCode.INTERRUPTED)
    report = Report(
        outcomes=tuple(outcomes),
        machine=machine(),
        quick=options.quick,
        repeats=options.pace.repeats,
        seconds=time.monotonic() - began,
    )
    if arguments.output == "json":
        print(to_json(report_plain(report)))
    else:
        style = style_for(sys.stdout, os.environ)
        about = ", ".join(f"{name} {value}" for name, value in report.machine.items())
        print(
            "\n".join(
                [*legend(style, shutil.get_terminal_size(FALLBACK_SIZE).columns), f"{report.seconds:.0f} s; {about}"]
            )
        )
    return ExitCode.OK


def machine() -> dict[str, str | int]:
    """Return what the figures depend on besides slabd."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("slabd", "grpcio", "iceoryx2")},
    }


def _measure(options: BenchOptions, chosen: Sequence[Figure], display: Display) -> list[Outcome]:
    outcomes: list[Outcome] = []
    try:
        with set_stage(options, display) as stage:
            for figure in chosen:
                display.begin(figure)
                began = time.monotonic()
                outcome = RUNS[figure.name](stage, figure)
                outcomes.append(replace(outcome, seconds=time.monotonic() - began))
                display.finish(outcomes[-1])
    finally:
        display.close()
    return outcomes


def _display(output: str, chosen: Sequence[Figure]) -> Display:
    """Progress goes where the answer goes; with JSON, where it does not."""
    stream: TextIO = sys.stdout if output == "table" else sys.stderr
    show: Show = outcome_lines if output == "table" else nothing
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return Region(stream, style_for(stream, os.environ), chosen, show)
    return Lines(stream, show)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _block_bytes(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 1 <= size <= LARGEST_SIZE:
        raise argparse.ArgumentTypeError(f"{text}: a block here has from 1 byte to {human_bytes(LARGEST_SIZE)}")
    return size
