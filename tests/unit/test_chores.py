"""Chores by themselves: in which order they are done, how much at a time, and when that is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slabd_server.core.chores import SLICE, Chores
from slabd_server.core.records import Effects, SessionId, Ticket, Woken

if TYPE_CHECKING:
    from collections.abc import Iterator

ONE, TWO = SessionId(1), SessionId(2)


class Done:
    """Chores, and the steps that were done of each."""

    def __init__(self) -> None:
        self.chores = Chores()
        self.steps: dict[str, int] = {}

    def begin(self, session: SessionId, name: str, steps: int) -> None:
        """Begin a chore of so many steps."""
        self.steps[name] = 0
        self.chores.begin(session, self._counted(name, steps), now=5.0)

    def _counted(self, name: str, steps: int) -> Iterator[None]:
        for _ in range(steps):
            self.steps[name] += 1
            yield


def test_the_first_slice_is_done_at_once() -> None:
    """A chore of less than a slice is over when it has begun; a longer one is due at once, a slice at a time."""
    done = Done()
    done.begin(ONE, "short", SLICE - 1)
    assert (done.steps, len(done.chores), done.chores.due) == ({"short": SLICE - 1}, 0, None)
    done.begin(ONE, "long", 2 * SLICE + 1)
    assert (done.steps["long"], len(done.chores), done.chores.due) == (SLICE, 1, 5.0)
    done.chores.tick(6.0)
    assert (done.steps["long"], done.chores.due) == (2 * SLICE, 6.0)
    done.chores.tick(7.0)
    assert (done.steps["long"], len(done.chores), done.chores.due) == (2 * SLICE + 1, 0, None)


def test_a_chore_of_a_whole_slice_has_its_end_still_before_it() -> None:
    """What comes behind the last step is done too, with the next slice."""
    done = Done()
    done.begin(ONE, "even", SLICE)
    assert (len(done.chores), done.chores.due) == (1, 5.0)
    done.chores.tick(5.0)
    assert (len(done.chores), done.chores.due) == (0, None)


def test_the_oldest_chore_comes_first() -> None:
    """One chore is done to its end before the next; one begun anew, in place of another, is the youngest."""
    done = Done()
    done.begin(ONE, "replaced", 10 * SLICE)
    done.begin(TWO, "second", 3 * SLICE - 1)
    done.begin(ONE, "third", 2 * SLICE - 1)
    assert done.steps == {"replaced": SLICE, "second": SLICE, "third": SLICE}
    done.chores.tick(5.0)
    done.chores.tick(5.0)
    assert done.steps == {"replaced": SLICE, "second": 3 * SLICE - 1, "third": SLICE}
    done.chores.tick(5.0)
    assert (done.steps["third"], len(done.chores)) == (2 * SLICE - 1, 0)


def test_finishing_does_everything() -> None:
    """Whoever needs what all chores have gets it, however much it is."""
    done = Done()
    done.begin(ONE, "first", 5 * SLICE)
    done.begin(TWO, "second", 3 * SLICE)
    done.chores.finish(9.0)
    assert (done.steps, len(done.chores)) == ({"first": 5 * SLICE, "second": 3 * SLICE}, 0)
    assert done.chores.due is None


def test_what_is_owed_is_handed_over_once() -> None:
    """Effects of chores are due until they are collected, in their order, and then gone."""
    chores = Chores()
    first, second = Effects(woken=(Woken(Ticket(1), ()),)), Effects(woken=(Woken(Ticket(2), ()),))
    chores.owe(first)
    chores.owe(second)
    chores.finish(8.0)
    dues = [chores.due]
    chores.tick(8.5)
    dues.append(chores.due)
    assert [woken.ticket for woken in chores.collect(9.0).woken] == [1, 2]
    dues.append(chores.due)
    assert dues == [8.0, 8.5, None]
    assert chores.collect(9.0) == Effects()
