"""The fork gate, with threads that only pretend to call."""

from __future__ import annotations

import threading
import time

import pytest

from slabd import InheritedByFork, forking
from slabd.forking import Gate

WAIT_SECONDS = 60.0


def in_thread(work: object) -> threading.Thread:
    """Start a thread."""
    assert callable(work)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_fork_waits_for_calls_under_way() -> None:
    """The gate is closed when the last one has left."""
    gate = Gate()
    gate.enter()
    closing = in_thread(gate.close)
    closing.join(0.1)
    assert closing.is_alive()
    gate.leave()
    closing.join(WAIT_SECONDS)
    assert not closing.is_alive()


def test_no_call_begins_while_a_fork_is_going_on() -> None:
    """It begins when the gate opens."""
    gate = Gate()
    gate.close()
    calling = in_thread(gate.enter)
    calling.join(0.1)
    assert calling.is_alive()
    gate.open()
    calling.join(WAIT_SECONDS)
    assert not calling.is_alive()


def test_a_fork_cuts_waiting_calls_short() -> None:
    """Those that are under way, and those that become so while it waits for the others."""
    gate = Gate()
    cuts: list[str] = []

    def cut_first() -> None:
        cuts.append("first")
        gate.leave(cut_first)

    def cut_late() -> None:
        cuts.append("late")
        gate.leave(cut_late)

    gate.enter()
    gate.allow_cut(cut_first)
    gate.enter()
    closing = in_thread(gate.close)
    while "first" not in cuts:
        time.sleep(0.001)
    gate.allow_cut(cut_late)
    closing.join(WAIT_SECONDS)
    assert (closing.is_alive(), cuts) == (False, ["first", "late"])


def test_forks_come_one_after_the_other() -> None:
    """Two threads may fork at once."""
    gate = Gate()
    gate.close()
    second = in_thread(gate.close)
    second.join(0.1)
    assert second.is_alive()
    gate.open()
    second.join(WAIT_SECONDS)
    assert not second.is_alive()


def test_a_child_begins_with_an_open_gate() -> None:
    """Whatever the parent's other threads were doing."""
    gate = Gate()
    gate.enter()
    gate.reset()
    gate.close()
    gate.open()
    assert gate.used


def test_a_child_that_would_hang_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gRPC's fork support, in a child whose parent has used it."""
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
    forking.check_child_can_call()
    monkeypatch.setattr(forking, "_doomed", True)
    with pytest.raises(InheritedByFork, match="GRPC_ENABLE_FORK_SUPPORT=0"):
        forking.check_child_can_call()
