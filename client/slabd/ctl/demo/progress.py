"""What one sees while the demo runs: a region of a terminal painted over and over, or plain lines now and then."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from slabd.ctl.painting import WIDEST_BAR, Painter, bar
from slabd.ctl.terminal import printable
from slabd.ctl.units import human_bytes, human_count, human_rate, percent

if TYPE_CHECKING:
    from typing import TextIO

    from slabd.ctl.terminal import Style

_LEAST_BAR: Final = 8
# What stands beside the bars.
_BESIDE: Final = 58
_STEP_PERCENT: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the demo is, at one moment. Sizes are in bytes."""

    files_done: int
    files: int
    done_bytes: int
    total_bytes: int
    seconds: float
    used_bytes: int
    available_bytes: int
    waiting: bool
    workers: tuple[tuple[str, str], ...]


class Display(Protocol):
    """Where progress goes."""

    def event(self, text: str, *, loud: bool = False) -> None:
        """Say something that stays."""

    def paint(self, progress: Progress, *, last: bool) -> None:
        """Show how far it is."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Silent:
    """For `-o json`, when nobody watches."""

    def event(self, text: str, *, loud: bool = False) -> None:
        """See Display."""

    def paint(self, progress: Progress, *, last: bool) -> None:
        """See Display."""

    def close(self) -> None:
        """See Display."""


class Lines:
    """For logs: a line for every tenth of the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._step = -1

    def event(self, text: str, *, loud: bool = False) -> None:
        """See Display."""
        del loud  # in a log all lines are the same
        print(printable(text), file=self._stream, flush=True)

    def paint(self, progress: Progress, *, last: bool) -> None:
        """See Display."""
        step = 100 * progress.files_done // max(progress.files, 1) // _STEP_PERCENT
        if step > self._step or last:
            self._step = step
            self.event(line_of(progress))

    def close(self) -> None:
        """See Display."""


class Region:
    """For terminals: a few lines, painted over, with what stays above them."""

    def __init__(self, stream: TextIO, style: Style) -> None:
        self._painter = Painter(stream)
        self._style = style

    def event(self, text: str, *, loud: bool = False) -> None:
        """See Display."""
        line = printable(text)
        self._painter.stay([f"{self._style.dim('·')} {self._style.bold(line) if loud else line}"])

    def paint(self, progress: Progress, *, last: bool) -> None:
        """See Display."""
        del last
        columns = shutil.get_terminal_size().columns
        self._painter.paint(region_of(progress, self._style, max(_LEAST_BAR, min(WIDEST_BAR, columns - _BESIDE))))

    def close(self) -> None:
        """See Display."""
        self._painter.close()


def line_of(progress: Progress) -> str:
    """Return progress as one line."""
    return (
        f"{human_count(progress.files_done)} of {human_count(progress.files)} files, "
        f"{human_bytes(progress.done_bytes)} in {progress.seconds:.1f} s; "
        f"heap: {human_bytes(progress.used_bytes)} used, {human_bytes(progress.available_bytes)} available"
    )


def region_of(progress: Progress, style: Style, wide: int = WIDEST_BAR) -> list[str]:
    """Return progress as the lines of a region, with bars so many columns wide."""
    heap = progress.used_bytes + progress.available_bytes
    files = f"{human_count(progress.files_done)} of {human_count(progress.files)}"
    rate = human_rate(progress.done_bytes, progress.seconds)
    waiting = style.warn("  full: the reader waits for room") if progress.waiting else ""
    workers = " · ".join(f"{name}: {doing}" for name, doing in progress.workers)
    used, available = human_bytes(progress.used_bytes), human_bytes(progress.available_bytes)
    done, total = human_bytes(progress.done_bytes), human_bytes(progress.total_bytes)
    file_bar = style.good(bar(progress.files_done, progress.files, wide))
    byte_bar = style.good(bar(progress.done_bytes, progress.total_bytes, wide))
    heap_bar = style.warn(bar(progress.used_bytes, heap, wide))
    return [
        "",
        f"  files  {file_bar}  {files}, {percent(progress.files_done, progress.files)}",
        f"  bytes  {byte_bar}  {done} of {total}, {rate}, {progress.seconds:.1f} s",
        f"  heap   {heap_bar}  {used} used, {available} available{waiting}",
        f"  {style.dim(workers)}",
    ]
