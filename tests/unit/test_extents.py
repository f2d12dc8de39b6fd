"""Free page ranges: placement, joining, alignment, the indexes on demand, and what `check()` sees."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from slabd_server.core import extents as module
from slabd_server.core import tags
from slabd_server.core.decay import DecayingExtents
from slabd_server.core.errors import InvariantBroken, Searching
from slabd_server.core.extents import Extents, FitIndex, IntSet
from slabd_server.core.memory import FixedMemory
from slabd_server.core.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable


def with_holes(*holes: tuple[int, int], pages: int = 4096, phase: int = 0) -> Extents:
    """Build extents in which exactly the ranges `(first, pages)` are free."""
    extents = Extents(pages, phase)
    assert extents.take(pages) == 0
    for first, length in holes:
        extents.give(first, length)
    extents.check()
    return extents


def test_an_int_set_finds_neighbours_over_any_distance() -> None:
    """`at_least`, `at_most` and `largest` agree with a sorted list, over all three levels."""
    rng = random.Random(1)
    numbers, ints = set[int](), IntSet()
    for _ in range(3000):
        number = rng.randrange(1 << rng.choice((4, 11, 21, 30)))
        if number in numbers and rng.random() < 0.9:
            numbers.remove(number)
            ints.remove(number)
        else:
            numbers.add(number)
            ints.add(number)
        probe = rng.choice((number, rng.randrange(1 << rng.choice((4, 11, 21, 30)))))
        assert ints.at_least(probe) == min((n for n in numbers if n >= probe), default=-1)
        assert ints.at_most(probe) == max((n for n in numbers if n <= probe), default=-1)
        assert ints.largest() == max(numbers)
    assert list(ints) == sorted(numbers)
    for number in numbers:
        ints.remove(number)
    assert (ints.largest(), ints.at_least(0), ints.at_most(1 << 30)) == (-1, -1, -1)


def test_the_best_fit_is_taken() -> None:
    """Of ranges of 9, 5 and 7 pages a request for 6 is served from the one of 7."""
    extents = with_holes((0, 9), (20, 5), (30, 7))
    assert extents.take(6) == 30
    assert extents.take(5) == 20
    extents.check()


def test_a_range_of_the_exact_length_is_taken_whole() -> None:
    """An exact fit leaves no range behind."""
    extents = with_holes((0, 9), (20, 5))
    assert extents.take(5) == 20
    assert dict(extents) == {0: 9}


def test_pages_given_back_join_both_neighbours() -> None:
    """A range given back between two free ones makes one of the three; between one, one of the two."""
    extents = with_holes((0, 4), (8, 4))
    extents.give(4, 4)
    assert dict(extents) == {0: 12}
    extents.give(20, 2)
    extents.give(18, 2)
    extents.give(22, 2)
    assert dict(extents) == {0: 12, 18: 6}
    extents.check()


def test_a_class_takes_what_there_is() -> None:
    """`take_up_to` uses up short ranges first, then cuts a long one, then takes what is too short."""
    extents = with_holes((0, 3), (10, 5), (20, 9), (40, 1))
    assert extents.take_up_to(6) == (10, 5)
    assert extents.take_up_to(2, 2) == (0, 2)
    assert extents.take_up_to(3, 3) == (20, 3)
    assert extents.take_up_to(16, 8) == (23, 6)
    assert extents.take_up_to(16, 8)[1] == extents.take_up_to(1)[1] == 1
    assert extents.take_up_to(2) == (-1, 0)
    extents.check()


def test_growing_joins_what_was_free_at_the_end() -> None:
    """Added pages continue the free range that ended the heap; growing by nothing changes nothing."""
    extents = Extents(8)
    extents.grow(4)
    extents.grow(0)
    assert dict(extents) == {0: 12}
    assert (extents.pages, extents.free_pages, extents.longest) == (12, 12, 12)


@pytest.mark.parametrize("phase", [0, 1, 5, 1023])
@pytest.mark.parametrize("alignment", [2, 4, 64])
def test_alignment_counts_from_the_absolute_page_number(phase: int, alignment: int) -> None:
    """Whatever the first page's number, taken pages begin at a multiple of the alignment."""
    extents = Extents(1024, phase)
    for pages in (1, 3, 64, 100):
        first = extents.take_aligned(pages, alignment)
        assert (first + phase) % alignment == 0
        extents.check()


