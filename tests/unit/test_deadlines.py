"""Deadlines: what falls due when, and that what means nothing any more is not kept for ever."""

from __future__ import annotations

from slabd_server.core.deadlines import Deadlines


class Living:
    """Keys that live until their latest deadline, or are gone."""

    def __init__(self) -> None:
        self.until: dict[int, float] = {}
        self.deadlines: Deadlines[int] = Deadlines(lambda when, key: self.until.get(key) == when)

    def set(self, when: float, *keys: int) -> None:
        """Let keys live until then."""
        for key in keys:
            self.until[key] = when
            self.deadlines.set(when, key)


def test_what_is_due_comes_in_order() -> None:
    """The earliest comes first, equals in the order they were set, and what is due now is due."""
    living = Living()
    living.set(3.0, 30)
    living.set(1.0, 10, 11)
    living.set(2.0, 20)
    assert living.deadlines.next() == 1.0
    assert list(living.deadlines.due(0.5)) == []
    assert list(living.deadlines.due(2.0)) == [10, 11, 20]
    assert (living.deadlines.next(), len(living.deadlines)) == (3.0, 1)
    assert list(living.deadlines.due(10.0)) == [30]
    assert (living.deadlines.next(), len(living.deadlines)) == (None, 0)


def test_what_means_nothing_any_more_is_left_out() -> None:
    """A key that moved its deadline out falls due once, one that is gone never."""
    living = Living()
    living.set(1.0, 1, 2, 3)
    living.set(2.0, 2)
    del living.until[1]
    assert list(living.deadlines.due(1.0)) == [3]
    living.set(1.5, 4)
    del living.until[4]
    assert living.deadlines.next() == 2.0
    assert list(living.deadlines.due(2.0)) == [2]


def test_keys_need_no_order() -> None:
    """Two that fall due at once are told apart by who was first, not by their keys."""
    deadlines: Deadlines[object] = Deadlines(lambda _when, _key: True)
    first, second = object(), object()
    deadlines.set(1.0, first)
    deadlines.set(1.0, second)
    assert list(deadlines.due(1.0)) == [first, second]


def test_dead_entries_are_swept_out() -> None:
    """When there are more than 1024 entries those that mean nothing go, and the others stay."""
    living = Living()
    living.set(9.0, *range(1000))
    for key in range(995):
        del living.until[key]
    living.set(8.0, *range(1000, 1024))
    assert len(living.deadlines) == 1024
    living.set(7.0, 1024)
    assert len(living.deadlines) == 5 + 25
    assert list(living.deadlines.due(9.0)) == [1024, *range(1000, 1024), *range(995, 1000)]


def test_living_entries_are_not_swept_again_and_again() -> None:
    """Those that all mean something are looked at when they have doubled, so one more costs what it costs."""
    looked = 0

    def is_current(_when: float, _key: int) -> bool:
        nonlocal looked
        looked += 1
        return True

    deadlines: Deadlines[int] = Deadlines(is_current)
    for key in range(4200):
        deadlines.set(float(key), key)
    assert (len(deadlines), looked) == (4200, 1025 + 2051 + 4103)


def test_all_entries_can_be_seen() -> None:
    """Walking over the deadlines shows those that mean nothing any more too, and takes none of them out."""
    living = Living()
    living.set(2.0, 1)
    living.set(1.0, 1, 2)
    for _ in range(2):
        assert sorted(living.deadlines) == [(1.0, 1), (1.0, 2), (2.0, 1)]
