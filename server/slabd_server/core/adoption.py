"""Adoption: marking a block as granted whose place is given, as a heap is rebuilt from its ledger.

Owns where an adopted block is entered: as a range of pages, as a slot, or on exact quanta. Promises to accept, in any
order, every set of blocks that `grant` can have returned under whichever size classes, and to refuse what overlaps.

A block that could be a slot makes a slab of its pages, or joins the slabs of the same class and phase that are there
already. Where its pages are for something else too, all of them become patches (`patching`), as they do for a block
whose shape is no class's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import InvariantBroken
from slabd_server.core.extents import NOWHERE
from slabd_server.core.patch import Patch
from slabd_server.core.patching import place
from slabd_server.core.runs import ones
from slabd_server.core.sizes import (
    MAX_CLASS,
    PAGE,
    PAGE_SHIFT,
    QUANTUM,
    QUANTUM_SHIFT,
    STEPS,
    class_sizes,
    natural_alignment,
    pages_for,
)
from slabd_server.core.slab import Slab, SlabClass

if TYPE_CHECKING:
    from slabd_server.core.ground import Ground

_SLOT_SIZES: Final = frozenset(size for kind in STEPS for size in class_sizes(kind)) - {MAX_CLASS}


def adopt(ground: Ground, offset: int, size: int) -> None:
    """Mark exactly this block, which lies in the heap, as granted.

    Raises:
        InvariantBroken: it overlaps another, or no block of this size can begin there.
    """
    if (offset | size) % QUANTUM:
        raise InvariantBroken(f"no block of {size} bytes can begin at {offset}")
    if _adopt_pages(ground, offset, size) or _adopt_slot(ground, offset, size):
        return
    for slab in _slabs_if_free(ground, offset, size):
        if slab.idle:
            ground.shed(slab)
    if not _adopt_pages(ground, offset, size):
        place(ground, offset, size)


def _adopt_pages(ground: Ground, offset: int, size: int) -> bool:
    """Enter a block of whole pages as a range; False, and nothing changed, if it is none or they are not all free."""
    page, pages = offset >> PAGE_SHIFT, size >> PAGE_SHIFT
    if (offset | size) % PAGE or not ground.extents.take_at(page, pages):
        return False
    ground.owners[page] = pages
    ground.count_range(pages, 1)
    return True


# -- slots


def _adopt_slot(ground: Ground, offset: int, size: int) -> bool:
    """Enter a block as the slot of a slab; False, and nothing changed, when it can be none."""
    # A slab off its class's alignment would serve blocks off it.
    if size not in _SLOT_SIZES or offset % natural_alignment(size):
        return False
    first, behind = offset >> PAGE_SHIFT, pages_for(offset + size)
    owners = [ground.owners.get(page) for page in range(first, behind)]
    slabs = [owner for owner in dict.fromkeys(owners) if isinstance(owner, Slab) and _has_slot(owner, offset, size)]
    if any(owner is not None and owner not in slabs for owner in owners):
        return False
    if len(slabs) == 1 and slabs[0].start <= first and behind <= slabs[0].end:
        slabs[0].cls.mark(slabs[0], offset)
        return True
    return _adopt_into_new_slab(ground, slabs, offset, size)


def _has_slot(slab: Slab, offset: int, size: int) -> bool:
    """Tell whether this block is a slot of the slab, or would be if it were longer, and not in use."""
    slot, inside = divmod(offset - slab.base, size)
    return slab.cls.size == size and not inside and not (0 <= slot < slab.slots and not slab.free >> slot & 1)


def _adopt_into_new_slab(ground: Ground, slabs: list[Slab], offset: int, size: int) -> bool:
    """Enter a block into a slab made of these slabs and of its pages, if those are free where they are not theirs."""
    first, behind = offset >> PAGE_SHIFT, pages_for(offset + size)
    lacking = [page for page in range(first, behind) if page not in ground.owners]
    # A slot has two pages at most, so that what it lacks is one run.
    if lacking and not ground.extents.take_at(lacking[0], len(lacking)):
        return False
    start = min([first, *(slab.start for slab in slabs)])
    end = max([behind, *(slab.end for slab in slabs)])
    base = (start << PAGE_SHIFT) + (offset - (start << PAGE_SHIFT)) % size
    # The heap may have had other classes when this was granted. Such a class serves no request, it only empties.
    cls = ground.classes.get(size) or ground.classes.setdefault(size, SlabClass(size))
    whole = cls.gather(slabs, base, end - start)
    ground.own(whole)
    cls.mark(whole, offset)
    return True


# -- exact quanta


def _slabs_if_free(ground: Ground, offset: int, size: int) -> list[Slab]:
    """List the slabs that have pages of this block; raise `InvariantBroken` unless all its bytes are free."""
    slabs = []
    page, behind = offset >> PAGE_SHIFT, pages_for(offset + size)
    while page < behind:
        owner = ground.owners.get(page)
        if isinstance(owner, (Slab, Patch)):
            end = owner.start + owner.pages if _is_free(owner, offset, size) else NOWHERE
        else:
            end = ground.extents.free_until(page)
        if end < 0:
            raise InvariantBroken(f"block {offset}+{size} overlaps another: page {page} has {owner!r}")
        if isinstance(owner, Slab):
            slabs.append(owner)
        page = end
    return slabs


def _is_free(holder: Slab | Patch, offset: int, size: int) -> bool:
    """Tell whether what the block has of this slab's or patch's pages is free."""
    base = holder.start << PAGE_SHIFT
    begin, end = max(offset - base, 0), min(offset + size - base, holder.pages << PAGE_SHIFT)
    wanted = ones(end >> QUANTUM_SHIFT) ^ ones(begin >> QUANTUM_SHIFT)
    return holder.free_quanta() & wanted == wanted
