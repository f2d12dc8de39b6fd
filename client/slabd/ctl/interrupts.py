"""Ctrl-C while something long runs that has to end in order."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP end what runs in order, and ignore those that come while it ends."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    # What our parent has ignored, as nohup does, stays ignored.
    heard = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.signal(each, interrupt) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have what these signals raise wait for the end of the block: for making something and noting that it is there.

    To block them would not do: another thread may get them, and Python's handler runs in the main thread all the same.
    """
    came: list[tuple[int, FrameType | None]] = []
    before = {each: handler for each in SIGNALS if callable(handler := signal.getsignal(each))}
    for each in before:
        signal.signal(each, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number, frame in came[:1]:
            before[signal.Signals(number)](number, frame)
