"""`SlabClass` against a model that keeps a set of offsets a slab."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from slabd_server.core.errors import UnknownBlock
from slabd_server.core.sizes import PAGE, class_sizes
from slabd_server.core.slab import MAX_IDLE, Slab, SlabClass

GAP = 32  # slabs are this many pages apart, so that pages never meet


class SlabMachine(RuleBasedStateMachine):
    """The model: which offsets are in use, and which pages belong to the class."""

    @initialize(size=st.sampled_from(class_sizes("fine")))
    def make(self, size: int) -> None:
        """Start without a slab."""
        self.cls = SlabClass(size)
        self.size = size
        self.used: set[int] = set()
        self.slabs: dict[int, Slab] = {}
        self.made = 0

    def idle_pages(self) -> set[int]:
        """Return the pages of the class that no block in use touches."""
        busy = {page for o in self.used for page in range(o // PAGE, (o + self.size - 1) // PAGE + 1)}
        return set(self.slabs) - busy

    @rule(pages=st.integers(1, 16))
    def grow(self, pages: int) -> None:
        """A class gets a slab only when it is full, as in the heap."""
        if len(self.idle_pages()) + pages > MAX_IDLE:
            return
        slab = self.cls.add(self.made * GAP, pages)
        self.made += 1
        self.slabs |= dict.fromkeys(range(slab.start, slab.end), slab)

    @rule()
    def take(self) -> None:
        """A taken slot is new, whole, within the class's pages; none only when no slab has one."""
        offset = self.cls.take()
        if offset < 0:
            assert not any(slab.free for slab in self.slabs.values())
            return
        assert all(abs(offset - other) >= self.size for other in self.used)
        assert {offset // PAGE, (offset + self.size - 1) // PAGE} <= set(self.slabs)
        self.used.add(offset)

    @rule()
    def take_many(self) -> None:
        """Fill up a page, so that pages become busy soon."""
        for _ in range(PAGE // self.size):
            self.take()

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        """A slot given back is free; too many idle pages are shed, and only those."""
        if self.used:
            self.give_back(data.draw(st.sampled_from(sorted(self.used))))

    @rule(first=st.integers(0, 3))
    def give_page(self, first: int) -> None:
        """Free all slots of every fourth page, so that pages become idle."""
        for offset in [offset for offset in self.used if offset // PAGE % 4 == first]:
            self.give_back(offset)

    def give_back(self, offset: int) -> None:
        """Free one slot, in the class and in the model."""
        slab = self.slabs[offset // PAGE]
        self.used.remove(offset)
        before = self.idle_pages()
        assert self.cls.give(slab, offset) is (len(before) > MAX_IDLE)
        if len(before) > MAX_IDLE:
            self.shed(slab)

    def shed(self, slab: Slab) -> None:
        """All idle pages of the slab go, and all others stay."""
        idle = self.idle_pages()
        runs, pieces = self.cls.shed(slab)
        gone = {page for first, behind in runs for page in range(first, behind)}
        assert gone == {page for page, owner in self.slabs.items() if owner is slab} & idle
        for page in gone:
            del self.slabs[page]
        self.slabs |= {page: piece for piece in pieces for page in range(piece.start, piece.end)}

    @rule(data=st.data())
    def shed_any(self, data: st.DataObject) -> None:
        """Pressure sheds any slab with idle pages."""
        if self.cls.idlers:
            self.shed(data.draw(st.sampled_from(sorted(self.cls.idlers, key=lambda slab: slab.start))))

    @rule(data=st.data())
    def give_nonsense(self, data: st.DataObject) -> None:
        """What is not in use cannot be given back, whichever slab is asked."""
        if self.slabs:
            slab = self.slabs[data.draw(st.sampled_from(sorted(self.slabs)))]
            offset = data.draw(st.integers((slab.start - 1) * PAGE, (slab.end + 1) * PAGE))
            if offset not in self.used:
                with pytest.raises(UnknownBlock):
                    self.cls.give(slab, offset)

    @invariant()
    def same(self) -> None:
        """The class counts what the model has."""
        if not hasattr(self, "cls"):
            return
        self.cls.check(self.slabs.values())
        assert self.cls.used == len(self.used)
        assert self.cls.idle == len(self.idle_pages())
        assert self.cls.pages == len(self.slabs)


SlabMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestSlab = SlabMachine.TestCase
