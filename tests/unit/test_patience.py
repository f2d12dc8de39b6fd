"""Patience: how many looks a step has, and what makes it more."""

from __future__ import annotations

import pytest

from slabd_server.core.errors import Searching
from slabd_server.core.patience import UNLIMITED, Patience


class Counting:
    """A search that needs so many steps, and has so much to read."""

    def __init__(self, steps: int, backlog: int = 0) -> None:
        self.steps = steps
        self.read = backlog
        self.seen: list[int] = []
        self.patience = Patience(None)

    def backlog(self) -> int:
        """Return what is written down."""
        return self.read

    def step(self) -> None:
        """Note the looks there are, and use them up."""
        self.seen.append(self.patience.left)
        self.steps -= 1
        if self.steps:
            raise Searching


def suspended(search: Counting) -> Patience:
    """Return the patience of a heap, of which a search has run out."""
    search.patience = Patience(10)
    search.patience.suspend(search)
    return search.patience


def test_a_step_has_its_looks_and_some_for_each_block() -> None:
    """A batch makes work for itself, so it may do it."""
    patience = Patience(10)
    patience.renew(1)
    assert patience.left == 18
    patience.renew(100)
    assert patience.left == 810


def test_without_looks_nobody_goes_on() -> None:
    """Having some is enough: a look may be begun with the last one."""
    patience = Patience(1)
    patience.require()
    patience.left -= 1
    with pytest.raises(Searching):
        patience.require()


def test_without_a_limit_there_are_always_looks() -> None:
    """Renewed or not."""
    patience = Patience(None)
    patience.renew(5)
    assert patience.left == UNLIMITED


def test_while_a_search_is_suspended_there_are_none() -> None:
    """They are for who goes on with it."""
    patience = suspended(search := Counting(2))
    assert (patience.left, patience.pending) == (0, search)
    patience.renew(3)
    assert patience.left == 0
    assert patience.go_on()
    assert (patience.left, patience.pending) == (0, search)
    assert not patience.go_on()
    assert patience.pending is None
    assert search.seen == [10, 10]
    assert not patience.go_on()


def test_the_first_search_that_is_suspended_is_gone_on_with() -> None:
    """Who comes after it waits for its end and asks again."""
    patience = suspended(search := Counting(1))
    patience.suspend(Counting(1))
    assert patience.pending is search


def test_what_was_written_down_meanwhile_is_looked_at_on_top() -> None:
    """And only that: what was there when the search was suspended is its own work."""
    patience = suspended(search := Counting(3, backlog=500))
    search.read = 507
    patience.go_on()
    search.read = 400
    patience.go_on()
    assert search.seen == [17, 10]


def test_a_request_whose_search_was_in_vain_gets_twice_as_many() -> None:
    """Until one is answered; and not without end."""
    patience = Patience(10)
    seen = []
    for _ in range(20):
        patience.suspend(Counting(1))
        patience.go_on()
        patience.renew(0)
        seen.append(patience.left)
    assert seen[:3] == [20, 40, 80]
    assert seen[-1] == seen[-2] == 10 << 16
    patience.answered()
    patience.renew(0)
    assert patience.left == 10
