"""Crumbs: filing rooms, the log, letting go of what idles, and what `check()` sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slabd_server.core import crumbs as module
from slabd_server.core.crumbs import Crumbs, RoomIndex
from slabd_server.core.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an index idle for ten pages and no more."""
    monkeypatch.setattr(module, "MIN_IDLE", 10)


def test_the_least_room_that_will_do_is_found() -> None:
    """Best fit; none when all are too small; a room filed anew replaces the old one, and none strikes it out."""
    index = RoomIndex(0)
    for page, room in ((1, 5), (2, 9), (3, 7)):
        index.file(page, room)
    assert [index.best(room) for room in (5, 6, 8, 10)] == [1, 3, 2, -1]
    index.file(3, 4)
    assert index.best(6) == 2
    index.file(2, 0)
    index.file(99, 0)
    assert (index.best(6), index.rooms) == (-1, {1: 5, 3: 4})
    index.check()


def test_each_index_reads_what_it_has_not_read() -> None:
    """Two indexes read the same log at their own pace; what is read twice is one page."""
    crumbs = Crumbs()
    first = crumbs.make(1, 0)
    assert [crumbs.note(page) for page in (7, 8, 7)] == [True] * 3
    second = crumbs.make(4, 0)
    crumbs.note(9)
    assert crumbs.pending(first) == {7, 8, 9}
    assert (crumbs.unread(first), crumbs.unread(second)) == ({7, 8, 9}, {9})
    assert (crumbs.unread(first), crumbs.unread(second)) == (set(), set())
    crumbs.check()


def test_what_everybody_has_read_is_forgotten() -> None:
    """The log is as long as the slowest reader needs, and twice that at most."""
    crumbs = Crumbs()
    fast, slow = crumbs.make(1, 0), crumbs.make(2, 0)
    for page in range(8):
        crumbs.note(page)
        crumbs.unread(fast)
        crumbs.check()
    assert len(crumbs.log) == 8
    crumbs.unread(slow)
    assert crumbs.log == []
    crumbs.note(50)
    assert (crumbs.unread(fast), crumbs.unread(slow)) == ({50}, {50})


def test_a_little_that_everybody_has_read_is_kept() -> None:
    """To move the others up for less than half of the log would cost more than the pages in it."""
    crumbs = Crumbs()
    fast, slow = crumbs.make(1, 0), crumbs.make(2, 0)
    for page in range(3):
        crumbs.note(page)
    crumbs.unread(slow)
    for page in range(3, 8):
        crumbs.note(page)
    crumbs.unread(fast)
    assert crumbs.log == list(range(8))
    assert crumbs.pending(slow) == set(range(3, 8))
    crumbs.check()


def test_an_index_that_idles_is_let_go() -> None:
    """After as many pages as it cost, and ten; one that reads stays; at last nobody is left to read."""
    crumbs = Crumbs()
    crumbs.make(1, 5)
    used = crumbs.make(2, 0)
    for page in range(15):
        assert crumbs.note(page)
        crumbs.unread(used)
    assert set(crumbs.indexes) == {1, 2}
    assert crumbs.note(99)
    assert set(crumbs.indexes) == {2}
    assert [crumbs.note(page) for page in range(10)] == [True] * 9 + [False]
    assert (crumbs.indexes, crumbs.log) == ({}, [])
    crumbs.check()


def test_each_index_idles_for_as_long_as_it_cost() -> None:
    """One that cost a page more outlives the other by a page."""
    crumbs = Crumbs()
    crumbs.make(1, 0)
    crumbs.make(2, 1)
    left = []
    for page in range(12):
        crumbs.note(page)
        left.append(sorted(crumbs.indexes))
    assert left == [[1, 2]] * 10 + [[2], []]


def _file_nothing(crumbs: Crumbs) -> None:
    crumbs.indexes[1].rooms[5] = 0
    crumbs.indexes[1]._fits.add(5, 0)


def _forget_a_room(crumbs: Crumbs) -> None:
    del crumbs.indexes[1].rooms[3]


def _read_too_much(crumbs: Crumbs) -> None:
    crumbs.indexes[1].read += 4
    crumbs._due += 4


def _read_less_than_nothing(crumbs: Crumbs) -> None:
    crumbs.indexes[1].read -= 1
    crumbs._due -= 1


def _read_nothing_for_long(crumbs: Crumbs) -> None:
    crumbs.log += range(11)


def _look_too_late(crumbs: Crumbs) -> None:
    crumbs._due += 1


BREAKS: list[Callable[[Crumbs], None]] = [
    _file_nothing,
    _forget_a_room,
    _read_too_much,
    _read_less_than_nothing,
    _read_nothing_for_long,
    _look_too_late,
]


@pytest.mark.parametrize("damage", BREAKS)
def test_check_sees_each_broken_invariant(damage: Callable[[Crumbs], None]) -> None:
    """Every invariant in the module's prose, broken by hand, is reported with numbers."""
    crumbs = Crumbs()
    crumbs.make(1, 0).file(3, 8)
    crumbs.note(3)
    crumbs.check()
    damage(crumbs)
    with pytest.raises(InvariantBroken, match=r"\d"):
        crumbs.check()


def test_there_are_two_indexes_at_most_and_the_one_used_last_stays() -> None:
    """Each takes memory for every holder, so an alignment that nobody has asked for lately goes."""
    crumbs = Crumbs()
    for alignment in (1, 2):
        crumbs.make(alignment, 0)
    assert crumbs.use(1) is crumbs.indexes[1]
    crumbs.make(4, 0)
    assert list(crumbs.indexes) == [1, 4]
    assert crumbs.use(2) is None
    crumbs.check()
