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
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from slabd.errors import LeaseReleased, NotMapped
from slabd.mapping import exports, is_alive, root_of, users_of_root, view_count, view_of
from slabd_proto.lane import open_word

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterable, Sequence

    from slabd.cache import Cache
    from slabd.handle import Handle
    from slabd.mapping import Mapping
    from slabd.size_classes import SizeClass
    from slabd_proto.lane import Completion


# Deaths that somebody waited for are only cleared away in passing; this many may lie around.
_QUIET_DEATHS: Final = 64
# The call site of a block that was not leased yet.
_NOWHERE: Final = object()


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

    @property
    def kind(self) -> SizeClass | None:
        """The class whose cache may keep it; None when the daemon has to have it back."""

    @property
    def shared(self) -> bool:
        """Whether there has been a handle of it."""

    @property
    def posted(self) -> bool:
        """Whether the daemon knows of it."""

    @property
    def offset(self) -> int:
        """Where it starts in the heap."""

    @property
    def usable_size(self) -> int:
        """How many bytes it has."""


@dataclass(frozen=True, slots=True)
class GrantedBlock:
    """A block that the daemon has granted, and that never came into anybody's care."""

    name: BlockName
    owned: bool
    serial: int = 0
    kind: SizeClass | None = None
    shared: bool = False
    posted: bool = True
    offset: int = 0
    usable_size: int = 0


class _Bell(weakref.ref[Any]):
    """Sounds the wake-up when an anchor dies, unless it is quiet or muffled."""

    __slots__ = ("muffled", "quiet")

    quiet: bool  # somebody waits for this death and gives the block back himself
    muffled: bool  # somebody means to, and if he is interrupted the block may return later


class _AnchorRef(weakref.ref[Any]):
    """The record of a block: it watches the anchor, and knows what to tell the daemon afterwards.

    `kind`, `offset` and `usable_size` are what a cache needs to use it again; `shared` says that it must not. `posted`
    is False for an open that the daemon was not told of, so that it is not told of its end either.
    """

    __slots__ = (
        "__weakref__",
        "bell",
        "holding",
        "kind",
        "name",
        "offset",
        "owned",
        "posted",
        "serial",
        "shared",
        "usable_size",
    )

    serial: int
    name: BlockName
    owned: bool
    bell: _Bell
    holding: weakref.ref[Holding]
    kind: SizeClass | None
    offset: int
    usable_size: int
    shared: bool
    posted: bool


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
        self._collected = 0
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

    @property
    def mapped_bytes(self) -> int:
        """How large the mapping is; 0 without one."""
        return 0 if self._mapping is None else len(self._mapping)

    def populate(self, offset: int, size: int) -> None:
        """Map a range in; see Mapping."""
        if self._mapping is not None:
            self._mapping.populate(offset, size)

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
        bell.quiet = bell.muffled = False
        record = _AnchorRef(anchor, self._dead.append)
        record.serial, record.name, record.owned = holding.serial, holding.name, holding.owned
        record.bell = bell
        record.holding = weakref.ref(holding)
        record.kind, record.shared, record.posted = holding.kind, holding.shared, True
        record.offset, record.usable_size = holding.offset, holding.usable_size
        holding.record = record
        # One after the other, with nothing in between that could be interrupted: see `has_made`.
        if holding.collected:
            self._collected = holding.serial
        self._records[holding.serial] = record
        if holding.kind is not None:
            holding.take_root(root_of(anchor))
            return None, None
        return self.face(holding, anchor)

    def face(self, holding: Holding, anchor: Any) -> tuple[memoryview | None, object | None]:
        """Return what keeps an anchor alive: the view over it, or without a mapping the anchor itself."""
        if self._mapping is None:
            return None, anchor
        if holding.kind is not None:
            holding.take_root(root_of(anchor))
            return holding.live_view, None
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

    def drop(self, holding: Holding) -> None:
        """Forget a block that the daemon has taken back."""
        holding.record.bell.quiet = True
        self._records.pop(holding.serial, None)

    def has_made(self, serial: int) -> bool:
        """Whether the last block that came over the lane was taken into care under this number."""
        return self._collected == serial

    def wake(self) -> None:
        """Have the dead looked after soon."""
        self._wake()

    def bury_quiet(self) -> None:
        """Have deaths that somebody has waited for cleared away, when there are many; only `claim_dead` does it."""
        # Not in a forked child, where somebody who is not there may have the wake-up's lock.
        if (count := len(self._dead)) and count % _QUIET_DEATHS == 0 and not self.inherited:
            self._wake()

    def renumber(self, group: Iterable[Holding]) -> None:
        """Give blocks new serial numbers: no forked child has anything to do with them."""
        for holding in group:
            before, serial = holding.serial, self.next_serial()
            if (record := self._records.get(before)) is None:
                continue
            # First the new number, so that another thread that gives the block back meanwhile finds it by either.
            self._records[serial] = record
            holding.serial = record.serial = serial
            if self._records.pop(before, None) is None:
                self._records.pop(serial, None)

    @property
    def records(self) -> dict[int, Any]:
        """The records by serial number. Whoever takes one out gives the block back."""
        return self._records

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
        elif isinstance(bell, _Bell) and not bell.quiet and not bell.muffled:
            self._wake()