def test_an_aligned_request_finds_the_only_place_there_is() -> None:
    """Of many ranges that are long enough, only one holds its pages at a multiple of 8; the index finds it."""
    decoys = [(16 * k + 1, 7) for k in range(60)]
    extents = with_holes(*decoys, (1000, 4), (1021, 5))
    assert extents.take_aligned(2, 8) == 1000
    assert extents.take_aligned(2, 8) == 1024
    assert extents.take_aligned(2, 8) == -1
    extents.check()


def test_an_aligned_index_keeps_up_with_every_change() -> None:
    """Once made, the index of an alignment follows each cut and each join; `check()` compares it with the ranges."""
    extents = with_holes((1, 7), (17, 7))
    assert extents.take_aligned(4, 8) == -1
    assert 8 in extents._aligned
    extents.give(24, 9)
    assert extents.take_aligned(4, 8) == 24
    extents.check()


def test_an_index_that_idles_is_let_go() -> None:
    """After as many changes as it cost to make, an index nobody asks for is gone; it comes back when asked for."""
    extents = with_holes((1, 7))
    assert extents.take_aligned(4, 8) == -1
    for _ in range(module._MIN_IDLE):
        extents.give(100, 1)
        assert extents.take(1) == 100
    assert 8 in extents._aligned
    for _ in range(2):
        extents.give(100, 1)
        assert extents.take(1) == 100
    assert 8 not in extents._aligned
    assert extents.take_aligned(4, 8) == -1
    extents.check()


def test_an_index_in_use_stays() -> None:
    """Each use of an index makes it stay for as many changes again."""
    extents = with_holes((1, 7))
    for _ in range(module._MIN_IDLE * 2):
        assert extents.take_aligned(4, 8) == -1
        index = extents._aligned[8]
        extents.give(100, 1)
        assert extents.take(1) == 100
    assert extents._aligned[8] is index


def test_an_order_that_idles_is_let_go() -> None:
    """The order of the free ranges costs nothing any more once rebuilding is over."""
    extents = with_holes((1, 7))
    assert extents.take_at(3, 1)
    for _ in range(module._MIN_IDLE + 8):
        extents.give(100, 1)
        assert extents.take(1) == 100
    assert extents._order is None
    assert extents.take_at(5, 1)
    extents.check()


def test_exact_pages_are_taken_from_inside_a_range() -> None:
    """Taking a range's middle, head, tail or the whole leaves the rest; pages not all free are refused."""
    extents = with_holes((10, 10))
    assert extents.take_at(14, 2)
    assert dict(extents) == {10: 4, 16: 4}
    assert not extents.take_at(13, 2)
    assert not extents.take_at(9, 1)
    assert not extents.take_at(18, 3)
    assert not extents.take_at(0, 1)
    assert dict(extents) == {10: 4, 16: 4}
    assert extents.take_at(10, 1)
    assert extents.take_at(19, 1)
    assert extents.take_at(16, 3)
    assert dict(extents) == {11: 3}
    extents.check()


def test_the_ends_of_a_range_are_known_without_an_order() -> None:
    """Pages at the front or the back of a range are taken by its tags; what only begins or ends like one is refused."""
    extents = with_holes((10, 10), (30, 4))
    extents._order = None
    assert extents.take_at(10, 3)
    assert extents.take_at(18, 2)
    assert extents._order is None
    assert dict(extents) == {13: 5, 30: 4}
    assert not extents.take_at(13, 6)
    assert not extents.take_at(29, 5)
    extents.check()


def test_a_free_page_knows_where_its_range_ends() -> None:
    """And one that is not free says so, on either side of the range too."""
    extents = with_holes((10, 4), (20, 1))
    assert [extents.free_until(page) for page in (9, 10, 13, 14, 20, 21)] == [-1, 14, 14, -1, 21, -1]


