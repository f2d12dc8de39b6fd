"""Spare places of dictionaries: given back when they are many, and only then."""

from __future__ import annotations

import sys

from slabd_server.core.extents import Extents
from slabd_server.core.heap import Heap
from slabd_server.core.sizes import PAGE
from slabd_server.core.spare import EACH, LOOSE, TIGHT, without_spare

MANY = 50_000


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
    extents.tidy()
    tables = (extents._pages, extents._starts, *extents._fits.ranges.values())
    assert sum(map(sys.getsizeof, tables)) < 512 << 10
    extents.check()


def test_blocks_replaced_again_and_again_take_no_more_room() -> None:
    """The owners of pages stay within the limit, where a plain dictionary would need half as much again."""
    heap = Heap(1 << 30)
    offsets = [heap.grant(PAGE).offset for _ in range(MANY)]
    for index in range(2 * MANY):
        heap.free(offsets[index % MANY])
        offsets[index % MANY] = heap.grant(PAGE).offset
    assert sys.getsizeof(heap._ground.owners) <= TIGHT * MANY + (64 << 10)
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
    assert sys.getsizeof(heap._ground.owners) < 512 << 10
    heap.check()
