"""Recall, in every order: no block that a client takes out of its cache is taken back by the daemon at the same time.

A client leases a cached block, uses it and puts it back, several times; the daemon recalls it twice, to grant it to a
stranger. Or the client leases by gRPC what it was granted over the lane and has not noticed, and learns of that later.
The client is killed anywhere, and every store becomes visible late. All of it is the real code
(`tests.fixtures.replay`).
"""

from __future__ import annotations

import pytest
from tests.fixtures.exploration import explore
from tests.fixtures.model_clients import ANSWER, CALL, caller, taker
from tests.fixtures.model_daemon import Daemon
from tests.fixtures.model_machine import Machine
from tests.fixtures.replay import Actor


def recall(*, times: int, knows: bool = True, mutant: str = "", blind: str = "") -> Machine:
    """Return the system, of which the daemon (`mutant`) or the client (`blind`) may break a rule."""
    daemon = Daemon(1, mutant, caching=True)
    client = Actor("client", taker(daemon.slot, times=times, knows=knows, blind=blind))
    shared = [("gate", daemon.slot), ("state", daemon.slot), ("attention", 1), ("answers taken", 1)]
    return Machine(daemon, [client], shared)


def call(*, blind: str = "") -> Machine:
    """Return the system with a client that calls."""
    daemon = Daemon(1, caching=True)
    client = Actor("client", caller(daemon.slot, blind=blind))
    words = [("gate", daemon.slot), ("state", daemon.slot), ("attention", 1), ("answers taken", 1)]
    return Machine(daemon, [client], [*words, CALL, ANSWER])


@pytest.mark.parametrize("knows", [True, False])
def test_no_order_of_steps_recalls_what_is_used(knows: bool) -> None:  # noqa: FBT001 - pytest passes it
    """Whatever the order: a block is in use or taken back, even one that the client has not learned of before."""
    found = explore(recall(times=3, knows=knows))
    assert not found.broken_rule, str(found)
    assert found.states > 1000


@pytest.mark.parametrize(("mutant", "blind"), [("issues no barrier", ""), ("", "attention"), ("", "generation")])
def test_each_side_has_to_look(mutant: str, blind: str) -> None:
    """Without the barrier, or one of the client's two looks, there is an order in which it uses what it has not."""
    found = explore(recall(times=2, mutant=mutant, blind=blind))
    assert found.broken_rule == "client uses block 2.1, which it has not", str(found)
    assert "daemon grants" in found.trace
    assert "client stores state 2 = 1" in found.trace


def test_an_answer_that_is_out_of_date_recalls_nothing() -> None:
    """Whatever the order: what came by gRPC is in use, though an older answer about its slot is taken in meanwhile."""
    found = explore(call())
    assert not found.broken_rule, str(found)
    assert found.states > 300


def test_a_client_has_to_look_how_old_an_answer_is() -> None:
    """Else it says of a block that it uses, and that came by gRPC, that it is cached; and the daemon believes it."""
    found = explore(call(blind="generation"))
    assert found.broken_rule == "client uses block 2.2, which it has not", str(found)
    assert "client stores state 2 = 2" in found.trace
    assert "daemon grants" in found.trace


def test_what_a_client_does_when_nothing_comes_in_between() -> None:
    """The model is what it is meant to be: IN_USE first, attention second, the generation third."""
    machine = recall(times=1)
    assert machine.alone(1, {("gate", 2): 4, ("state", 2): 2, ("attention", 1): 0}) == [
        "reads gate 2: 4",
        "stores state 2 = 1",
        "reads attention 1: 0",
        "reads gate 2: 4",
        "uses block 2.1",
        "stores state 2 = 2",
    ]