@pytest.mark.parametrize("extents", [Extents(64), DecayingExtents(64, 0, FixedMemory())], ids=["plain", "decaying"])
def test_giving_back_says_where_the_range_begins(extents: Extents) -> None:
    """Alone, joined to what is before, to what is behind, and to both."""
    extents.take(64)
    assert [extents.give(page, 2) for page in (10, 12, 20, 18, 14)] == [10, 10, 20, 18, 10]
    assert extents.give(16, 2) == 10
    assert dict(extents) == {10: 12}
    extents.check()


def test_neighbours_can_be_asked_for() -> None:
    """`range_from` and `range_until` give the lengths of the free ranges at a boundary."""
    extents = with_holes((10, 4))
    assert [extents.range_from(10), extents.range_from(11)] == [4, 0]
    assert [extents.range_until(14), extents.range_until(10)] == [4, 0]
    assert repr(extents) == "<Extents 4 of 4096 pages free in 1 ranges, longest 4>"


def _lose_a_page(extents: Extents) -> None:
    extents.free_pages -= 1


def _lose_an_end(extents: Extents) -> None:
    del extents._starts[14]


def _shift_an_end(extents: Extents) -> None:
    extents._starts[14] = 11


def _forget_to_join(extents: Extents) -> None:
    extents._pages[14], extents._starts[16] = 2, 14
    extents._fits.add(14, 2)
    extents._index(14, 2)
    extents.free_pages += 2


def _link_nothing(extents: Extents) -> None:
    extents._pages[50] = 0


def _reach_past_the_end(extents: Extents) -> None:
    extents.pages = 13


def _lose_an_entry(extents: Extents) -> None:
    extents._fits.remove(10, 4)


def _lose_a_length(extents: Extents) -> None:
    extents._fits._lengths.remove(4)


def _lose_the_order(extents: Extents) -> None:
    extents._ordered().remove(10)


def _lose_a_room(extents: Extents) -> None:
    rooms = extents._rooms(4)
    extents._read(rooms, 4)
    rooms.fits.remove(10, 2)


def _read_what_is_gone(extents: Extents) -> None:
    extents._rooms(8).due.add(50)


def _count_away(extents: Extents) -> None:
    extents._tags.away += 1


BREAKS: list[Callable[[Extents], None]] = [
    _lose_a_page,
    _lose_an_end,
    _shift_an_end,
    _forget_to_join,
    _link_nothing,
    _reach_past_the_end,
    _lose_an_entry,
    _lose_a_length,
    _lose_the_order,
    _lose_a_room,
    _read_what_is_gone,
    _count_away,
]


@pytest.mark.parametrize("damage", BREAKS)
def test_check_sees_each_broken_invariant(damage: Callable[[Extents], None]) -> None:
    """Every invariant in the module's prose, broken by hand, is reported with numbers."""
    extents = with_holes((10, 4), (100, 4))
    damage(extents)
    with pytest.raises(InvariantBroken, match=r"\d"):
        extents.check()


def test_the_fit_index_does_not_walk_over_tombstones() -> None:
    """The best fit is entered anew at the end, so that the next look does not step over what was removed."""
    index = FitIndex()
    for start in range(1000):
        index.add(start, 1)
    for start in range(1, 1000):
        index.remove(start, 1)
    assert index.best(1) == 0
    assert list(index.ranges[1]) == [0]


def test_tidying_looks_at_one_length_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In turns, so that none is forgotten; to look at all of them would cost as much as there are lengths."""
    looks = list[int]()

    def look(starts: dict[int, None], _limit: int, _slack: int) -> dict[int, None]:
        looks.extend(starts)
        return starts

    monkeypatch.setattr(module, "without_spare", look)
    index = FitIndex()
    for length in (3, 5, 2000):
        index.add(length, length)
    for _ in range(8):
        index.tidy()
    assert looks == [3, 5, 2000, 3, 5, 2000]


def test_of_very_many_ranges_of_a_length_few_are_in_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those freed last; the others come back when they are needed, and can be struck out wherever they are."""
    monkeypatch.setattr(module, "SPILL", 8)
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    index, expected, rng = FitIndex(), dict[int, int](), random.Random(1)
    for number in range(2000):
        if expected and rng.random() < (0.3 if number < 700 else 0.6):
            start = index.best(1) if rng.random() < 0.5 else rng.choice(sorted(expected))
            index.remove(start, expected.pop(start))
        else:
            expected[number] = rng.choice((1, 1, 1, 2))
            index.add(number, expected[number])
            assert index.best(expected[number]) == number
        assert all(len(starts) <= 8 for starts in index.ranges.values())
        assert sorted(index.at_least(1)) == sorted(expected)
        index.check(expected)


