"""Views, anchors and exports, over real mappings of a memfd and without a daemon."""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from slabd import LeaseReleased, NotMapped
from slabd.holding import BlockName, Holding, Holdings, Returnable, let_go
from slabd.mapping import Mapping
from slabd.size_classes import SizeClass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEAP_BYTES = 65_536


@pytest.fixture
def memfd() -> Iterator[int]:
    """A heap's memory."""
    descriptor = os.memfd_create("heap")
    os.ftruncate(descriptor, HEAP_BYTES)
    yield descriptor
    os.close(descriptor)


class Keeper:
    """A session's holdings, and how often their wake-up was sounded."""

    def __init__(self, mapping: Mapping | None, *, cached: bool = False) -> None:
        self.mapping = mapping
        self.kind = SizeClass(65, 128, 1, 0) if cached else None
        self.wakes = 0
        self.holdings = Holdings(mapping, self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    def hold(self, *, offset: int = 0, size: int = 100, owned: bool = True) -> Holding:
        """Take a block into care."""
        name = BlockName(offset // 128 + 1, 1)
        kind = self.kind if owned else None
        holding = Holding(self.holdings, name, offset, 128, size, owned=owned, kind=kind)
        if kind is not None:
            holding.begin_cycle(size)
        return holding

    def dead(self) -> list[str]:
        """Return what the garbage collector has found, as the housekeeping sees it."""
        claimed: list[Returnable | None] = []
        self.holdings.claim_dead(claimed)
        return [str(block.name) for block in claimed if block is not None]


@pytest.fixture(params=["granted", "cached"])
def keeper(memfd: int, request: pytest.FixtureRequest) -> Keeper:
    """Holdings over a writable mapping: of blocks that are leased once, or again and again."""
    return Keeper(Mapping(memfd, HEAP_BYTES, writable=True), cached=request.param == "cached")


USERS: dict[str, Callable[[memoryview], Any]] = {
    "slice": lambda view: view[1:],
    "memoryview": memoryview,
    "cast": lambda view: view.cast("B"),
    "read-only": memoryview.toreadonly,
    "frombuffer": lambda view: np.frombuffer(view, np.uint8),
    "asarray": np.asarray,
    "ndarray": lambda view: np.ndarray((5,), np.uint8, buffer=view),
    "array slice": lambda view: np.frombuffer(view, np.uint8)[3:9],
    "PickleBuffer": pickle.PickleBuffer,
    "ctypes": (ctypes.c_char * 5).from_buffer,
    "anchor": lambda view: view.obj,
    "slice of nothing": lambda view: view[5:5],
}


def test_a_view_is_the_memory_itself(keeper: Keeper, memfd: int) -> None:
    """What is written through it is in the memfd; its length is the requested size."""
    holding = keeper.hold(offset=256)
    holding.view[:5] = b"hello"
    assert os.pread(memfd, 5, 256) == b"hello"
    assert (len(holding.view), holding.view.format, holding.view.readonly) == (100, "B", False)
    assert holding.view is holding.view


@pytest.mark.parametrize("user", USERS)
def test_a_used_view_cannot_be_let_go(keeper: Keeper, user: str) -> None:
    """BufferError, nothing has changed, and it works when the user is gone."""
    holding = keeper.hold()
    using = USERS[user](holding.view)
    with pytest.raises(BufferError, match=r"block 1\.1 is still in use"):
        holding.let_go()
    holding.view[0] = 1
    assert not holding.released
    assert keeper.dead() == []
    del using
    gc.collect()
    holding.let_go()
    assert holding.released


@pytest.mark.parametrize("user", [user for user in USERS if user != "ctypes"])
def test_a_dropped_block_returns_with_its_last_user(keeper: Keeper, user: str) -> None:
    """The garbage collector gives it back, and not before."""
    using = USERS[user](keeper.hold().view)
    gc.collect()
    assert (keeper.dead(), keeper.wakes) == ([], 0)
    del using
    gc.collect()
    assert (keeper.dead(), keeper.wakes, len(keeper.holdings)) == (["1.1"], 1, 0)


def test_a_dropped_cycle_returns_too(keeper: Keeper) -> None:
    """The callback then runs inside the collector."""
    cycle: list[Any] = [keeper.hold().view]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert keeper.dead() == ["1.1"]


def test_a_view_that_was_let_go_is_invalid(keeper: Keeper) -> None:
    """Even for who still has it in a variable; and its death is nobody else's business."""
    holding = keeper.hold()
    view = holding.view
    holding.let_go()
    with pytest.raises(ValueError, match="released memoryview"):
        view[0]
    with pytest.raises(LeaseReleased):
        _ = holding.view
    assert (keeper.dead(), keeper.wakes) == ([], 0)


def test_a_block_is_given_back_once(keeper: Keeper) -> None:
    """Whoever takes the record out does it."""
    holding = keeper.hold()
    holding.let_go()
    holding.let_go()
    claimed: list[Returnable | None] = []
    keeper.holdings.claim_let_go([holding, holding], claimed)
    assert [block is not None for block in claimed] == [True, False]


def test_a_slice_of_the_last_moment_keeps_the_block(keeper: Keeper) -> None:
    """Another thread may make one between the count and the release: then the anchor's death gives the block back."""
    holding = keeper.hold()
    anchor = holding.view.obj
    holding.record.bell.quiet = True
    holding.view.release()
    holding.forget()
    claimed: list[Returnable | None] = []
    keeper.holdings.claim_let_go([holding], claimed)
    assert (claimed, keeper.dead()) == ([], [])
    del anchor
    assert keeper.dead() == ["1.1"]


@pytest.mark.parametrize("user", ["slice", "PickleBuffer"])
def test_a_batch_is_let_go_whole_or_not_at_all(keeper: Keeper, user: str) -> None:
    """One user of one block is enough, also one that only shows when the view is released."""
    group = [keeper.hold(offset=128 * number) for number in range(3)]
    using = USERS[user](group[1].view)
    with pytest.raises(BufferError):
        let_go(group)
    assert [holding.released for holding in group] == [False] * 3
    group[0].view[0] = 1
    assert keeper.dead() == []
    del using
    let_go(group)
    assert [holding.released for holding in group] == [True] * 3


def test_what_others_shared_cannot_be_written(keeper: Keeper) -> None:
    """A read-only view over writable memory."""
    holding = keeper.hold(owned=False)
    with pytest.raises(TypeError):
        holding.view[0] = 1


def test_a_read_only_mapping(memfd: int) -> None:
    """PROT_READ: views show what others write, and keep the mapping alive."""
    keeper = Keeper(Mapping(memfd, HEAP_BYTES, writable=False))
    view = keeper.hold(offset=128).view
    os.pwrite(memfd, b"news", 128)
    assert (bytes(view[:4]), view.readonly) == (b"news", True)
    keeper.mapping = None
    keeper.holdings = Holdings(None, lambda: None)
    gc.collect()
    assert bytes(view[:4]) == b"news"


def test_a_writable_mapping_does_not_close_under_its_views(keeper: Keeper) -> None:
    """As mmap.close() does not."""
    mapping = keeper.mapping
    assert mapping is not None
    holding = keeper.hold()
    with pytest.raises(BufferError):
        mapping.close()
    holding.let_go()
    mapping.close()
    assert mapping.closed


@pytest.mark.parametrize(("offset", "size"), [(-1, 10), (0, 0), (HEAP_BYTES - 5, 10), (HEAP_BYTES, 1)])
@pytest.mark.parametrize("writable", [True, False])
def test_anchors_are_inside_the_mapping(memfd: int, offset: int, size: int, *, writable: bool) -> None:
    """A daemon that lies about offsets causes an error, no segmentation fault."""
    with pytest.raises(ValueError, match="not inside"):
        Mapping(memfd, HEAP_BYTES, writable=writable).anchor(offset, size)


def test_closing_lets_go_of_every_view_or_none(keeper: Keeper) -> None:
    """The error says how many are in use, orphaned views included."""
    first, second, third = keeper.hold(), keeper.hold(offset=128), keeper.hold(offset=256).view
    using = second.view[1:]
    with pytest.raises(BufferError, match="2 of 3 blocks"):
        keeper.holdings.let_go_all()
    assert not first.released
    del using, third
    keeper.holdings.let_go_all()
    assert (first.released, second.released) == (True, True)


def test_a_block_that_is_not_mapped_has_no_view() -> None:
    """But it returns like any other."""
    keeper = Keeper(None)
    holding = keeper.hold()
    with pytest.raises(NotMapped):
        _ = holding.view
    del holding
    assert keeper.dead() == ["1.1"]


def test_a_forked_child_gives_nothing_back(keeper: Keeper) -> None:
    """What it inherited belongs to its parent."""
    holding = keeper.hold()
    keeper.holdings._process = 0  # as a forked child sees it
    del holding
    assert (keeper.dead(), keeper.wakes) == ([], 0)
