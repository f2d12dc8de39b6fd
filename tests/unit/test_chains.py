"""Chains of slots: their order, and what `check` sees when a link, an end or a length is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slabd_server.core.chains import Chain, Links
from slabd_server.core.errors import InvariantBroken
from slabd_server.core.records import SlotId

if TYPE_CHECKING:
    from collections.abc import Callable


def chain_of(*slots: int, links: Links | None = None) -> Chain:
    """Return a chain of these slots, alone on its links unless told otherwise."""
    chain = Chain(Links() if links is None else links)
    for slot in slots:
        chain.append(SlotId(slot))
    return chain


@pytest.mark.parametrize(
    ("gone", "left"),
    [([3], [900, 5]), ([900], [3, 5]), ([5], [3, 900]), ([3, 5], [900]), ([5, 900], [3]), ([900, 3, 5], [])],
)
def test_slots_leave_from_anywhere(gone: list[int], left: list[int]) -> None:
    """Whichever slots leave, the others stay in order, and the chain takes them back at its end."""
    chain = chain_of(3, 900, 5)
    for slot in gone:
        chain.remove(SlotId(slot))
    chain.check()
    assert (list(chain), len(chain), chain.oldest) == (left, len(left), left[0] if left else None)
    for slot in gone:
        chain.append(SlotId(slot))
    chain.check()
    assert list(chain) == left + gone


def test_a_chain_can_be_emptied_while_it_is_walked() -> None:
    """The slot just seen may be removed, also when it goes to another chain at once."""
    links = Links()
    chain, other = chain_of(1, 2, 3, links=links), chain_of(7, links=links)
    for slot in chain:
        chain.remove(slot)
        other.append(slot)
    assert (list(chain), list(other)) == ([], [7, 1, 2, 3])
    chain.check()
    other.check()


def test_chains_share_room() -> None:
    """A slot far away makes room for every chain and moves nothing, and at least 64 slots are made at a time."""
    links = Links()
    chain, other = chain_of(0, links=links), chain_of(63, links=links)
    assert (len(links.next), len(links.prev)) == (64, 64)
    other.append(SlotId(64))
    assert (len(links.next), len(links.prev)) == (128, 128)
    other.append(SlotId(5000))
    assert (list(chain), list(other)) == ([0], [63, 64, 5000])
    assert (len(links.next), len(links.prev)) == (5001, 5001)


def point_back_elsewhere(chain: Chain) -> None:
    """Let a slot point back past its neighbour."""
    chain._links.prev[5] = 3


def point_back_from_the_first(chain: Chain) -> None:
    """Let the first slot point back at another."""
    chain._links.prev[3] = 5


def go_round(chain: Chain) -> None:
    """Let the last slot lead to the first again."""
    chain._links.next[5] = 3


def end_early(chain: Chain) -> None:
    """Let the last slot be another."""
    chain._last = 4


def count_too_few(chain: Chain) -> None:
    """Let the length be too small."""
    chain._length = 2


def count_too_many(chain: Chain) -> None:
    """Let the length be too large."""
    chain._length = 4


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (point_back_elsewhere, "slot 5 follows 4 in its chain but points back at 3"),
        (point_back_from_the_first, "slot 3 follows 4294967295 in its chain but points back at 5"),
        (go_round, "slot 3 follows 5 in its chain but points back at 4294967295"),
        (end_early, "a chain of 3 slots ending in 4 has 3, ending in 5"),
        (count_too_few, "a chain of 2 slots ending in 5 has 3, ending in 5"),
        (count_too_many, "a chain of 4 slots ending in 5 has 3, ending in 5"),
    ],
)
def test_check_sees_what_is_wrong(spoil: Callable[[Chain], None], found: str) -> None:
    """Whichever invariant of a chain is broken, `check` says so."""
    chain = chain_of(3, 4, 5)
    chain.check()
    spoil(chain)
    with pytest.raises(InvariantBroken, match=found):
        chain.check()
