"""The hand-off without a round trip, in every order: no block that somebody has open is freed, and none is lost.

An owner shares a block, hands the handle out, returns the block and exits; two consumers open it, use it and close it;
the daemon reads their lanes, lets the handle expire, buries the dead, frees the block and grants the heap to a
stranger, or the owner has the block transferred to it; anybody is killed anywhere, and every store becomes visible
late. All of it is the real code (`tests.fixtures.replay`).
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.fixtures.exploration import explore
from tests.fixtures.model_clients import consumer, owner
from tests.fixtures.model_daemon import Daemon
from tests.fixtures.model_machine import Machine
from tests.fixtures.model_parts import MUTANTS
from tests.fixtures.replay import Actor


@dataclass(frozen=True, kw_only=True)
class HandOff:
    """What is explored. The owner shares `rounds` times. A `mutant` of a daemon, or `blind` consumers, break a rule."""

    consumers: int
    opens: int
    rounds: int = 1
    grants: int = 1
    transfers: bool = False
    crashes: bool = True
    keeps: bool = False
    plenty: bool = False
    mutant: str = ""
    blind: str = ""

    def __str__(self) -> str:
        what = "transfers" if self.transfers else f"{self.grants} grants"
        back = ", the block comes back" if self.plenty else ""
        return f"{self.consumers} consumers, {self.rounds} times {self.opens} opens, {what}{back}"

    def machine(self) -> Machine:
        """Return the system."""
        daemon = Daemon(1 + self.consumers, self.mutant, plenty=self.plenty)
        slot = daemon.slot
        numbers = range(2, 2 + self.consumers)
        consumers = [Actor(f"consumer {number}", consumer(number, slot, blind=self.blind)) for number in numbers]
        clients = [Actor("owner", owner(slot, opens=self.opens, rounds=self.rounds, keeps=self.keeps)), *consumers]
        return Machine(daemon, clients, [("gate", slot)], self.crashes, self.grants, self.transfers)


@pytest.mark.parametrize(
    "model",
    [
        HandOff(consumers=2, opens=1),
        HandOff(consumers=2, opens=2, grants=0, crashes=False),
        HandOff(consumers=1, opens=2),
        HandOff(consumers=1, opens=1, rounds=2),
        HandOff(consumers=1, opens=1, rounds=2, plenty=True),
        HandOff(consumers=2, opens=1, plenty=True, crashes=False),
        HandOff(consumers=1, opens=1, grants=0, transfers=True),
        HandOff(consumers=2, opens=1, grants=0, transfers=True, crashes=False),
    ],
    ids=str,
)
def test_no_order_of_steps_frees_what_is_open(model: HandOff) -> None:
    """Whatever the order: a block that was opened stays until it is closed, and all is free at the end."""
    found = explore(model.machine())
    assert not found.broken_rule, str(found)
    assert found.states > 1000


@pytest.mark.parametrize("plenty", [False, True], ids=["freed", "comes back"])
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_daemon_that_breaks_a_rule_is_found_out(mutant: str, plenty: bool) -> None:  # noqa: FBT001 - pytest passes it
    """Each step of the daemon's is needed: without it there is an order in which a consumer loses what it uses."""
    found = explore(HandOff(consumers=1, opens=1, mutant=mutant, plenty=plenty).machine())
    assert found.broken_rule == "consumer 2 uses block 3.1, which it has not", str(found)
    assert found.trace[0] == "owner stores SHARE", str(found)
    assert "consumer 2 stores OPEN" in found.trace
    assert "daemon expires" in found.trace


def test_a_consumer_that_looks_only_once_is_found_out() -> None:
    """The second look at the gate is needed: without it a block may be freed between the look and the post."""
    found = explore(HandOff(consumers=1, opens=1, blind="generation").machine())
    assert found.broken_rule == "consumer 2 uses block 3.1, which it has not", str(found)
    looked, freed = found.trace.index("consumer 2 reads gate 3: 4"), found.trace.index("daemon issues a barrier")
    assert looked < freed < found.trace.index("consumer 2 stores OPEN"), str(found)


def test_a_transfer_without_a_barrier_is_found_out() -> None:
    """A block that is transferred has no other readers, because those who had passed its gate have been read."""
    model = HandOff(
        consumers=1, opens=1, grants=0, transfers=True, crashes=False, keeps=True, mutant="issues no barrier"
    )
    found = explore(model.machine())
    assert found.broken_rule == "consumer 2 uses block 3.1, which it has not", str(found)
    assert "daemon transfers" in found.trace, str(found)


def test_what_clients_do_when_nothing_comes_in_between() -> None:
    """The models are what they are meant to be: each client, alone, does this."""
    machine = HandOff(consumers=1, opens=1).machine()
    assert machine.alone(1) == ["stores SHARE", "stores handle 0 = 1", "stores RETURN"]
    assert machine.alone(2, {("handle", 0): 1, ("gate", 3): 4}) == [
        "reads handle 0: 1",
        "reads gate 3: 4",
        "stores OPEN",
        "reads gate 3: 4",
        "uses block 3.1",
        "stores CLOSE",
    ]
    assert machine.alone(2, {("handle", 0): 1, ("gate", 3): 6}) == ["reads handle 0: 1", "reads gate 3: 6"]
