"""Placing a block on exact quanta, whatever their pages were for, and taking it back.

Owns how pages become patches, and how they cease to be. Promises that a block can be placed wherever bytes are free,
with no other block moved, and that what raises has changed nothing but that idle pages are free. Must not look for a
place: whoever calls knows one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slabd_server.core.errors import InvariantBroken, UnknownBlock
from slabd_server.core.patch import Middle, Patch
from slabd_server.core.sizes import PAGE_SHIFT, pages_for
from slabd_server.core.slab import Slab

if TYPE_CHECKING:
    from slabd_server.core.ground import Ground


def place(ground: Ground, offset: int, size: int) -> None:
    """Grant exactly the bytes [offset, offset + size), which are free; no slab has an idle page among theirs.

    Raises:
        OutOfMemory: free pages among them do not exist any more, and the system has none; nothing has changed.
    """
    first, behind = offset >> PAGE_SHIFT, pages_for(offset + size)
    # Only the first and the last page can be somebody's: those between are wholly free, so they are free pages.
    begin = first + 1 if first in ground.owners else first
    end = behind - 1 if behind - 1 in ground.owners else behind
    if begin < end and not ground.extents.take_at(begin, end - begin):
        raise InvariantBroken(f"block {offset}+{size} overlaps another: pages {begin} to {end} are not all free")
    whole = offset + size >> PAGE_SHIFT
    for page in {first, *range(whole, behind)}:
        _make_patch(ground, page)
    if whole > first + 1:
        ground.owners[first + 1] = Middle(whole - first - 1)
    _enter(ground, offset, size)


def release(ground: Ground, owner: object, offset: int) -> int:
    """Take back the block that begins at `offset` in the page of this owner; return its size.

    Raises:
        UnknownBlock: no such block; nothing has changed.
    """
    size = owner.blocks.pop(offset, 0) if isinstance(owner, Patch) else 0
    if not size:
        raise UnknownBlock(f"no block begins at {offset}")
    ground.patched_blocks -= 1
    ground.patched_bytes -= size
    for patch in _ends(ground, offset, size):
        patch.used ^= patch.quanta(offset, size)
        if patch.used:
            ground.note(patch.start)
        else:
            del ground.owners[patch.start]
            ground.give(patch.start, 1)
    middle = (offset >> PAGE_SHIFT) + 1
    owner = ground.owners.get(middle)
    if isinstance(owner, Middle) and offset + size > middle << PAGE_SHIFT:
        del ground.owners[middle]
        ground.give(middle, owner.pages)
    return size


def _make_patch(ground: Ground, page: int) -> None:
    owner = ground.owners.get(page)
    if isinstance(owner, Slab):
        _cut(ground, owner, page)
    elif owner is None:
        ground.own(Patch(page))


def _cut(ground: Ground, slab: Slab, page: int) -> None:
    """Make a patch of a page of a slab, and of those with which it shares slots in use."""
    first, behind = slab.widened(page, page + 1)
    size = slab.cls.size
    blocks = slab.used_offsets(first, behind)
    runs, pieces = slab.cls.cut(slab, first, behind)
    for each in range(first, behind):
        ground.own(Patch(each))
    ground.parted(runs, pieces)
    for offset in blocks:
        _enter(ground, offset, size)


def _enter(ground: Ground, offset: int, size: int) -> None:
    for patch in _ends(ground, offset, size):
        patch.used ^= patch.quanta(offset, size)
        if patch.start == offset >> PAGE_SHIFT:
            patch.blocks[offset] = size
    ground.patched_blocks += 1
    ground.patched_bytes += size


def _ends(ground: Ground, offset: int, size: int) -> list[Patch]:
    """List the patch in which a block begins, and the one in which it ends if that is another."""
    pages = {offset >> PAGE_SHIFT, offset + size - 1 >> PAGE_SHIFT}
    owners = (ground.owners[page] for page in sorted(pages) if page in ground.owners)
    return [owner for owner in owners if isinstance(owner, Patch)]
