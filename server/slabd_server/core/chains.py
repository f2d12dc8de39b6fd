"""Which blocks a session owns, in the order they were granted, at eight bytes a slot.

A chain is a doubly linked list threaded through two arrays that are indexed by slot, one chain per session. Appending,
removing and finding the oldest cost the same however long the chain is; a dict of slots would cost ten times the
memory.

Invariants: next[prev[s]] == s and prev[next[s]] == s inside a chain; a chain's length is what walking it counts; no
slot is in two chains.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import InvariantBroken
from slabd_server.core.records import SlotId

if TYPE_CHECKING:
    from collections.abc import Iterator

_END: Final = 2**32 - 1


class Links:
    """The two arrays that all chains of a heap share."""

    def __init__(self) -> None:
        self.next = array("I")
        self.prev = array("I")

    def reach(self, slot: int) -> None:
        """Make room for `slot`."""
        missing = slot + 1 - len(self.next)
        if missing > 0:
            room = array("I", [_END]) * max(missing, 64)
            self.next.extend(room)
            self.prev.extend(room)


class Chain:
    """The slots of one session."""

    __slots__ = ("_first", "_last", "_length", "_links")

    def __init__(self, links: Links) -> None:
        self._links = links
        self._first = _END
        self._last = _END
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[SlotId]:
        slot = self._first
        while slot != _END:
            following = self._links.next[slot]  # read first: the caller may remove `slot`
            yield SlotId(slot)
            slot = following

    @property
    def oldest(self) -> SlotId | None:
        """The slot appended first, None when the chain is empty."""
        return None if self._first == _END else SlotId(self._first)

    def append(self, slot: SlotId) -> None:
        """Put a slot that is in no chain at the end."""
        self._links.reach(slot)
        self._links.prev[slot] = self._last
        self._links.next[slot] = _END
        if self._last == _END:
            self._first = slot
        else:
            self._links.next[self._last] = slot
        self._last = slot
        self._length += 1

    def remove(self, slot: SlotId) -> None:
        """Take a slot that is in this chain out of it."""
        before, after = self._links.prev[slot], self._links.next[slot]
        if before == _END:
            self._first = after
        else:
            self._links.next[before] = after
        if after == _END:
            self._last = before
        else:
            self._links.prev[after] = before
        self._length -= 1

    def check(self) -> None:
        """Raise InvariantBroken when the links or the length are wrong. Linear in the chain."""
        before, count = _END, 0
        for slot in self:
            if self._links.prev[slot] != before:
                raise InvariantBroken(
                    f"slot {slot} follows {before} in its chain but points back at {self._links.prev[slot]}"
                )
            before, count = slot, count + 1
        if count != self._length or before != self._last:
            raise InvariantBroken(
                f"a chain of {self._length} slots ending in {self._last} has {count}, ending in {before}"
            )
