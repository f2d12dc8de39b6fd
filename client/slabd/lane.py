"""The lane, as a client sees it: the memory it shares with the daemon alone, and how to post into it.

It owns the mappings, the eventfds and the submission ring; `slabd_proto.lane` has the layout and says why plain stores
are enough. What it may be used for is the business of slabd.cache and slabd.posting.

A post is *committed* when it is in the outbox, which takes one call into C. Whoever comes next writes the outbox into
the ring, first in, first out. An interrupt, or the garbage collector, may strike between any two steps of that: an
entry that is in the ring already is recognised there, so it is posted once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import threading
from collections import deque
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from slabd.descriptors import Descriptor
from slabd_proto.lane import (
    CALL_SITE_BYTES_MAX,
    ENTRY_BYTES,
    HEADER_BYTES,
    LABEL_BYTES_MAX,
    MEMBARRIER_NUMBERS,
    MEMBARRIER_REGISTER_GLOBAL_EXPEDITED,
    PURPOSE_BYTES,
    PURPOSES,
    RING,
    WORD_BYTES,
    Submission,
    Word,
    entry_at,
    pack_purpose,
    pack_submission,
    unpack_completion,
    unpack_header,
    unpack_submission,
)

if TYPE_CHECKING:
    from slabd.holding import Returnable
    from slabd_proto.lane import Completion

assert LABEL_BYTES_MAX + CALL_SITE_BYTES_MAX < PURPOSE_BYTES  # noqa: S101  # so that a record always fits

# Pages of the usage columns are allocated this many slots at a time, before they are written to.
_CHUNK_SLOTS: Final = 4096
_PURPOSES_PER_PAGE: Final = mmap.PAGESIZE // PURPOSE_BYTES


class Posted(Protocol):
    """What wants to know that its post was made."""

    posted: bool


class LaneDescriptors(NamedTuple):
    """What the daemon sends for a lane."""

    generations: int
    lane: int
    doorbell: int
    bell: int


class Lane:
    """One session's lane. Methods may be called from any thread."""

    def __init__(self, descriptors: LaneDescriptors) -> None:
        """Map it. The descriptors are the lane's from then on; see `over`."""
        header = os.pread(descriptors.lane, HEADER_BYTES, 0)
        self._layout, self.cache_bytes = unpack_header(header)
        self._fd = Descriptor(descriptors.lane)
        self._doorbell = Descriptor(descriptors.doorbell)
        self.bell = Descriptor(descriptors.bell)
        self._memory = mmap.mmap(descriptors.lane, self._layout.total)
        table = mmap.mmap(descriptors.generations, 0, prot=mmap.PROT_READ)
        view = memoryview(self._memory)
        layout, slots = self._layout, self._layout.slots
        self.words = view[:HEADER_BYTES].cast("Q")
        self.states = view[layout.states : layout.states + slots]
        self.details = view[layout.details : layout.details + slots * WORD_BYTES].cast("Q")
        self.since = view[layout.since : layout.since + slots * WORD_BYTES].cast("d")
        self.generations = memoryview(table).cast("Q")
        self._chunks = bytearray(-(-slots // _CHUNK_SLOTS))
        self._purposes: dict[tuple[str, str], int] = {}
        self.lock = threading.RLock()
        self._posting = False
        self._outbox: deque[tuple[Submission, int, Posted | None]] = deque()
        self._posted = 0
        self._completion = 1
        self._poll: select.poll | None = None
        self._is_held = _nobody_holds

    @classmethod
    def over(cls, descriptors: LaneDescriptors) -> Lane:
        """Map a lane behind copies of these descriptors.

        Raises:
            OSError, ValueError: it cannot be mapped, or is none of this version.
        """
        with ExitStack() as undo:
            kept = []
            for number in (descriptors.lane, descriptors.doorbell, descriptors.bell):
                kept.append(os.dup(number))  # each is closed if the next one fails
                undo.callback(os.close, kept[-1])
            lane = cls(LaneDescriptors(descriptors.generations, *kept))
            undo.pop_all()
        return lane

    def claim_by(self, is_held: dict[int, object]) -> None:
        """Have posts that give back a block with a serial number take it out of this dict, and be dropped without."""
        self._is_held = is_held

    # -- posting

    def commit(self, post: Submission, serial: int = 0) -> None:
        """Post something that has happened, at the latest when there is room for it."""
        self._outbox.append((post, serial, None))
        self.flush()

    def knows(self, block: Returnable) -> bool:
        """Whether the post that a block was given with has been committed."""
        if not block.posted:
            self.flush()
        waiting: list[object] = [entry[2] for entry in tuple(self._outbox)]
        return block.posted or any(each is block for each in waiting)

    def try_post(self, post: Submission, block: Posted | None = None) -> int:
        """Post something now, and return its number; 0 when there is no room, and then nothing has happened.

        `block.posted` becomes true with it.
        """
        with self.lock:
            if self._posting:
                return 0
            self._posting = True
            try:
                if not self._write_outbox() or not self._has_room():
                    return 0
                # In front of what other threads commit meanwhile, so that the number and the room are its own.
                number = self._posted + 1
                self._outbox.appendleft((post, 0, block))
                self._write_first()
            finally:
                self._posting = False
        self._ring_if_needed()
        return number

    def flush(self) -> bool:
        """Write what is in the outbox; return whether there was room for all of it."""
        with self.lock:
            if self._posting:  # the garbage collector came in between; the outer call, or the next, goes on with it
                return False
            self._posting = True
            try:
                done = self._write_outbox()
            finally:
                self._posting = False
        self._ring_if_needed()
        return done

    @property
    def has_unwritten(self) -> bool:
        """Whether something waits in the outbox."""
        return bool(self._outbox)

    def _write_outbox(self) -> bool:
        while self._outbox:
            if not self._has_room():
                return False
            self._write_first()
        return True

    def _write_first(self) -> None:
        """Write the oldest committed post. Each step may be the last before an interrupt."""
        post, serial, block = self._outbox[0]
        number = self._posted + 1
        start = self._layout.submissions + entry_at(number)
        if unpack_submission(number, self._memory[start : start + ENTRY_BYTES]) is None:
            if serial and serial not in self._is_held:  # committed twice
                self._outbox.popleft()
                return
            self._memory[start : start + ENTRY_BYTES] = pack_submission(number, post)
        if serial:
            self._is_held.pop(serial, None)
        if block is not None:
            block.posted = True
        self._posted = number
        self._outbox.popleft()

    def _has_room(self) -> bool:
        return self._posted - self.words[Word.SUBMISSIONS_TAKEN] < RING

    def _ring_if_needed(self) -> None:
        if not self.words[Word.POLLING] or self._posted - self.words[Word.SUBMISSIONS_TAKEN] > RING // 2:
            self.ring()

    def ring(self) -> None:
        """Wake the daemon."""
        with suppress(BlockingIOError):
            os.eventfd_write(self._doorbell.number, 1)

    # -- answers

    def next_completion(self) -> tuple[int, Completion] | None:
        """Return the number of the next completion and what it says, None while there is none; `took` takes it.

        The caller keeps others out, of this and of `took`.
        """
        number = self._completion
        start = self._layout.completions + entry_at(number)
        entry = unpack_completion(number, self._memory[start : start + ENTRY_BYTES])
        return None if entry is None else (number, entry)

    def took(self, number: int) -> None:
        """Let the daemon use a completion's place again."""
        if self._completion == number:
            self.words[Word.COMPLETIONS_TAKEN] = number
            self._completion = number + 1

    def wait(self, connection: int, seconds: float) -> bool:
        """Wait for the bell; return whether it rang. It ends early when `connection` hangs up.

        The caller keeps others out.
        """
        if (poll := self._poll) is None:
            poll = select.poll()
            poll.register(self.bell.number, select.POLLIN)
            poll.register(connection, 0)  # hang-ups are reported unasked
            self._poll = poll
        ready = poll.poll(seconds * 1000)
        return (self.bell.number, select.POLLIN) in ready and self.quiet()

    def quiet(self) -> bool:
        """Take the bell's ringing; return whether it rang."""
        with suppress(BlockingIOError):
            return os.eventfd_read(self.bell.number) > 0
        return False

    # -- the usage table

    def reach(self, slot: int) -> bool:
        """Make sure that a slot's usage can be written; return whether it can."""
        chunk = slot // _CHUNK_SLOTS
        if slot >= self._layout.slots:
            return False
        if self._chunks[chunk]:
            return True
        first = chunk * _CHUNK_SLOTS
        count = min(_CHUNK_SLOTS, self._layout.slots - first)
        try:
            os.posix_fallocate(self._fd.number, self._layout.states + first, count)
            for column in (self._layout.details, self._layout.since):
                os.posix_fallocate(self._fd.number, column + first * WORD_BYTES, count * WORD_BYTES)
        except OSError:  # no memory: the block is used without the lane
            return False
        self._chunks[chunk] = 1
        return True

    def purpose(self, label: str, call_site: str) -> int:
        """Return the number of a purpose; 0, which says nothing, when there are too many, or no memory."""
        key = (label, call_site)
        index = self._purposes.get(key)
        if index is None:
            with self.lock:
                index = self._purposes.get(key) or self._add_purpose(label, call_site)
        return index

    def _add_purpose(self, label: str, call_site: str) -> int:
        if not label and not call_site:
            return 0
        index = len(self._purposes) + 1
        if index >= PURPOSES:
            return 0
        start = self._layout.purposes + index * PURPOSE_BYTES
        if index == 1 or index % _PURPOSES_PER_PAGE == 0:
            try:
                os.posix_fallocate(self._fd.number, start // mmap.PAGESIZE * mmap.PAGESIZE, mmap.PAGESIZE)
            except OSError:
                return 0
        record = pack_purpose(label, call_site)
        self._memory[start : start + len(record)] = record
        self._purposes[label, call_site] = index
        return index

    def close(self) -> None:
        """Give up the descriptors. The memory goes with the last who looks at it."""
        for descriptor in (self._fd, self._doorbell, self.bell):
            descriptor.close()


_nobody_holds: dict[int, object] = {}


def register_for_barriers() -> None:
    """Let the daemon's memory barriers reach this process.

    Raises:
        OSError: this kernel (before 4.16) or machine has none.
    """
    number = MEMBARRIER_NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(f"no membarrier(2) is known for {os.uname().machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, MEMBARRIER_REGISTER_GLOBAL_EXPEDITED, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"membarrier(2): {os.strerror(code)}")
