"""The size classes of a cache: which requests a cached block serves, and how many of each kind may be kept.

The daemon says with each block it grants which sizes get one like it, so a class is known once its first block has
come. What all classes may keep is bounded in bytes; a class may keep as many blocks as it asked for at once, or more as
long as there is room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slabd_proto.lane import CLASSES, Word

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd.holding import Holding

_BATCH_MAX: Final = 64
_BATCH_PART: Final = 4
_SIZES_KEPT: Final = 65_536


class SizeClass:
    """The cached blocks that serve requests of `low` to `high` bytes at one alignment.

    `cap` is how many may be kept (none once it is `forgotten`), `batch` how many the next miss asks for, `place` the
    index of its word in the lane.
    """

    __slots__ = ("alignment", "batch", "cap", "forgotten", "high", "low", "place", "stack")

    def __init__(self, low: int, high: int, alignment: int, place: int) -> None:
        self.low = low
        self.high = high
        self.alignment = alignment
        self.place = place
        self.stack: list[Holding] = []
        self.cap = 0
        self.batch = 1
        self.forgotten = False

    def __repr__(self) -> str:
        return f"<SizeClass {self.low}..{self.high} at {self.alignment}: {len(self.stack)} of {self.cap} cached>"


class SizeClasses:
    """All classes of one cache, which may keep `limit` bytes. `words` is the lane's header, where the daemon sees them.

    `by_size` and `by_aligned` find the class of a request that was seen before: by size at alignment 1, else by both.
    """

    def __init__(self, limit: int, words: memoryview) -> None:
        self.limit: Final = limit
        self.by_size: Final[dict[int, SizeClass]] = {}
        self.by_aligned: Final[dict[tuple[int, int], SizeClass]] = {}
        self._words = words
        self._all: list[SizeClass] = []

    def __iter__(self) -> Iterator[SizeClass]:
        return iter(self._all.copy())

    def __len__(self) -> int:
        return len(self._all)

    @property
    def cached_bytes(self) -> int:
        """How many bytes are at hand."""
        return sum(len(each.stack) * each.high for each in self)

    @property
    def _room(self) -> int:
        """How many bytes more may be kept, if each class keeps as much as it may."""
        return self.limit - sum(each.cap * each.high for each in self)

    def of(self, size: int, alignment: int) -> SizeClass | None:
        """Return the class that serves a request, None when none has been seen yet."""
        kind = self.by_size.get(size) if alignment == 1 else self.by_aligned.get((size, alignment))
        if kind is None:
            fitting = [each for each in self if each.alignment == alignment and each.low <= size <= each.high]
            if not fitting:
                return None
            kind = fitting[0]
            self.remember(size, alignment, kind)
        return kind

    def remember(self, size: int, alignment: int, kind: SizeClass) -> None:
        """Note that a class serves a request."""
        if len(self.by_size) + len(self.by_aligned) >= _SIZES_KEPT:
            self.forget_requests()
        if alignment == 1:
            self.by_size[size] = kind
        else:
            self.by_aligned[size, alignment] = kind

    def forget_requests(self) -> None:
        """Find no class at once any more."""
        self.by_size.clear()
        self.by_aligned.clear()

    def having(self, low: int, high: int, alignment: int) -> SizeClass | None:
        """Return the class of blocks of a size, a new one if need be; None when there are too many."""
        for kind in self._all:
            if (kind.high, kind.alignment) == (high, alignment):
                kind.low = min(kind.low, low)
                return kind
        index = len(self._all)
        if index >= CLASSES:
            unused = next((each for each in self._all if not each.stack), None)
            if unused is None:
                return None
            index = self._all.index(unused)
            self._forget(unused)
        self._words[Word.CLASS_SIZES + index] = high
        kind = SizeClass(low, high, alignment, Word.CLASS_COUNTS + index)
        self._all.insert(index, kind)
        return kind

    def _forget(self, kind: SizeClass) -> None:
        """Forget a class that has nothing cached. Who uses a block of it gives that back to the daemon."""
        kind.cap, kind.forgotten = 0, True
        self._all.remove(kind)
        for size in [size for size, each in list(self.by_size.items()) if each is kind]:
            self.by_size.pop(size, None)
        for both in [both for both, each in list(self.by_aligned.items()) if each is kind]:
            self.by_aligned.pop(both, None)

    def raise_batch(self, kind: SizeClass) -> bool:
        """Let a class ask for more the next time; return whether there is room to keep as many."""
        kind.batch = min(kind.batch * 2, max(1, min(_BATCH_MAX, self.limit // _BATCH_PART // kind.high)))
        return max(kind.batch - kind.cap, 0) * kind.high <= self._room

    def next_batch(self, kind: SizeClass) -> int:
        """Return how many blocks to ask for; the class may keep as many from now on."""
        kind.cap += min(max(kind.batch - kind.cap, 0), max(self._room, 0) // kind.high)
        return max(1, min(kind.batch, kind.cap))

    def may_keep_more(self, kind: SizeClass) -> bool:
        """Let a class keep one more block, if all together keep within the limit."""
        if kind.forgotten or kind.high > self._room:
            return False
        kind.cap += 1
        return True
