"""Operations as coroutines: driven without a loop, with deadlines and retries."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from slabd import errors
from slabd.calls import Line
from slabd.transport import Deadline, Interrupted, run

if TYPE_CHECKING:
    from slabd.transport import Transport


class Silence(grpc.RpcError):
    """A call that nobody answered."""

    def code(self) -> grpc.StatusCode:
        """See grpc.Call."""
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """See grpc.Call."""
        return "connection refused"

    def trailing_metadata(self) -> tuple[Any, ...]:
        """See grpc.Call."""
        return ()


class Script:
    """A transport that only knows how to let time pass, and a call whose outcomes are written down."""

    target = "unix:/nowhere"

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        """Note it."""
        self.pauses.append(seconds)

    async def attempt(self, seconds: float) -> object:
        """Have the next outcome; the last one stays."""
        assert seconds > 0
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def line(script: Script, *, gone: bool = False) -> Line:
    """Return a line over a script, to a daemon that may have hung up."""

    def check_alive(failure: errors.SlabdError) -> None:
        if gone:
            raise errors.DaemonUnavailable("gone for good") from failure

    return Line(cast("Transport", script), 5.0, check_alive)


def test_run_returns_what_the_coroutine_returns() -> None:
    """Also when that is nothing, or a tuple, which StopIteration would take apart."""

    async def value(result: Any) -> Any:
        return result

    assert [run(value(result)) for result in (None, 3, (1, 2), StopIteration)] == [None, 3, (1, 2), StopIteration]


def test_run_raises_what_the_coroutine_raises() -> None:
    """Unchanged."""

    async def fail() -> None:
        raise errors.StaleHandle("too late")

    with pytest.raises(errors.StaleHandle, match="too late"):
        run(fail())


def test_run_refuses_a_coroutine_that_suspends() -> None:
    """A defect of the transport, and nothing is left running."""
    closed = []

    async def suspend() -> None:
        try:
            await asyncio.sleep(1)
        finally:
            closed.append(True)

    with pytest.raises((errors.InternalError, RuntimeError)):
        run(suspend())
    assert closed == [True]


def test_silence_is_tried_again() -> None:
    """Until somebody answers, with growing pauses."""
    script = Script(Silence(), Silence(), Silence(), "answer")
    assert run(line(script).call(script.attempt)) == "answer"
    assert script.pauses == sorted(script.pauses)
    assert len(script.pauses) == 3


def test_silence_has_an_end() -> None:
    """When the deadline has passed it is a typed error."""
    script = Script(Silence())
    with pytest.raises(errors.DaemonUnavailable, match="connection refused"):
        run(line(script).call(script.attempt, Deadline(0.0)))


def test_a_daemon_that_hung_up_is_not_waited_for() -> None:
    """The session is lost: at once, and it says so."""
    script = Script(Silence())
    with pytest.raises(errors.DaemonUnavailable, match="gone for good"):
        run(line(script, gone=True).call(script.attempt))
    assert script.pauses == []


def test_a_refusal_is_final() -> None:
    """Only silence is tried again."""
    script = Script(errors.OutOfMemory("full"), "never")
    with pytest.raises(errors.OutOfMemory):
        run(line(script).call(script.attempt))
    assert script.outcomes == ["never"]


def test_a_call_cut_short_by_a_fork_is_made_again_at_once() -> None:
    """It is no failure."""
    script = Script(Interrupted(), "answer")
    assert run(line(script).call(script.attempt)) == "answer"
    assert script.pauses == []


def test_a_closed_channel_is_a_closed_pool() -> None:
    """What gRPC raises then is a bare ValueError."""
    script = Script(ValueError("Cannot invoke RPC on closed channel!"))
    with pytest.raises(errors.PoolClosed):
        run(line(script).call(script.attempt))


def test_deadlines() -> None:
    """None is never; nothing is left of zero."""
    assert (Deadline(None).remaining, Deadline(None).passed) == (None, False)
    assert (Deadline(0.0).remaining, Deadline(0.0).passed) == (0.0, True)