@pytest.mark.parametrize("at_hand", [0, 40, 1 << 20])
def test_an_aligned_search_reads_so_much_in_a_step_and_no_more(monkeypatch: pytest.MonkeyPatch, at_hand: int) -> None:
    """And goes on where it was, whatever changed meanwhile, until it is known whether a place is there."""
    monkeypatch.setattr(tags, "AT_HAND", at_hand)
    patience, rng = Patience(2), random.Random(at_hand)
    extents = Extents(1 << 16, 0, patience)
    extents.take(1 << 16)
    decoys = [16 * k + 1 for k in range(3000)]
    for first in decoys:
        extents.give(first, 7)
        extents.tidy()
    entered = counted_entries(monkeypatch)
    for expected in (-1, 60_000):
        extents._aligned.clear()
        found = searched(extents, patience, entered, lambda: change(extents, rng.choice(decoys)))
        assert found == expected
        patience.answered()
        extents.give(60_000, 8)


def change(extents: Extents, first: int) -> None:
    """Take a decoy and give it back, so that its tags move."""
    assert extents.take_at(first, 7)
    extents.give(first, 7)
    extents.tidy()


def searched(extents: Extents, patience: Patience, entered: list[int], between: Callable[[], None]) -> int:
    """Ask for 7 pages at a multiple of 8 until it is known; do something between the steps."""
    while True:
        patience.renew(0)
        entered[0] = 0
        try:
            return extents.take_aligned(7, 8)
        except Searching:
            assert 0 < entered[0] <= 2 * 16
        while patience.go_on():
            between()
        extents.check()


def counted_entries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how many ranges are entered into an index of rooms."""
    entered, enter = [0], Extents._enter

    def counted(extents: Extents, rooms: module.Rooms, alignment: int, start: int, length: int) -> None:
        entered[0] += 1
        enter(extents, rooms, alignment, start, length)

    monkeypatch.setattr(Extents, "_enter", counted)
    return entered


def test_no_table_of_very_many_ranges_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: the items of the largest dictionary that there is at any time, tags and lengths."""
    monkeypatch.setattr(module, "SPILL", 2048)
    monkeypatch.setattr(tags, "AT_HAND", 2048)
    extents = Extents(1 << 18)
    extents.take(1 << 18)
    most = 0
    for page in (*range(0, 120_000, 2), *range(1, 60_000, 2)):
        extents.give(page, 1)
        if page % 8 < 2:
            extents.tidy()
            most = max(most, len(extents._pages), len(extents._starts), *map(len, extents._fits.ranges.values()))
    assert most <= 2048 + 64
    assert extents.ranges == 30_000
    extents.check()


def test_a_rebuild_never_goes_through_all_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: blocks are taken at given places in any order, and each enters a range or two, not thousands."""
    entered, add = [0], IntSet.add

    def counted(ints: IntSet, number: int) -> None:
        entered[0] += 1
        add(ints, number)

    monkeypatch.setattr(IntSet, "add", counted)
    places = [*range(1, 1 << 14, 2)]
    random.Random(1).shuffle(places)
    extents = Extents(1 << 14)
    for place in sorted(places[:4000]) + places[4000:]:
        entered[0] = 0
        assert extents.take_at(place, 1)
        assert entered[0] <= 8
    extents.check()


def test_whoever_goes_through_all_alignments_makes_two_indexes() -> None:
    """Every change pays for each index there is, so the oldest ones go."""
    extents = Extents(4096)
    pages = [extents.take(1) for _ in range(4096)]
    for page in pages:
        if page % 2:
            extents.give(page, 1)
    for shift in range(1, 12):
        assert extents.take_aligned(1, 1 << shift) == -1
        assert len(extents._aligned) <= 2
        extents.check()
    assert list(extents._aligned) == [1 << 10, 1 << 11]
