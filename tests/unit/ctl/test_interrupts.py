"""What Ctrl-C may cut short, and what it may not."""

from __future__ import annotations

import signal

import pytest

from slabd.ctl.interrupts import SIGNALS, one_interrupt, uninterrupted


def test_the_first_signal_interrupts_and_the_others_do_not() -> None:
    """What ends in order is not interrupted again; afterwards all is as before."""

    def interrupted_while_ending() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)

    before = [signal.getsignal(each) for each in SIGNALS]
    with one_interrupt(), pytest.raises(KeyboardInterrupt):
        interrupted_while_ending()
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_what_terminates_says_so_in_the_exit_code() -> None:
    """128 and the signal's number, as shells have it."""
    with one_interrupt(), pytest.raises(SystemExit) as exit_info:
        signal.raise_signal(signal.SIGTERM)
    assert exit_info.value.code == 128 + signal.SIGTERM


def test_an_interrupt_waits_until_what_is_made_has_been_noted() -> None:
    """Then it comes."""
    made = []

    def make() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            made.append("made and noted")

    with one_interrupt(), pytest.raises(KeyboardInterrupt):
        make()
    assert made == ["made and noted"]


def test_nothing_comes_where_nothing_came() -> None:
    """And the handlers are the same."""
    before = [signal.getsignal(each) for each in SIGNALS]
    with uninterrupted():
        pass
    assert [signal.getsignal(each) for each in SIGNALS] == before
