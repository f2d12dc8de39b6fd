"""What a session holds in this process: one record for each block, and the one view of it that is handed out.

Rules:

1. A block is given back to the daemon only after its anchor is dead (slabd.mapping): no view, slice or array is left.
2. It is given back once: whoever takes its record out of the `Holdings` does it, and `dict.pop` has one winner.
3. An anchor may die anywhere, in any thread, inside the garbage collector. Its callback is `deque.append` itself: it
   takes no lock, and because it is one call into C, no KeyboardInterrupt can lose it. A second callback, the bell,
   sounds the wake-up, whose implementations are safe there; if that one is lost, the block only returns later.

No I/O here: the session asks what to give back, and does it.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from slabd.errors import LeaseReleased, NotMapped
from slabd.mapping import exports, is_alive, view_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from slabd.mapping import Mapping
    from slabd_proto.v1 import pool_pb2


# Deaths that somebody waited for are only cleared away in passing; this many may lie around.
_QUIET_DEATHS: Final = 64


@dataclass(frozen=True, slots=True)
class BlockName:
    """A granted block's name: the ledger slot and the count of its re-issues."""

    slot: int
    generation: int

    def __str__(self) -> str:
        return f"{self.slot}.{self.generation}"


class _RemoteAnchor:
    """Stands for a block that is not mapped here."""

    __slots__ = ("__weakref__",)


class Returnable(Protocol):
    """A block that may be given back: to release when the session owns its lease, else to close."""

    @property
    def name(self) -> BlockName:
        """The block."""

    @property
    def owned(self) -> bool:
        """Whether the session owns its lease."""

    @property
    def serial(self) -> int:
        """Its number in this process; 0 when it never came into anybody's care."""


@dataclass(frozen=True, slots=True)
class GrantedBlock:
    """A block that the daemon has granted, and that never came into anybody's care."""

    name: BlockName
    owned: bool
    serial: int = 0


class _Bell(weakref.ref[Any]):
    """Sounds the wake-up when an anchor dies, unless it is quiet."""

    __slots__ = ("quiet",)

    quiet: bool  # somebody waits for this death and gives the block back himself


class _AnchorRef(weakref.ref[Any]):
    """The record of a block: it watches the anchor, and knows what to tell the daemon afterwards."""

    __slots__ = ("__weakref__", "bell", "holding", "name", "owned", "serial")

    serial: int
    name: BlockName
    owned: bool
    bell: _Bell
    holding: weakref.ref[Holding]


def _nothing() -> None:
    """Do nothing."""


class Holdings:
    """All blocks that one session holds in this process."""

    def __init__(self, mapping: Mapping | None, wake: Callable[[], None]) -> None:
        self._mapping = mapping
        self._wake = wake
        self._serials = itertools.count(1)
        # By serial and not by name: a session may open the same block twice, or open what it shares itself.
        self._records: dict[int, _AnchorRef] = {}
        self._dead: deque[_AnchorRef] = deque()
        self._last_death: Callable[[], None] = _nothing
        self._deaths = itertools.count(1)
        self._heirlooms = 0
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self._records)

    @property
    def inherited(self) -> bool:
        """Whether this process is a forked child, and the blocks its parent's.

        Asked of the kernel each time: it must hold in a child even if an interrupt cut short what runs there first.
        """
        return os.getpid() != self._process

    @property
    def mapped(self) -> bool:
        """Whether blocks have views."""
        return self._mapping is not None

    def __contains__(self, serial: int) -> bool:
        return serial in self._records

    def next_serial(self) -> int:
        """Return a number for one more block. No block has a larger one yet."""
        return next(self._serials)

    def become_inherited(self, last_death: Callable[[], None]) -> None:
        """In a forked child: have `last_death` called when no view is left.

        It may be called at once, and it may be called inside the garbage collector.
        """
        self._last_death = last_death
        self._deaths = itertools.count(1)
        self._heirlooms = sum(1 for record in self._records.values() if record() is not None)
        if not self._heirlooms:
            last_death()

    def anchor(self, holding: Holding) -> tuple[memoryview | None, object | None]:
        """Make an anchor for a block, watch it, and return the view over it, or the bare anchor without a mapping."""
        mapping = self._mapping
        anchor = _RemoteAnchor() if mapping is None else mapping.anchor(holding.offset, holding.usable_size)
        bell = _Bell(anchor, self._ring)
        bell.quiet = False
        record = _AnchorRef(anchor, self._dead.append)
        record.serial, record.name, record.owned = holding.serial, holding.name, holding.owned
        record.bell = bell
        record.holding = weakref.ref(holding)
        holding.record = record
        self._records[holding.serial] = record
        return self.face(holding, anchor)

    def face(self, holding: Holding, anchor: Any) -> tuple[memoryview | None, object | None]:
        """Return what keeps an anchor alive: the view over it, or without a mapping the anchor itself."""
        if self._mapping is None:
            return None, anchor
        return view_of(anchor, holding.size, writable=self._mapping.writable and holding.owned), None

    def claim(self, serials: Sequence[int], into: list[Returnable | None]) -> None:
        """Take blocks out, to give them back: None for one that somebody else has taken.

        One call into C, so that a KeyboardInterrupt comes before it or after it and no block is lost in between.
        """
        into.extend(map(self._records.pop, serials, itertools.repeat(None)))

    def claim_let_go(self, group: Iterable[Holding], into: list[Returnable | None]) -> None:
        """After `let_go`: take blocks out, to give them back.

        Where another thread made a slice of the view at the last moment, the anchor lives, and its death will do it.
        """
        serials: list[int] = []
        for holding in group:
            if is_alive(holding.record):
                holding.resign()
            else:
                serials.append(holding.serial)
        self.claim(serials, into)

    def claim_dead(self, into: list[Returnable | None]) -> None:
        """Take blocks out whose anchors have died unnoticed. One thread or task at a time."""
        dead = list(self._dead)
        if not self.inherited:
            self.claim([record.serial for record in dead if not record.bell.quiet], into)
        for _ in dead:
            self._dead.popleft()

    def has_dead(self) -> bool:
        """Whether `claim_dead` has something to do."""
        return len(self._dead) > _QUIET_DEATHS or any(not record.bell.quiet for record in list(self._dead))

    def report(self, record: _AnchorRef) -> None:
        """Note that a block's anchor is dead, and wake whoever gives blocks back."""
        self._dead.append(record)
        if not self.inherited:
            self._wake()

    def let_go_all(self) -> None:
        """Make every view that was handed out invalid.

        Raises:
            BufferError: some are exported, or in use without their lease; then nothing has changed.
        """
        holdings = [record.holding() for record in list(self._records.values()) if is_alive(record)]
        in_use = sum(1 for holding in holdings if holding is None or holding.exports())
        if in_use:
            raise BufferError(f"{in_use} of {len(holdings)} blocks are still in use: views, slices or arrays exist")
        let_go([holding for holding in holdings if holding is not None])

    def _ring(self, bell: weakref.ref[Any]) -> None:
        if self.inherited:
            if next(self._deaths) == self._heirlooms:
                self._last_death()
        elif isinstance(bell, _Bell) and not bell.quiet:
            self._wake()


