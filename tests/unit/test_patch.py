"""Patches: the quanta of one page, and what `check()` sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slabd_server.core.errors import InvariantBroken
from slabd_server.core.patch import Patch
from slabd_server.core.runs import ones
from slabd_server.core.sizes import PAGE, PAGE_QUANTA

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCKS = [(3 * PAGE - 16, 32), (3 * PAGE + 64, 48), (4 * PAGE - 32, 20000)]


def make_patch() -> Patch:
    """Build a patch of page 3 into which one block reaches, in which one lies, and which one leaves."""
    patch = Patch(3)
    for offset, size in BLOCKS:
        patch.used |= patch.quanta(offset, size)
    patch.blocks = dict(BLOCKS[1:])
    return patch


def test_a_block_has_the_quanta_that_lie_in_the_page() -> None:
    """What is before the page, and what is behind it, does not count here."""
    patch = Patch(3)
    assert [patch.quanta(*block) for block in BLOCKS] == [1, 0b111 << 4, 0b11 << PAGE_QUANTA - 2]
    assert patch.quanta(2 * PAGE, 3 * PAGE) == ones(PAGE_QUANTA)


def test_what_is_not_used_is_free() -> None:
    """The bitmap, and how much of it is free at both ends."""
    assert (Patch(3).free_quanta(), Patch(3).free_ends()) == (ones(PAGE_QUANTA), (PAGE_QUANTA, PAGE_QUANTA))
    patch = make_patch()
    assert patch.free_quanta() == ones(PAGE_QUANTA) ^ patch.used
    assert patch.free_ends() == (0, 0)
    patch.used = 0b111 << 4
    assert patch.free_ends() == (4, PAGE_QUANTA - 7)
    assert repr(patch).startswith("<Patch page 3: 3 of 256 quanta used, begin {")


def test_a_sound_patch_passes() -> None:
    """With all the blocks that touch it, whether they begin in it or not."""
    make_patch().check(BLOCKS)


def _use_one_more(patch: Patch) -> None:
    patch.used |= 1 << 100


def _use_one_less(patch: Patch) -> None:
    patch.used ^= 1


def _use_past_the_end(patch: Patch) -> None:
    patch.used |= 1 << PAGE_QUANTA


def _begin_elsewhere(patch: Patch) -> None:
    patch.blocks[2 * PAGE] = 32


@pytest.mark.parametrize("damage", [_use_one_more, _use_one_less, _use_past_the_end, _begin_elsewhere])
def test_check_sees_each_broken_invariant(damage: Callable[[Patch], None]) -> None:
    """Every invariant in the module's prose, broken by hand, is reported with numbers."""
    patch = make_patch()
    damage(patch)
    with pytest.raises(InvariantBroken, match=r"\d"):
        patch.check(BLOCKS)


@pytest.mark.parametrize("block", [(3 * PAGE + 96, 32), (3 * PAGE + 200, 16), (3 * PAGE + 208, 8)])
def test_check_sees_blocks_that_cannot_be(block: tuple[int, int]) -> None:
    """Over another, or off the quantum, even if the bitmap agrees."""
    patch = make_patch()
    patch.used |= patch.quanta(*block)
    with pytest.raises(InvariantBroken, match=f"block {block[0]}\\+{block[1]} overlaps another, or is off the quantum"):
        patch.check([*BLOCKS, block])


def test_check_sees_a_patch_that_should_have_gone() -> None:
    """One in which nothing is used."""
    with pytest.raises(InvariantBroken, match="0 quanta"):
        Patch(3).check([])
