"""Boundary tags: the same whether they are at hand or put away, and never many at hand."""

from __future__ import annotations

import random
import sys

import pytest

from slabd_server.core import tags as module
from slabd_server.core.errors import InvariantBroken
from slabd_server.core.tags import Tags


def test_they_are_the_same_at_hand_and_put_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is put away and taken out again, both tags of each range say the same."""
    monkeypatch.setattr(module, "AT_HAND", 5)
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    tags, model, rng = Tags(1000), dict[int, int](), random.Random(1)
    for _ in range(2000):
        start = rng.randrange(0, 990, 10)
        if start in model:
            if tags.is_away(start):
                tags.take_out(start)
            length = model.pop(start)
            assert tags.pages.pop(start) == length
            assert tags.starts.pop(start + length) == start
        else:
            length = model[start] = tags.pages[start] = rng.randint(1, 9)
            tags.starts[start + length] = start
        for each in tags.oldest():
            tags.put_away(each)
        tags.tidy()
        tags.check()
        assert dict(tags) == model
        assert len(tags) == len(model)
        assert len(tags.pages) <= 5 + 3
        assert all(tags.length(page) == model.get(page, 0) for page in range(0, 990, 10))
        assert all(tags.start(start + length) == start for start, length in model.items())
        assert tags.start(990) == -1
        page = rng.randrange(0, 990, 10)
        ends = {start + length: start for start, length in model.items()}
        around = {each for each in (ends.get(page + 4, page), page) if each in model}
        assert set(tags.away_around(page + 4, page)) == {each for each in around if tags.is_away(each)}
        away = set[int]().union(*(tags.in_part(part) for part in range(tags.parts)))
        assert away == {start for start in model if tags.is_away(start)}


def test_only_the_oldest_are_put_away_and_only_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has few ranges does not meet the tables in parts."""
    monkeypatch.setattr(module, "AT_HAND", 100)
    tags = Tags(1000)
    for start in range(0, 200, 2):
        tags.pages[start], tags.starts[start + 1] = 1, start
    assert tags.oldest() == []
    tags.pages[500], tags.starts[501] = 1, 500
    assert tags.oldest() == [*range(0, 128, 2)]


def sizes_of(tags: Tags) -> list[int]:
    """The bytes of each table, two at hand and two put away."""
    tables = [tags.pages, tags.starts, *tags._away_pages.parts, *tags._away_starts.parts]
    return [sys.getsizeof(table) for table in tables]


def test_tidying_gives_up_the_room_of_ranges_that_are_gone() -> None:
    """In one of the two tables at hand at a time, and in those that are put away."""
    tags = Tags(64)  # so few pages that what is put away is in one part
    for start in range(0, 20_000, 2):
        tags.pages[start], tags.starts[start + 1] = 1, start
    for start in range(0, 20_000, 2):
        tags.put_away(start)
    for start in range(2, 20_000, 2):
        tags.take_out(start)
    for start in range(4, 20_000, 2):
        del tags.pages[start], tags.starts[start + 1]
    assert min(sizes_of(tags)) > 60_000
    tags.tidy()
    tags.tidy()
    assert max(sizes_of(tags)) < 1000
    assert dict(tags) == {0: 1, 2: 1}
    tags.check()


@pytest.mark.parametrize("damage", ["pages", "starts", "away", "twice"])
def test_check_sees_each_broken_invariant(damage: str) -> None:
    """Each line of the module's prose, broken by hand, is reported with numbers."""
    tags = Tags(1000)
    tags.pages.update({10: 4, 20: 2})
    tags.starts.update({14: 10, 22: 20})
    tags.put_away(10)
    tags.check()
    if damage == "pages":
        del tags.pages[20]
    elif damage == "starts":
        tags.starts[22] = 21
    elif damage == "away":
        tags.away = 0
    else:
        tags.pages[10], tags.starts[14] = 4, 10
    with pytest.raises(InvariantBroken, match=r"\d"):
        tags.check()
