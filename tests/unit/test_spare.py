"""Spare places of dictionaries: given back when they are many, and only then."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from slabd_server.core.extents import Extents
from slabd_server.core.ground import EACH_PART
from slabd_server.core.heap import Heap
from slabd_server.core.sizes import PAGE
from slabd_server.core.spare import LOOSE, TIGHT, without_spare

if TYPE_CHECKING:
    import pytest

MANY = 50_000
EACH = 1024


def test_a_dictionary_that_shrank_is_made_anew() -> None:
    """What is left keeps its order, in a hundredth of the places; what is full stays the same object."""
    table = dict.fromkeys(range(MANY), "x")
    assert without_spare(table, LOOSE) is table
    for key in range(MANY - 1000):
        del table[key]
    fresh = without_spare(table, LOOSE)
    assert list(fresh.items()) == list(table.items())
    assert sys.getsizeof(fresh) * 20 < sys.getsizeof(table)


def test_a_small_dictionary_is_left_alone() -> None:
    """Below some kilobytes there is nothing to gain."""
    table = dict.fromkeys(range(1000), "x")
    for key in range(999):
        del table[key]
    assert without_spare(table, LOOSE) is table


def test_half_of_a_dictionary_is_not_worth_it_and_a_quarter_is() -> None:
    """The looser limit spares tables that have only grown, and none that is mostly spare."""
    table = dict.fromkeys(range(MANY), "x")
    for key in range(MANY // 2):
        del table[key]
    assert without_spare(table, LOOSE) is table
    for key in range(MANY // 2, MANY * 3 // 4):
        del table[key]
    assert without_spare(table, LOOSE) is not table


def test_a_dictionary_that_grew_too_far_is_made_anew() -> None:
    """Where items come and go it takes places for those that went, too; a plain copy would keep these."""
    table = dict.fromkeys(range(30_000), "x")
    for key in range(30_000):
        if sys.getsizeof(table) > TIGHT * len(table) + (64 << 10):
            break
        del table[key]
        table[key + 30_000] = "x"
    fresh = without_spare(table, TIGHT)
    assert fresh is not table
    assert sys.getsizeof(fresh) <= TIGHT * len(fresh)
    assert list(fresh.items()) == list(table.items())


def test_a_table_made_anew_stays_for_a_while() -> None:
    """Items that come and go make it too large again only after a fifth of them, whatever their number."""
    for number in range(2000, MANY, 7777):
        table = without_spare({key: key for key in range(4 * number) if key < number}, TIGHT)
        for key in range(number // 5):
            del table[key]
            table[number + key] = key
            assert without_spare(table, TIGHT) is table


def test_free_ranges_that_are_gone_take_no_room() -> None:
    """Each table of the extents is as small as what it holds, once fifty thousand ranges have been joined again."""
    extents = Extents(2 * MANY)
    assert extents.take(2 * MANY) == 0
    for page in range(0, 2 * MANY, 2):
        extents.give(page, 1)
    for page in range(1, 2 * MANY - 8, 2):
        extents.give(page, 1)
    for _ in range(EACH):
        extents.tidy()
    tables = (extents._pages, extents._starts, *extents._fits.ranges.values())
    assert sum(map(sys.getsizeof, tables)) < 512 << 10
    extents.check()


def bytes_of(heap: Heap) -> int:
    """How much memory the table of the pages' owners takes, the empty parts apart."""
    return sum(sys.getsizeof(part) - sys.getsizeof({}) for part in heap._ground.owners.parts)


def look_at_all_parts(heap: Heap) -> None:
    """Make so many changes that each part of the table has its turn."""
    for _ in range(len(heap._ground.owners.parts) * EACH_PART // 2):
        heap.free(heap.grant(PAGE).offset)


def test_blocks_replaced_again_and_again_take_no_more_room() -> None:
    """The owners of pages stay within the limit, where a plain dictionary would need half as much again."""
    heap = Heap(1 << 30)
    offsets = [heap.grant(PAGE).offset for _ in range(MANY)]
    for index in range(2 * MANY):
        heap.free(offsets[index % MANY])
        offsets[index % MANY] = heap.grant(PAGE).offset
    assert bytes_of(heap) <= TIGHT * MANY + (64 << 10)
    assert sum(map(sys.getsizeof, (heap._extents._pages, heap._extents._starts))) < 512 << 10
    heap.check()


def test_slabs_that_give_their_pages_back_take_no_more_room() -> None:
    """Pages that leave a slab count as well: all of them have gone here, and no range was ever granted."""
    heap = Heap(1 << 30)
    offsets = [heap.grant(2048).offset for _ in range(MANY)]
    for offset in offsets:
        heap.free(offset)
    for _ in range(2):
        for offset in [heap.grant(2048).offset for _ in range(2 * EACH)]:
            heap.free(offset)
    look_at_all_parts(heap)
    assert bytes_of(heap) < 512 << 10
    heap.check()


def test_adopted_slabs_that_go_whole_take_no_more_room() -> None:
    """A page each, with a slot in it: nothing is left of them, and still they count when they go."""
    heap = Heap(1 << 30)
    for page in range(MANY // 2):
        heap.adopt(page * PAGE, 2048)
    for page in range(MANY // 2):
        heap.free(page * PAGE)
    look_at_all_parts(heap)
    assert bytes_of(heap) < 512 << 10
    heap.check()


def test_patches_that_have_gone_take_no_more_room() -> None:
    """They count as well, and what is granted or freed next makes the heap look."""
    heap = Heap(1 << 30)
    for page in range(MANY // 2):
        heap.adopt(page * PAGE + 16, 64)
    for page in range(MANY // 2):
        heap.free(page * PAGE + 16)
    look_at_all_parts(heap)
    assert bytes_of(heap) < 512 << 10
    heap.check()


def test_tables_are_looked_at_once_in_a_few_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look costs no more than a part has items: there is one after `EACH_PART` changes, and then none for as many."""
    looks = list[int]()
    monkeypatch.setattr(Extents, "tidy", lambda extents: looks.append(extents.free_pages))
    heap = Heap(1 << 20)
    for _ in range(5 * EACH_PART):
        heap.free(heap.grant(2 * PAGE).offset)
    assert len(looks) == 10


def test_the_smallest_heap_is_tidied_too() -> None:
    """Once for every so many changes, though its tables have one part."""
    heap = Heap(32768)
    for _ in range(5 * EACH_PART):
        heap.free(heap.grant(5000).offset)
    assert heap._extents._turn == 10