class Holding:
    """A block in this process's care, and its view. Thread-safe: two who let go at once are one who does."""

    __slots__ = (
        "__weakref__",
        "_anchor",
        "_view",
        "holdings",
        "name",
        "offset",
        "owned",
        "record",
        "serial",
        "size",
        "usable_size",
    )

    record: _AnchorRef

    def __init__(self, holdings: Holdings, serial: int, block: pool_pb2.Block, *, owned: bool) -> None:
        self.holdings = holdings
        self.serial = serial
        self.name = BlockName(block.ref.slot, block.ref.generation)
        self.offset = block.offset
        self.size = block.requested_size
        self.usable_size = block.size
        self.owned = owned
        self._view, self._anchor = holdings.anchor(self)

    @property
    def released(self) -> bool:
        """Whether the block has been given back, or left to the garbage collector."""
        return self._view is None and self._anchor is None

    @property
    def view(self) -> memoryview:
        """The one view that is handed out.

        Raises:
            LeaseReleased: the block has been given back.
            NotMapped: this process has no mapping of the heap.
        """
        if (view := self._view) is not None:
            return view
        self.check_held()
        raise NotMapped("a pool over TCP cannot map the heap, so there is no view: use read() and write()")

    def check_held(self) -> None:
        """Raise LeaseReleased when the block has been given back."""
        if self.released:
            raise LeaseReleased(f"block {self.name} has been released")

    def exports(self) -> int:
        """Return how many other objects use the block's memory through its view."""
        view = self._view
        try:
            return 0 if view is None else exports(view)
        except ValueError:  # another thread has let go of it between the two lines
            return 0

    def let_go(self) -> None:
        """Make the view invalid, so that the block can be given back.

        Raises:
            BufferError: the view is exported; it stays valid, and nothing has changed.
        """
        if self.released:
            return
        if count := self.exports():
            raise BufferError(f"block {self.name} is still in use: {count} views, slices or arrays of it exist")
        self.record.bell.quiet = True
        try:
            if (view := self._view) is not None:
                view.release()
        except BufferError:
            self.record.bell.quiet = False
            raise BufferError(f"block {self.name} is still in use: something holds its view's buffer") from None
        view = None
        self.forget()

    def forget(self) -> None:
        """Leave the block to its anchor: it is given back when the last view of it is gone."""
        self._view = self._anchor = None

    def check_untouched(self) -> None:
        """After `let_go`: raise BufferError when another thread has made a slice of the view at the last moment."""
        if is_alive(self.record):
            raise BufferError(f"block {self.name} is still in use: another thread has made a view of it")

    def resign(self) -> None:
        """After `let_go`: leave the giving back to the anchor's death, which may have been already."""
        self.record.bell.quiet = False
        if not is_alive(self.record):
            self.holdings.report(self.record)

    def restore(self) -> None:
        """After `let_go` and before the block is given back: make a new view, because it is kept after all."""
        anchor = self.record()
        if anchor is None:
            self._view, self._anchor = self.holdings.anchor(self)
        else:  # another thread made a slice at the last moment: the old anchor goes on
            self.record.bell.quiet = False
            self._view, self._anchor = self.holdings.face(self, anchor)


def let_go(holdings: Iterable[Holding]) -> None:
    """Make the views of several blocks invalid: of all, or of none.

    Raises:
        BufferError: one of them is exported.
    """
    group = list(holdings)
    for holding in group:
        if holding.exports():
            holding.let_go()  # raises, with the numbers
    done: list[Holding] = []
    try:
        for holding in group:
            holding.let_go()
            done.append(holding)
    except BufferError:
        for holding in done:
            holding.restore()
        raise
