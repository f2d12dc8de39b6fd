"""The table of pages: it is a dictionary, in parts none of which is ever large."""

from __future__ import annotations

import random
import sys

import pytest

from slabd_server.core.heap import Heap
from slabd_server.core.page_table import PARTS_MAX, SPARE_BYTES, PageTable
from slabd_server.core.sizes import PAGE
from slabd_server.core.spare import TIGHT


@pytest.mark.parametrize("pages", [1, 8, 300, 10_000, 1 << 28])
def test_it_does_what_a_dictionary_does(pages: int) -> None:
    """Whatever the number of pages, and for those behind the last one too; a page before the first is not there."""
    rng = random.Random(pages)
    table: PageTable[int] = PageTable(pages)
    model: dict[int, int] = {}
    for step in range(3000):
        page = rng.randrange(-1, min(pages, 500) + 5)
        assert (table.get(page), page in table) == (model.get(page), page in model)
        if page in model and step % 3:
            assert table[page] == model.pop(page)
            del table[page]
        elif page >= 0:
            table[page] = model[page] = step
        table.tidy()
    assert dict(table.items()) == model
    assert sorted(table.values()) == sorted(model.values())
    assert len(table) == len(model)
    with pytest.raises(KeyError):
        table[pages + 1000]


def test_it_has_as_many_parts_as_the_heap_needs() -> None:
    """One for a small heap, a part for 64 pages of a larger one, and no more than there is use for."""
    parts = [len(PageTable(pages).parts) for pages in (8, 64, 128, 255, 256, 1 << 18, 1 << 28)]
    assert parts == [1, 1, 2, 2, 4, PARTS_MAX, PARTS_MAX]


def test_a_million_pages_are_in_no_part_more_than_a_few_hundred() -> None:
    """Whether they lie beside each other or at the same distance: what one operation can cost follows from that."""
    for step in (1, 3, 16, 256):
        table: PageTable[None] = PageTable(1 << 28)
        for page in range(0, 100_000 * step, step):
            table[page] = None
        largest = max(map(len, table.parts))
        assert largest <= 100_000 // PARTS_MAX * min(step, 256) + min(step, 256) + 1


def test_one_part_is_tidied_at_a_time() -> None:
    """In turns, so that after as many calls as there are parts none has spare places."""
    table: PageTable[int] = PageTable(1 << 20)
    for page in range(100_000):
        table[page] = page
    for page in range(80_000):
        del table[page]
    made_anew = []
    for _ in table.parts:
        before = list(table.parts)
        table.tidy()
        made_anew.append(sum(old is not new for old, new in zip(before, table.parts, strict=True)))
    assert set(made_anew) == {1}
    # A dictionary just made anew has eight places at least.
    assert all(sys.getsizeof(part) <= TIGHT * len(part) + SPARE_BYTES for part in table.parts)
    assert dict(table.items()) == {page: page for page in range(80_000, 100_000)}


def test_a_heap_copies_no_more_than_a_few_parts_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: how many items were made anew by the dearest grant or free of a heap with a hundred thousand blocks."""
    copied = [0]
    tidy = PageTable.tidy

    def counted(table: PageTable[int]) -> None:
        before = list(table.parts)
        tidy(table)
        copied[0] += sum(len(new) for old, new in zip(before, table.parts, strict=True) if old is not new)

    heap = Heap(1 << 32)
    live = [heap.grant(PAGE).offset for _ in range(100_000)]
    monkeypatch.setattr(PageTable, "tidy", counted)
    worst = 0
    rng = random.Random(1)
    for _ in range(3000):
        copied[0] = 0
        index = rng.randrange(len(live))
        heap.free(live[index])
        live[index] = heap.grant(PAGE).offset
        worst = max(worst, copied[0])
    assert worst <= 2 * 50
    heap.check()
