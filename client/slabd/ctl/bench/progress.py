"""What one sees while the benchmark runs: finished tables stay, and below them a region says how far it is."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from slabd.ctl.painting import WIDEST_BAR, Painter, bar
from slabd.ctl.terminal import PLAIN, printable
from slabd.ctl.units import percent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TextIO

    from slabd.ctl.bench.model import Figure, Outcome
    from slabd.ctl.terminal import Style

# Wide enough for every table, where there is no terminal.
FALLBACK_SIZE: Final = (100, 24)
_PAINT_SECONDS: Final = 0.1


class Display(Protocol):
    """Where progress and finished figures go."""

    def begin(self, figure: Figure) -> None:
        """Say which figure is measured now."""

    def step(self, doing: str) -> None:
        """Say whose turn it is; each of a figure's steps once."""

    def finish(self, outcome: Outcome) -> None:
        """Show a figure."""

    def close(self) -> None:
        """Leave the terminal as it was."""


# What makes lines of a figure, so many columns wide.
Show: TypeAlias = "Callable[[Outcome, Style, int], list[str]]"


def nothing(_outcome: Outcome, _style: Style, _columns: int) -> list[str]:
    """Show nothing of a figure: with `-o json` everything comes at the end."""
    return []


class Lines:
    """For files and pipes: each figure when it is done."""

    def __init__(self, stream: TextIO, show: Show) -> None:
        self._stream = stream
        self._show = show

    def begin(self, figure: Figure) -> None:
        """See Display."""

    def step(self, doing: str) -> None:
        """See Display."""

    def finish(self, outcome: Outcome) -> None:
        """See Display."""
        for line in self._show(outcome, PLAIN, FALLBACK_SIZE[0]):
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """See Display."""


class Region:
    """For terminals."""

    def __init__(self, stream: TextIO, style: Style, figures: Sequence[Figure], show: Show) -> None:
        self._painter = Painter(stream)
        self._style = style
        self._show = show
        self._figures = list(figures)
        self._steps = sum(figure.steps for figure in figures)
        self._done = 0
        self._done_before = 0
        self._began = time.monotonic()
        self._painted = 0.0
        self._figure: Figure | None = None

    def begin(self, figure: Figure) -> None:
        """See Display."""
        self._figure = figure
        self._done = self._done_before
        self._paint("starts")

    def step(self, doing: str) -> None:
        """See Display."""
        self._done = min(self._done + 1, self._steps)
        if time.monotonic() - self._painted >= _PAINT_SECONDS:
            self._paint(doing)

    def finish(self, outcome: Outcome) -> None:
        """See Display."""
        self._done_before += outcome.figure.steps
        self._painter.stay(self._show(outcome, self._style, shutil.get_terminal_size(FALLBACK_SIZE).columns))

    def close(self) -> None:
        """See Display."""
        self._painter.close()

    def _paint(self, doing: str) -> None:
        assert self._figure is not None  # noqa: S101  # a figure has begun
        self._painted = time.monotonic()
        at = self._figures.index(self._figure) + 1
        self._painter.paint(
            region_of(
                f"{at} of {len(self._figures)}: {self._figure.title}",
                printable(doing),
                (self._done, self._steps),
                time.monotonic() - self._began,
                self._style,
            )
        )


def region_of(title: str, doing: str, steps: tuple[int, int], seconds: float, style: Style) -> list[str]:
    """Return the lines of the region."""
    done, whole = steps
    return [
        "",
        f"  {style.good(bar(done, whole, WIDEST_BAR))}  {percent(done, whole)}, {seconds:.0f} s",
        f"  {title}",
        f"  {style.dim(doing)}",
    ]
