"""The cache: blocks that the daemon has granted this session and that nobody here uses.

A lease takes one, a release puts it back, and neither asks anybody. For each size class there is a stack; the last
block in is the first out, so that it is warm. A miss asks the daemon over the lane, for a batch that doubles with each
miss. What all stacks may hold is bounded in bytes; a block that has no place goes back to the daemon, and so does one
that was idle for IDLE_SECONDS.

Rules:

1. A cached block has no view but its root, which keeps its anchor (slabd.mapping) alive.
2. CACHED is written before a block is put on its stack, IN_USE after it was taken off. A block that was taken off is
   used only if, after that, the daemon was not recalling and the block's generation was still its own. The daemon
   recalls what it finds CACHED: it need not ask, and a process that is stopped or busy keeps nobody waiting. So CACHED
   is never written about a slot that may be another lease's by now: an answer may be older than what came by gRPC.
3. Whoever lets go of a block has won `Holding.end_cycle`, so two who release at once are one who does.
4. An interrupt anywhere loses no block: one that is on no stack and in nobody's hands dies, and its anchor's death is
   noticed (slabd.holding); one that was granted and not taken yet is still in the ring.

What is not simple is left to `slabd.operations`, which ask by gRPC: a `None` from `get` or a False from `give` means
that, and no more.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import deque
from sys import getrefcount
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from slabd import arguments
from slabd.bell import Bell
from slabd.holding import Holding
from slabd.mapping import ANCHOR_ALONE, ROOT_AND_VIEW, root_of
from slabd.size_classes import SizeClasses
from slabd.transport import run
from slabd_proto.lane import (
    ENDED,
    Answer,
    State,
    Submission,
    Verb,
    Word,
    may_stay,
    open_word,
    pack_detail,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

    from slabd.handle import Handle
    from slabd.holding import Holdings, Returnable, Term
    from slabd.lane import Lane
    from slabd.size_classes import SizeClass
    from slabd_proto.lane import Completion

IDLE_SECONDS: Final = 5.0
MISS_SECONDS: Final = 1.0
_OPENED_KEPT: Final = 4096
_ATTENTION: Final = int(Word.ATTENTION)
_DROPPED_BYTES: Final = int(Word.DROPPED_BYTES)
_DROPPED_BLOCKS: Final = int(Word.DROPPED_BLOCKS)
_CACHE_HITS: Final = int(Word.CACHE_HITS)
_CACHE_MISSES: Final = int(Word.CACHE_MISSES)
_SUBMISSIONS_TAKEN: Final = int(Word.SUBMISSIONS_TAKEN)
_IN_USE: Final = int(State.IN_USE)
_CACHED: Final = int(State.CACHED)
_FREE: Final = int(State.FREE)
# Smaller blocks are not worth a wake-up of their own to be mapped in.
_COLD_BYTES: Final = 64 * 1024
_POPULATE_BYTES: Final = 1 << 20
_ONE: Final = 1
_ROOT: Final = ROOT_AND_VIEW - 1
_MICROSECONDS: Final = 1e6
_TTL_MICROSECONDS_MAX: Final = 7 * 24 * 3600 * 10**6
_RECALL_PAUSE_SECONDS: Final = 0.00005
# How long it is looked for shared blocks that come back when nobody has them open any more.
_BACK_SECONDS: Final = 5.0
# How long somebody may wait to keep a block, which he need not.
_KEEP_SECONDS: Final = 0.05
# Seconds that a recall may take before the daemon is given up as gone in the middle of it.
_RECALL_SECONDS: Final = 1.0


class Cache:
    """The blocks of one session that are at hand. Any thread may call anything."""

    def __init__(
        self,
        lane: Lane,
        holdings: Holdings,
        connection: int,
        limit: int | None,
        prefault: Callable[[], None] | None = None,
    ) -> None:
        """Keep up to `limit` bytes, or as much as the daemon allows. `prefault` has `populate` called soon."""
        self.lane: Final = lane
        self.misses = 0
        self._holdings = holdings
        self._connection = connection
        self._classes = SizeClasses(lane.cache_bytes if limit is None else min(limit, lane.cache_bytes), lane.words)
        self._by_size = self._classes.by_size
        self._words = lane.words
        self._states = lane.states
        self._details = lane.details
        self._since = lane.since
        self._generations = lane.generations
        self._missing = threading.RLock()
        self._busy = False
        self._taking_in = threading.RLock()
        self._collecting = False
        self._silent_until = 0.0
        self._bell: Bell | None = None
        self._asked: dict[int, tuple[int, int, bool]] = {}
        self._refused: set[int] = set()
        self._begun = (0, 0)
        self._wake = prefault
        self._cold: deque[tuple[int, int]] = deque()
        self._opened: dict[tuple[int, int], int] = {}
        self._inherited_serial = 0
        self._stopped = False
        # Counted by `next`, which is one call into C and no thread's alone; to read it counts too.
        self._hits = itertools.count()
        self._reads = 0
        self._back_until = 0.0

    def __repr__(self) -> str:
        return f"<Cache {self.cached_bytes} of {self._classes.limit} bytes, {len(self._classes)} classes>"

    def bell(self) -> Bell:
        """Return this lane's bell for the event loop that runs, which is always the same."""
        if self._bell is None:
            self._bell = Bell(self.lane, self._connection)
        return self._bell

    @property
    def cached_bytes(self) -> int:
        """How many bytes are at hand."""
        return self._classes.cached_bytes

    # -- leasing

    def take(
        self, size: int, alignment: int, label: str, frame: FrameType | None, call_site: str | None
    ) -> Holding | None:
        """Lease a block that is at hand; None when there is none, or nothing but an int would say how large it is.

        The call site is that of `frame`, or the text, or neither.

        Raises:
            InvalidArgument: what the daemon would not admit either.
        """
        words, generations = self._words, self._generations
        while type(size) is int:
            try:
                kind = self._by_size[size] if alignment is _ONE else self._aligned(size, alignment)
                stack = kind.stack
                holding = stack.pop()
            except (KeyError, IndexError):
                return None
            slot = holding.slot
            if generations[slot] != holding.word:  # recalled; the slot may be that of another block of ours
                self._drop(holding)
                continue
            self._states[slot] = _IN_USE
            if (words[_ATTENTION] & 1 or generations[slot] != holding.word) and not self._is_mine(holding):
                continue
            if frame is not None:
                code = frame.f_code
                at: int | str | None = frame.f_lasti
            else:
                code, at = None, call_site
            if holding.code is not code or holding.at != at or holding.label != label:
                self._note_purpose(holding, frame, call_site, label)
            self._details[slot] = holding.purpose | size
            self._since[slot] = monotonic()
            words[kind.place] = len(stack)
            # As `Holding.begin_cycle`, which would be one call more for each lease.
            if (root := holding.root) is None:  # the pool is being closed
                return None
            holding.size = size
            holding.live_view = root[:size]
            next(self._hits)
            return holding
        return None

    def _aligned(self, size: int, alignment: int) -> SizeClass:
        if type(alignment) is not int:  # 4096.0 is the same key, and no alignment
            raise KeyError(alignment)
        return self._classes.by_aligned[size, alignment]

    def get(
        self, size: int, alignment: int, label: str, frame: FrameType | None, call_site: str | None
    ) -> Holding | None:
        """Lease a block by as many wake-ups of the daemon as it takes; None when it has to be asked for by gRPC.

        Raises:
            InvalidArgument: what the daemon would not admit either.
        """
        return run(self._get(size, alignment, label, frame, call_site, self._refill))

    async def get_async(
        self, size: int, alignment: int, label: str, frame: FrameType | None, call_site: str | None
    ) -> Holding | None:
        """Do the same on an event loop.

        Raises:
            InvalidArgument: what the daemon would not admit either.
        """
        return await self._get(size, alignment, label, frame, call_site, self._refill_async)

    async def _get(  # a lease's arguments
        self,
        size: int,
        alignment: int,
        label: str,
        frame: FrameType | None,
        call_site: str | None,
        refill: Callable[[int, int], Awaitable[bool]],
    ) -> Holding | None:
        size, alignment = arguments.size(size), arguments.alignment(alignment)
        arguments.label(label)
        while await refill(size, alignment):
            if (holding := self.take(size, alignment, label, frame, call_site)) is not None:
                return holding
        return None

    def _is_mine(self, holding: Holding) -> bool:
        """Whether a block that was just taken off its stack may be used, when the daemon recalls or has recalled."""
        if not self._wait_for_peace():
            self._drop(holding)
            return False
        if self._generations[holding.slot] == holding.word:
            return True
        self._drop(holding)
        return False

    def _drop(self, holding: Holding) -> None:
        """Forget a cached block that the daemon has recalled: it is nobody's to give back."""
        self._holdings.drop(holding)
        kind = holding.kind
        if kind is not None:
            self._words[kind.place] = len(kind.stack)
        self._note_dropped(holding.usable_size)

    def _note_dropped(self, size: int) -> None:
        with self.lane.lock:
            self._words[_DROPPED_BYTES] += size
            self._words[_DROPPED_BLOCKS] += 1

    def _wait_for_peace(self) -> bool:
        """Wait while the daemon recalls; return whether there is still somebody to lease from."""
        limit = monotonic() + _RECALL_SECONDS
        while (attention := self._words[_ATTENTION]) & 1:
            if attention == ENDED or monotonic() > limit:
                self._stopped = True
                return False
            time.sleep(_RECALL_PAUSE_SECONDS)
        return True

    def _note_purpose(self, holding: Holding, frame: FrameType | None, call_site: str | None, label: str) -> None:
        site = arguments.site_of(frame) if frame is not None else arguments.cut_call_site(call_site or "")
        holding.purpose = pack_detail(0, self.lane.purpose(arguments.label(label), site))
        holding.code, holding.at = (frame.f_code, frame.f_lasti) if frame is not None else (None, call_site)
        holding.label = label

    # -- a miss

    async def _refill(self, size: int, alignment: int) -> bool:
        """Have a block of a size put on its stack; False when the daemon has to be asked by gRPC. Never suspends."""
        if self._stopped or self._is_inside():
            return False
        with self._missing:
            if self._busy or monotonic() < self._silent_until:  # the garbage collector came in between
                return False
            self._busy = True
            try:
                return await self._ask_and_wait(size, alignment, self._wait_here)
            finally:
                self._busy = False

    async def _refill_async(self, size: int, alignment: int) -> bool:
        """Do the same on an event loop, where several tasks may wait at once."""
        if self._stopped or monotonic() < self._silent_until:
            return False
        return await self._ask_and_wait(size, alignment, self.bell().wait)

    async def _wait_here(self, seconds: float) -> bool:
        return self.lane.wait(self._connection, seconds)

    def _is_inside(self) -> bool:
        """Whether this thread has an inner lock already: the garbage collector came in between.

        Whoever has the outer one may be waiting for that.
        """
        inner: tuple[Any, ...] = (self._taking_in, self.lane.lock)
        return any(lock._is_owned() for lock in inner)  # noqa: SLF001  # threading.Condition asks RLocks the same

    async def _ask_and_wait(self, size: int, alignment: int, wait: Callable[[float], Awaitable[bool]]) -> bool:
        self.collect()
        if self._at_hand(size, alignment):
            return True
        number = self.ask(size, alignment)
        limit = monotonic() + MISS_SECONDS
        while number and monotonic() < limit and self._words[_ATTENTION] != ENDED:
            there = await wait(limit - monotonic())
            self.collect()
            if self._is_answered(number):
                return self._at_hand(size, alignment)
            if not there:
                break
        return self._fell_silent(number)

    def _fell_silent(self, number: int) -> bool:
        """Note that the daemon did not answer, so that not everybody waits for it in turn. Return False."""
        if number:
            self._silent_until = monotonic() + MISS_SECONDS
        return False

    def _is_answered(self, number: int) -> bool:
        """Whether a request has got a block, or been refused, after `collect`. More blocks may follow."""
        if number in self._refused:
            self._refused.discard(number)
            return True
        _, _, granted = self._asked.get(number, (0, 0, True))
        return granted

    def ask(self, size: int, alignment: int) -> int:
        """Post a request for blocks, and return its number; 0 when there is no room for it."""
        kind = self._classes.of(size, alignment)
        blocks = 1 if kind is None else self._next_batch(kind)
        self.misses += 1
        self._words[_CACHE_MISSES] = self.misses
        number = self.lane.try_post(Submission(Verb.LEASE, quantity=blocks, a=size, b=alignment))
        if number:
            self._asked[number] = (size, alignment, False)
            self.lane.ring()
        return number

    def collect(self) -> None:
        """Take in what the daemon has granted and refused.

        An interrupt may end this anywhere. What it left is met again by the next who collects, who adopts the block if
        that has not been done: the serial number that it was to have says so.
        """
        with self._taking_in:
            if self._collecting:  # the garbage collector came in between; the outer call goes on with it
                return
            self._collecting = True
            try:
                self._take_in()
            finally:
                self._collecting = False
        if self._wake is not None and (self._cold or self._asked):
            self._wake()

    def _take_in(self) -> None:
        while (found := self.lane.next_completion()) is not None:
            number, entry = found
            again = self._begun[0] == number
            if not again:
                self._begun = number, self._holdings.next_serial()
            serial = self._begun[1]
            size, alignment, spare = self._note_answer(entry)
            if entry.answer != Answer.REFUSED and not (again and self._holdings.has_made(serial)):
                self._adopt(entry, serial, size, alignment, spare=spare)
            self.lane.took(number)
            self._silent_until = 0.0

    def _note_answer(self, entry: Completion) -> tuple[int, int, bool]:
        """Note that a request was answered; return its size and alignment, and whether it had got a block before."""
        if entry.answer == Answer.BACK:
            return entry.size, entry.request, True
        request, granted = entry.request, entry.answer == Answer.GRANTED
        size, alignment, before = self._asked.get(request, (entry.size, 1, True))
        if not granted and not before:
            self._refused.add(request)
        if entry.left:
            self._asked[request] = size, alignment, before or granted
        else:
            self._asked.pop(request, None)
        return size, alignment, before

    def _adopt(self, entry: Completion, serial: int, size: int, alignment: int, *, spare: bool) -> None:
        """Put a granted block on its stack, unless it is a spare one for which there is no room."""
        slot = entry.slot
        if self._generations[slot] != open_word(entry.generation):  # recalled before it was noticed here
            self._note_dropped(entry.size)
            return
        kind = self._classes.having(entry.min_size or entry.size, entry.size, alignment)
        full = spare and kind is not None and len(kind.stack) >= kind.cap and not self._classes.may_keep_more(kind)
        if kind is None or full or not self.lane.reach(slot):
            self.lane.commit(Submission(Verb.RETURN, slot, entry.generation, a=entry.size))
            return
        self._states[slot] = _CACHED
        self._since[slot] = monotonic()
        if kind.low <= size <= kind.high:
            self._classes.remember(size, alignment, kind)
        self._put(Holding.cached(self._holdings, self, kind, entry, serial), kind)
        # The last of a batch is on top and will be leased at once: too late to be made ready.
        if entry.left and entry.size >= _COLD_BYTES and self._wake is not None:
            self._cold.append((entry.offset, entry.size))

    def populate(self) -> None:
        """Map in the blocks that were granted for later, off the way of those who lease. It may take milliseconds."""
        self.collect()
        while self._cold and not self._stopped:
            offset, size = self._cold.popleft()
            for start in range(offset, offset + size, _POPULATE_BYTES):
                self._holdings.populate(start, min(_POPULATE_BYTES, offset + size - start))

    @property
    def has_cold(self) -> bool:
        """Whether `populate` has something to do."""
        return not self._stopped and bool(self._cold or self._asked)

    def _put(self, holding: Holding, kind: SizeClass) -> None:
        kind.stack.append(holding)
        self._words[kind.place] = len(kind.stack)

    def _at_hand(self, size: int, alignment: int) -> bool:
        kind = self._classes.of(size, alignment)
        return kind is not None and bool(kind.stack)

    def _next_batch(self, kind: SizeClass) -> int:
        """Return how many blocks to ask for; when there is no room to keep them, others give back what is idle."""
        if not self._classes.raise_batch(kind):
            for other in self._classes:
                if other is not kind:
                    self._trim(other, 0.0)
                    other.cap = min(other.cap, len(other.stack))
        return self._classes.next_batch(kind)

    # -- releasing

    def give(self, holding: Holding, cycle: int) -> bool:  # noqa: C901  # one call: each costs a tenth of a release
        """End a lease, or close an opened block; False when it has to be done by `operations.release`.

        Raises:
            BufferError: views of it exist; nothing has changed.
        """
        if self._stopped or holding.serial <= self._inherited_serial:
            return False
        # As `Holding.end_cycle`: no thread comes between these lines.
        if holding.cycle != cycle:
            return True
        holding.cycle = cycle + 1
        view = holding.live_view
        if view is None:
            return True
        root = holding.root
        try:
            # The same count as in `users_of_root`, without its lock: others who count can only make it larger.
            if root is None:
                holding.check_unused()
                holding.record.bell.muffled = True
            elif holding.views.value != ROOT_AND_VIEW or getrefcount(root.obj) != ANCHOR_ALONE:
                holding.check_unused()
            view.release()
        except BufferError as error:
            holding.record.bell.muffled = False
            holding.undo_cycle()
            raise holding.in_use(error) from None
        holding.live_view = None
        if holding.serial <= self._inherited_serial:
            # A fork came in between, and the child has a view: left to the anchor's death, and then to the heirs.
            holding.root = None
            self._holdings.wake()
        elif root is None:
            self._give_back(holding)
        elif holding.views.value != _ROOT or getrefcount(root.obj) != ANCHOR_ALONE:
            holding.root = None  # another thread has made a slice at the last moment: the anchor's death will do it
        elif (
            (kind := holding.kind) is not None
            and not holding.shared
            and (len(stack := kind.stack) < kind.cap or self._classes.may_keep_more(kind))
        ):
            self._states[holding.slot] = _CACHED
            stack.append(holding)
            self._words[kind.place] = len(stack)
            if self._is_stopped():  # perhaps after `stop` has looked
                holding.root = None
        else:
            self._give_back(holding)
        return True

    def _give_back(self, holding: Holding) -> None:
        """Return a block to the daemon, or tell it that an opened one is closed.

        Its state stays what it was: the daemon knows whose block it is.
        """
        self.lane.commit(self._farewell(holding), holding.serial)
        holding.quietly_gone()

    def _farewell(self, block: Returnable | Holding) -> Submission:
        """Return the post that gives a block back, and wants it again if it was handed off and has a place here."""
        slot, generation = block.name.slot, block.name.generation
        if not block.owned:
            return Submission(Verb.CLOSE, slot, generation)
        if (kind := block.kind) is None:
            return Submission(Verb.RETURN, slot, generation)
        size = block.usable_size
        if not block.shared or kind.forgotten or size > self._classes.limit or self._states[slot] != _IN_USE:
            return Submission(Verb.RETURN, slot, generation, a=size)
        self._states[slot] = _FREE  # so that it can be recalled when it is back, before it is noticed here
        self._back_until = monotonic() + _BACK_SECONDS
        return Submission(Verb.RETURN, slot, generation, 1, size, kind.alignment)

    def take_back(self, block: Returnable) -> bool:
        """Do the same for a block whose anchor has died; False when it has to be done by gRPC.

        Nobody else can have it: its record was taken out of the holdings.
        """
        if self._stopped:
            return False
        slot, kind = block.name.slot, block.kind
        # In use until now, so the daemon has not recalled it. One that died in the cache may have been: then the slot
        # may be another lease's, and there is nothing to write about it.
        known = slot < len(self._states)  # the lane has no place for so high a slot, if that came by gRPC
        mine = known and self._states[slot] == _IN_USE and self._generations[slot] == open_word(block.name.generation)
        if mine and kind is not None and not block.shared and len(kind.stack) < kind.cap:
            self._states[slot] = _CACHED
            self._put(Holding.again(self._holdings, self, kind, block), kind)
            return True
        if not block.owned and not self.lane.knows(block):
            return True  # an interrupt came before the open was posted
        self.lane.commit(self._farewell(block))
        return True

    # -- handing off

    def share(self, term: Term, opens: int, ttl: float | None) -> bool:
        """Promise a block to those who will open it; False when the daemon has to be asked by gRPC.

        Raises:
            LeaseReleased: the lease has ended.
        """
        holding = term.holding
        promised = holding.promised + opens
        micros = 0 if ttl is None else round(ttl * _MICROSECONDS)
        if ttl is not None and not 0 < micros <= _TTL_MICROSECONDS_MAX:
            return False  # and the daemon says what it admits
        if self._stopped or not holding.owned or promised > arguments.OPENS_MAX:
            return False
        size = holding.size
        term.pin()
        post = Submission(Verb.SHARE, holding.slot, holding.name.generation, opens, micros, size)
        if not self.lane.try_post(post):
            return False
        holding.promised = promised
        return True

    def open(self, handle: Handle) -> Holding | None:
        """Open a shared block without asking; None when the daemon has to be asked by gRPC, which may refuse.

        The gate is looked at before the open is posted and after: the daemon closes it first and reads the posts then.
        """
        slot, word = handle.slot, open_word(handle.generation)
        if self._stopped or handle.transfer or slot >= len(self._generations) or self._generations[slot] != word:
            return None
        if handle.size < 1 or handle.offset + max(handle.usable_size, handle.size) > self._holdings.mapped_bytes:
            return None
        if self._opened.get((slot, word), 0) > self._words[_SUBMISSIONS_TAKEN]:
            return None  # the daemon has not counted our last open of it yet, so it knows better
        holding = Holding.opened(self._holdings, self, handle)
        number = self.lane.try_post(Submission(Verb.OPEN, slot, handle.generation), holding.record)
        if not number:
            self._holdings.drop(holding)
            return None
        if len(self._opened) >= _OPENED_KEPT:
            self._opened.clear()
        self._opened[slot, word] = number
        if not may_stay(self._generations[slot], handle.generation) or self._words[_ATTENTION] == ENDED:
            holding.live_view = None
            self._give_back(holding)
            return None
        return holding

    def note_size(self, holding: Holding) -> None:
        """Tell the daemon how many bytes of a block are used this time, before it is asked to hand it on."""
        if holding.kind is not None and not self._stopped:
            self.lane.commit(Submission(Verb.RESIZE, holding.slot, holding.name.generation, a=holding.size))

    def adopted(self, holding: Holding) -> None:
        """Note that a block came by gRPC, so that nothing older is told of its slot."""
        if holding.owned and self.lane.reach(holding.slot):
            self._states[holding.slot] = _FREE

    def keep(self, holding: Holding, alignment: int) -> None:
        """Let a block that came by gRPC, and is in nobody's hands yet, be kept here when it is released.

        So it is with one that could not be granted over the lane, because it had to be made ready first.
        """
        # In the garbage collector, or called for a thread that waits, others may wait for what this one has.
        if self._is_inside() or not self._taking_in.acquire(timeout=_KEEP_SECONDS):
            return
        try:
            self._let_keep(holding, alignment)
        finally:
            self._taking_in.release()

    def _let_keep(self, holding: Holding, alignment: int) -> None:
        slot, size = holding.slot, holding.size
        anchor = holding.record()
        if self._stopped or anchor is None or holding.usable_size > self._classes.limit or not self.lane.reach(slot):
            return
        if (kind := self._classes.having(size, holding.usable_size, alignment)) is None:
            return
        self._details[slot] = pack_detail(size, 0)
        self._since[slot] = monotonic()
        self._states[slot] = _IN_USE
        bare = holding.live_view
        holding.take_root(root_of(anchor))
        holding.begin_cycle(size)
        if bare is not None:
            bare.release()
        self.lane.commit(Submission(Verb.KEEP, slot, holding.name.generation))
        # From here on it may be cached; an interrupt before leaves a block that goes back when it is released.
        holding.kind = holding.record.kind = kind
        self._classes.remember(size, alignment, kind)

    def _is_stopped(self) -> bool:
        return self._stopped

    # -- in the background

    def tick(self, idle_seconds: float = IDLE_SECONDS) -> bool:
        """Give back what is idle, and correct what threads may have miscounted; return whether any block is cached."""
        if self._stopped:
            return False
        waiting = bool(self._asked) or monotonic() < self._back_until
        if waiting:
            self.collect()
        for kind in self._classes:
            self._trim(kind, idle_seconds)
            self._words[kind.place] = len(kind.stack)
        self.lane.flush()
        self._tell_hits()
        return waiting or any(kind.stack for kind in self._classes)

    def _tell_hits(self) -> None:
        with self.lane.lock:
            self._words[_CACHE_HITS] = next(self._hits) - self._reads
            self._reads += 1

    def _trim(self, kind: SizeClass, idle_seconds: float) -> None:
        """Give back the blocks at the bottom of a stack that were not used for so long."""
        stack, oldest = kind.stack, monotonic() - idle_seconds
        try:
            while stack and self._since[stack[0].slot] <= oldest:
                holding = stack.pop(0)
                self._words[kind.place] = len(stack)
                if self._generations[holding.slot] == holding.word:
                    self._give_back(holding)
                else:
                    self._drop(holding)
                kind.cap = min(kind.cap, max(kind.cap - 1, 1))
        except IndexError:  # another thread was faster
            return

    def empty(self) -> None:
        """Give everything back that is cached."""
        if self._stopped:
            return
        for kind in self._classes:
            self._trim(kind, 0.0)

    def stop(self, *, inherited: bool = False) -> None:
        """Use the lane no more: the session ends, or it is `inherited`: this is a forked child, whose parent's it is.

        There, locks may be in anybody's hands, so none is taken.
        """
        self._stopped = True
        if not inherited:
            self._tell_hits()
            if self._bell is not None:
                self._bell.close()
        self._classes.forget_requests()
        for kind in self._classes:
            for holding in list(kind.stack):
                holding.quietly_gone()
            kind.stack.clear()

    def about_to_fork(self) -> None:
        """Until `has_forked`, have every block given back where the heirs are asked, who let nobody in meanwhile."""
        self._inherited_serial = sys.maxsize

    def has_forked(self, last: int | None) -> None:
        """In the parent: a child may touch blocks in use numbered up to `last`; of cached ones it has no view."""
        for kind in self._classes:
            self._holdings.renumber(list(kind.stack))
        if last is not None:
            self._inherited_serial = last
