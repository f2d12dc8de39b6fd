"""Patience: how many looks a step has, and what makes it more."""

from __future__ import annotations

import pytest

from slabd_server.core.errors import Searching
from slabd_server.core.patience import UNLIMITED, Patience

SEARCH = (2064, 1, False)


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
    patience = Patience(10)
    patience.suspend(SEARCH, 0)
    assert (patience.left, patience.pending) == (0, SEARCH)
    patience.renew(3)
    assert patience.left == 0
    patience.resume(0)
    assert patience.left == 10


def test_what_was_written_down_meanwhile_is_looked_at_on_top() -> None:
    """And only that: what was there when the search was suspended is its own work."""
    patience = Patience(10)
    patience.suspend(SEARCH, 500)
    patience.resume(507)
    assert patience.left == 17
    patience.resume(400)
    assert patience.left == 10


def test_a_request_whose_search_was_in_vain_gets_twice_as_many() -> None:
    """Until one is answered; and not without end."""
    patience = Patience(10)
    seen = []
    for _ in range(20):
        patience.suspend(SEARCH, 0)
        patience.end()
        patience.renew(0)
        seen.append(patience.left)
    assert seen[:3] == [20, 40, 80]
    assert seen[-1] == seen[-2] == 10 << 16
    patience.answered()
    patience.renew(0)
    assert patience.left == 10