class Holding:
    """A block in this process's care, and its view. Thread-safe: two who let go at once are one who does."""

    __slots__ = (
        "__weakref__",
        "_anchor",
        "at",
        "cache",
        "code",
        "collected",
        "cycle",
        "holdings",
        "kind",
        "label",
        "live_view",
        "name",
        "offset",
        "owned",
        "promised",
        "purpose",
        "record",
        "root",
        "serial",
        "shared",
        "size",
        "slot",
        "usable_size",
        "views",
        "word",
    )

    record: _AnchorRef
    views: ctypes.c_ssize_t

    def __init__(  # noqa: PLR0913  # a block's fields
        self,
        holdings: Holdings,
        name: BlockName,
        offset: int,
        usable_size: int,
        size: int,
        *,
        owned: bool,
        serial: int = 0,
        cache: Cache | None = None,
        kind: SizeClass | None = None,
        collected: bool = False,
    ) -> None:
        """Take a block into care. With a `kind` it begins cached: it has a root, and a view only from `begin_cycle` on.

        `cycle` counts its leases. `word` is what its generation looks like while it is granted. `code`, `at`, `label`
        and `purpose` are the last lease's, for the next one from the same line.
        """
        self.holdings = holdings
        self.serial = serial or holdings.next_serial()
        self.name = name
        self.slot = name.slot
        self.word = open_word(name.generation)
        self.offset = offset
        self.size = size
        self.usable_size = usable_size
        self.owned = owned
        self.cache = cache
        self.kind = kind
        self.collected = collected
        self.cycle = 0
        self.shared = False
        self.promised = 0
        self.code: object = None
        self.at: object = _NOWHERE
        self.label = ""
        self.purpose = 0
        self.root: memoryview | None = None
        self.live_view: memoryview | None = None
        self._anchor: object | None = None
        self.live_view, self._anchor = holdings.anchor(self)

    @property
    def released(self) -> bool:
        """Whether the block has been given back, or left to the garbage collector."""
        return self.live_view is None and self._anchor is None

    # -- leased again and again, see slabd.cache

    def take_root(self, root: memoryview) -> None:
        """Have a view over all of the block, of which each lease's view is a slice."""
        self.root, self.views = root, view_count(root)

    def begin_cycle(self, size: int) -> None:
        """Begin a lease of a block that was cached."""
        root = self.root
        assert root is not None  # noqa: S101  # what is cached has one
        self.size = size
        self.live_view = root[:size]

    def end_cycle(self, cycle: int) -> bool:
        """End this lease of the block; False when it had ended before. No thread comes between the two lines.

        CPython with a GIL switches threads, and runs signal handlers, only after calls and at jumps back.
        """
        if self.cycle != cycle:
            return False
        self.cycle = cycle + 1
        return True

    def undo_cycle(self) -> None:
        """Go on with a lease that could not end."""
        self.cycle -= 1

    @classmethod
    def cached(cls, holdings: Holdings, cache: Cache, kind: SizeClass, entry: Completion, serial: int) -> Holding:
        """Take a block into care that the daemon has granted over the lane."""
        name = BlockName(entry.slot, entry.generation)
        return cls(
            holdings,
            name,
            entry.offset,
            entry.size,
            entry.size,
            owned=True,
            serial=serial,
            cache=cache,
            kind=kind,
            collected=True,
        )

    @classmethod
    def again(cls, holdings: Holdings, cache: Cache, kind: SizeClass, block: Returnable) -> Holding:
        """Take a block into care again whose anchor has died."""
        size = block.usable_size
        return cls(holdings, block.name, block.offset, size, size, owned=True, cache=cache, kind=kind)

    @classmethod
    def opened(cls, holdings: Holdings, cache: Cache, handle: Handle) -> Holding:
        """Take a block into care that was opened without asking."""
        name = BlockName(handle.slot, handle.generation)
        usable = max(handle.usable_size, handle.size)
        holding = cls(holdings, name, handle.offset, usable, handle.size, owned=False, cache=cache)
        holding.record.posted = False
        return holding

    def quietly_gone(self) -> None:
        """Let the anchor die unnoticed: it has been seen to that the block is given back."""
        self.record.bell.quiet = True
        self.root = None
        self.holdings.bury_quiet()

    def in_use(self, error: BufferError) -> BufferError:
        """Return the error for a block that cannot be let go of, in our words."""
        if self.exports():
            return error
        return BufferError(f"block {self.name} is still in use: something holds its view's buffer")

    def check_unused(self) -> None:
        """Raise BufferError when the block's memory is used through its view."""
        if count := self.exports():
            raise BufferError(f"block {self.name} is still in use: {count} views, slices or arrays of it exist")

    @property
    def view(self) -> memoryview:
        """The one view that is handed out.

        Raises:
            LeaseReleased: the block has been given back.
            NotMapped: this process has no mapping of the heap.
        """
        if (view := self.live_view) is not None:
            return view
        self.check_held()
        raise NotMapped("a pool over TCP cannot map the heap, so there is no view: use read() and write()")

    def check_held(self) -> None:
        """Raise LeaseReleased when the block has been given back."""
        if self.released:
            raise LeaseReleased(f"block {self.name} has been released")

    def exports(self) -> int:
        """Return how many other objects use the block's memory through its view."""
        view = self.live_view
        try:
            if view is None:
                return 0
            return exports(view) if self.root is None else users_of_root(self.root, self.views)
        except ValueError:  # another thread has let go of it between the two lines
            return 0

    def let_go(self) -> None:
        """Make the view invalid, so that the block can be given back.

        Raises:
            BufferError: the view is exported; it stays valid, and nothing has changed.
        """
        if self.released:
            return
        self.check_unused()
        self.record.bell.quiet = True
        try:
            if (view := self.live_view) is not None:
                view.release()
        except BufferError as error:
            self.record.bell.quiet = False
            raise self.in_use(error) from None
        view = None
        self.forget()

    def forget(self) -> None:
        """Leave the block to its anchor: it is given back when the last view of it is gone."""
        self.live_view = self._anchor = self.root = None

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
            self.live_view, self._anchor = self.holdings.anchor(self)
        else:  # another thread made a slice at the last moment: the old anchor goes on
            self.record.bell.quiet = False
            self.live_view, self._anchor = self.holdings.face(self, anchor)
        if self.kind is not None:
            self.begin_cycle(self.size)


class Term(NamedTuple):
    """One lease of a block, or one open: it is over when the block has gone on to another cycle."""

    holding: Holding
    cycle: int

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.holding.cycle != self.cycle or self.holding.released

    def check(self) -> None:
        """Raise LeaseReleased when it has ended."""
        if self.over:
            raise LeaseReleased(f"block {self.holding.name} has been released")

    @property
    def view(self) -> memoryview:
        """Its view.

        Raises:
            LeaseReleased: it has ended.
            NotMapped: this process has no mapping of the heap.
        """
        view = self.holding.live_view  # first: it becomes invalid with this term, and so never is another's
        self.check()
        return self.holding.view if view is None else view

    def pin(self) -> None:
        """Have the block go back to the daemon at the end of this term, because others may have it then.

        Raises:
            LeaseReleased: it has ended; perhaps somebody else here leases the block now.
        """
        self.holding.shared = self.holding.record.shared = True
        self.check()


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
