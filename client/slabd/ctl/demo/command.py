"""`slabctl demo` on the command line: its options, its display, its exit code."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from slabd.ctl.demo.children import ChildFailed
from slabd.ctl.demo.files import scan, stdlib
from slabd.ctl.demo.loop import Stuck
from slabd.ctl.demo.options import DEFAULT_HEAP, DemoOptions, default_workers
from slabd.ctl.demo.progress import Lines, Region, Silent
from slabd.ctl.demo.run import run_demo
from slabd.ctl.demo.work import stretches
from slabd.ctl.exits import ExitCode, complain
from slabd.ctl.interrupts import one_interrupt
from slabd.ctl.plain import to_json
from slabd.ctl.reading import whole
from slabd.ctl.terminal import style_for
from slabd.ctl.units import human_bytes, parse_size, plural
from slabd.errors import DaemonUnavailable

if TYPE_CHECKING:
    from typing import TextIO

    from slabd.ctl.demo.files import Scan
    from slabd.ctl.demo.progress import Display

NAME: Final = "demo"
SUMMARY: Final = "run the main job on real files, kill a worker on the way, and prove that nothing is lost"
DESCRIPTION: Final = """\
Start a private daemon and push real files through its heap. A reader process leases a block for each file, reads the
file straight into it, and hands the handle to worker processes, which compute SHA-256 in place and release. One worker
is killed with SIGKILL while it holds blocks. Every digest is compared with one computed directly from the file.

Files larger than the heap are done in pieces, each compared by itself. Empty files are compared without a block. Links
are not followed; what cannot be read, or does not stop changing, is skipped, and said so. Exit code 0 only if every
other digest matched, the daemon's check is clean, and nothing leaked.

-o json prints one object when the demo has ended:
  ok, problems, files, matched, wrong [{path, reason}], skipped [{path, reason}], empty, in_pieces, links_not_followed,
  special_files, limited, heap_bytes, workers, bytes_through_heap, seconds, bytes_per_second, leases, read_again, waits,
  waited_seconds, killed [{name, pid, blocks, held_bytes, used_bytes_before, used_bytes_after, bystander_blocks,
  milliseconds, problem, reclaimed_bytes}], other_deaths, check {ok, problems},
  leaks {used_bytes, leases, sessions, largest_free_block_bytes, total_bytes}, used_peak_bytes"""

_NAMED: Final = 3
_MAX_WORKERS: Final = 256
_HEAP_STEP: Final = 32 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's arguments."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files or directories (default: the standard library)")
    parser.add_argument(
        "--workers",
        type=whole(1, _MAX_WORKERS),
        default=default_workers(),
        metavar="N",
        help="how many worker processes (default: %(default)s)",
    )
    parser.add_argument(
        "--heap-size",
        type=_heap_bytes,
        default=parse_size(DEFAULT_HEAP),
        metavar="SIZE",
        help=f"the heap's size, small enough to be full at times (default: {DEFAULT_HEAP})",
    )
    parser.add_argument("--limit", type=whole(1, 2**63 - 1), metavar="N", help="only the first N files")
    parser.add_argument("--no-kill", dest="kill", action="store_false", help="let all workers live")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the demo and show how it went.

    Raises:
        slabd.SlabdError: the private daemon refused something.
    """
    try:
        found = scan(arguments.paths, arguments.limit)
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}: give files or directories that exist", ExitCode.USAGE)
    where = ", ".join(arguments.paths) or stdlib()
    if not found.files:
        return complain(f"no regular file can be read below {where}", ExitCode.USAGE)
    options = DemoOptions(
        paths=tuple(arguments.paths),
        workers=arguments.workers,
        heap_bytes=arguments.heap_size,
        kill=arguments.kill,
        limit=arguments.limit,
    )
    display = _display(arguments.output)
    display.event(f"{where}: {plural(len(found.files), 'file')}, {human_bytes(found.total_bytes)}")
    _mention_large(display, found, options)
    try:
        with one_interrupt():
            summary = run_demo(options, found, display)
    except DaemonUnavailable as error:
        return complain(" ".join(str(error).split()), ExitCode.UNREACHABLE)
    except (ChildFailed, Stuck) as error:
        return complain(str(error), ExitCode.WRONG)
    except KeyboardInterrupt:
        return complain("interrupted; the daemon and all processes are gone", ExitCode.INTERRUPTED)
    if arguments.output == "json":
        print(to_json(summary.plain()))
    else:
        print("\n".join(["", *summary.lines(style_for(sys.stdout, os.environ))]))
    return summary.exit_code


def _mention_large(display: Display, found: Scan, options: DemoOptions) -> None:
    large = [each for each in found.files if each.stamp.size > options.heap_bytes]
    for each in large[:_NAMED]:
        display.event(
            f"{PurePosixPath(each.path).name} has {human_bytes(each.stamp.size)}, more than the heap: done in "
            f"{plural(len(stretches(each.stamp.size, options.heap_bytes)), 'piece')}"
        )
    if len(large) > _NAMED:
        display.event(f"and {plural(len(large) - _NAMED, 'more file')} in the same way")


def _display(output: str) -> Display:
    """Progress goes where the answer goes; with JSON, where it does not."""
    stream: TextIO = sys.stdout if output == "table" else sys.stderr
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return Region(stream, style_for(stream, os.environ))
    return Lines(stream) if output == "table" else Silent()


def _heap_bytes(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size < _HEAP_STEP or size % _HEAP_STEP:
        raise argparse.ArgumentTypeError(f"{text}: a heap has at least 32 KiB, and a multiple of them")
    return size
