"""The memory of lanes: each session's own, and each heap's table of generations. `slabd_proto.lane` has the layout.

Both are memfds that never change their size, so no access to a mapping of them raises SIGBUS. What the daemon writes
to, it has allocated before; of what a client writes it reads copies (pread), because reading a hole through a mapping
would allocate it. A client may write anything at any time: every reader here copies first and checks the copy.

Must not know of sessions, blocks or sockets.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
from typing import TYPE_CHECKING, Final

from slabd_proto.lane import (
    CLASSES,
    ENDED,
    ENTRY_BYTES,
    HEADER_BYTES,
    PURPOSE_BYTES,
    PURPOSES,
    RING,
    SLOTS_MAX,
    WORD_BYTES,
    LaneLayout,
    Submission,
    Word,
    closed_word,
    entry_at,
    open_word,
    pack_completion,
    pack_header,
    shut_word,
    unpack_detail,
    unpack_purpose,
    unpack_submission,
)
from slabd_server.core.sizes import MIN_CLASS
from slabd_server.segments import SEALS, make_memfd

if TYPE_CHECKING:
    from typing import Self

    from slabd_proto.lane import Completion

_CHUNK_SLOTS: Final = 16 * 1024
# Sessions and opens have ledger slots too.
_OTHER_SLOTS: Final = 16 * 1024

log = logging.getLogger(__name__)


class GenerationTable:
    """The gates of one heap (`core.gates`), where clients can see them. Slots from `slots` on have none: clients ask.

    Invariant: the pages of the first `_reached` slots are allocated, and no word behind them was ever written.
    """

    def __init__(self, name: str, slots: int) -> None:
        self.slots = slots
        self.watchers = 0
        self._reached = 0
        size = -(-slots * WORD_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
        self._fd = make_memfd(f"slabd-generations-{name}")
        try:
            os.ftruncate(self._fd, size)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, SEALS)
            self._mapping = mmap.mmap(self._fd, size)
        except BaseException:
            os.close(self._fd)
            raise
        self._words = memoryview(self._mapping).cast("Q")

    @classmethod
    def create(cls, heap: str, heap_bytes: int) -> Self:
        """Make the table of a heap, with as many slots as it can ever need, or as there may be."""
        return cls(heap, min(heap_bytes // MIN_CLASS + _OTHER_SLOTS, SLOTS_MAX))

    @property
    def watched(self) -> bool:
        """Whether there is a client with a lane."""
        return self.watchers > 0

    def open(self, slot: int, generation: int) -> None:
        """See `core.gates.Gates`."""
        if slot >= self._reached:
            self._reach(slot)
        if slot < self.slots:
            self._words[slot] = open_word(generation)

    def _reach(self, slot: int) -> None:
        """Allocate pages up to a slot's; without memory for them, there are no gates from there on."""
        reached = min(max(slot + 1, self._reached + _CHUNK_SLOTS), len(self._words))
        if slot >= self.slots:
            return
        try:
            os.posix_fallocate(self._fd, self._reached * WORD_BYTES, (reached - self._reached) * WORD_BYTES)
        except OSError as error:
            log.warning("no memory for the generations of slots from %d on: %s", self._reached, error.strerror)
            self.slots = self._reached
        else:
            self._reached = reached

    def shut(self, slot: int, generation: int) -> None:
        """See `core.gates.Gates`."""
        if slot < self.slots:
            self._words[slot] = shut_word(generation)

    def close(self, slot: int, generation: int) -> None:
        """See `core.gates.Gates`."""
        if slot < self.slots:
            self._words[slot] = closed_word(generation)

    def read_only_fd(self) -> int:
        """Open a new descriptor for a client, which may only read; the caller closes it."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def resident_bytes(self) -> int:
        """Return how many bytes have memory behind them."""
        return os.fstat(self._fd).st_blocks * 512

    def release(self) -> None:
        """Give the table up; idempotent."""
        if self._fd >= 0:
            self._words.release()
            self._mapping.close()
            os.close(self._fd)
            self._fd = -1


_SIZES: Final = slice(Word.CLASS_SIZES, Word.CLASS_SIZES + CLASSES)
_COUNTS: Final = slice(Word.CLASS_COUNTS, Word.CLASS_COUNTS + CLASSES)


def _summed(claimed: list[tuple[int, int]]) -> tuple[int, int]:
    return sum(size * count for size, count in claimed), sum(count for _, count in claimed)


class LaneSegment:
    """One session's lane, as the daemon sees it. `slots` is how many ledger slots its usage columns have."""

    def __init__(self, fd: int, layout: LaneLayout, mapping: mmap.mmap) -> None:
        self._fd = fd
        self._layout = layout
        self._mapping = mapping
        self._words = memoryview(mapping)[:HEADER_BYTES].cast("Q")
        self.recalled_bytes = 0
        self.recalled_blocks = 0
        self._attention = 0
        self._submission = 1
        self._completion = 1

    @classmethod
    def create(cls, name: str, slots: int, cache_bytes: int) -> Self:
        """Make a lane for a client that may keep `cache_bytes` cached.

        Raises:
            OSError: there is no memory for it; nothing remains.
        """
        layout = LaneLayout(min(slots, SLOTS_MAX))
        with contextlib.ExitStack() as undo:
            fd = make_memfd(f"slabd-lane-{name}")
            undo.callback(os.close, fd)
            os.ftruncate(fd, layout.total)
            os.posix_fallocate(fd, 0, layout.purposes)
            os.pwrite(fd, pack_header(layout, cache_bytes), 0)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            segment = cls(fd, layout, mmap.mmap(fd, layout.purposes))
            undo.pop_all()
        return segment

    @property
    def fd(self) -> int:
        """The descriptor for the client. It stays the segment's: pass it on, do not close it."""
        return self._fd

    @property
    def taken(self) -> int:
        """How many submissions have been taken, which is the number of the last one."""
        return self._submission - 1

    def next_submission(self) -> Submission | None:
        """Return the next submission, None while there is none; `took` takes it."""
        start = self._layout.submissions + entry_at(self._submission)
        return unpack_submission(self._submission, self._mapping[start : start + ENTRY_BYTES])

    def took(self) -> None:
        """Let the client use the submission's place again."""
        self._words[Word.SUBMISSIONS_TAKEN] = self._submission
        self._submission += 1

    @property
    def completed(self) -> int:
        """The number of the last completion."""
        return self._completion - 1

    @property
    def completions_taken(self) -> int:
        """How many completions the client says it has taken; not more than there were, whatever it has written."""
        return min(self._words[Word.COMPLETIONS_TAKEN], self.completed)

    @property
    def room(self) -> int:
        """How many completions there is room for."""
        return max(0, RING - (self.completed - self.completions_taken))

    def complete(self, entry: Completion) -> None:
        """Write a completion. The caller knows that there is room."""
        start = self._layout.completions + entry_at(self._completion)
        self._mapping[start : start + ENTRY_BYTES] = pack_completion(self._completion, entry)
        self._completion += 1

    def set_polling(self, *, polling: bool) -> None:
        """Tell the client whether it has to wake the daemon."""
        self._words[Word.POLLING] = int(polling)

    def begin_recall(self) -> None:
        """Let the client wait before it uses what it takes out of its cache; see `slabd_proto.lane`."""
        self._attention += 1
        self._words[Word.ATTENTION] = self._attention

    end_recall = begin_recall

    def dismiss(self) -> None:
        """Tell the client that its session can do nothing any more."""
        self._attention = ENDED
        self._words[Word.ATTENTION] = ENDED

    # -- what the client says

    def claimed(self) -> tuple[int, int]:
        """Return how many bytes, in how many blocks, lie on the client's stacks, as it says. It may say anything.

        Of those that were recalled it may not know yet.
        """
        return _summed(self.claimed_classes())

    def claimed_classes(self) -> list[tuple[int, int]]:
        """Return the same by size of the blocks: the size, and how many."""
        counts = list(self._words[_COUNTS])
        if not any(counts):
            return []
        return [(size, count) for size, count in zip(list(self._words[_SIZES]), counts, strict=True) if count]

    @property
    def is_closed(self) -> bool:
        """Whether it has been given up."""
        return self._fd < 0

    def counts(self) -> tuple[int, int]:
        """Return how many leases the client says its cache has served, and how many not."""
        return self._words[Word.CACHE_HITS], self._words[Word.CACHE_MISSES]

    def cached(self, claimed: list[tuple[int, int]] | None = None) -> tuple[int, int]:
        """Return the same without what was recalled and the client does not know of."""
        claimed_bytes, claimed_blocks = _summed(self.claimed_classes() if claimed is None else claimed)
        dropped_bytes, dropped_blocks = self._words[Word.DROPPED_BYTES], self._words[Word.DROPPED_BLOCKS]
        if not claimed_blocks:  # then it knows of everything
            self.recalled_bytes, self.recalled_blocks = dropped_bytes, dropped_blocks
        return (
            max(0, claimed_bytes - max(0, self.recalled_bytes - dropped_bytes)),
            max(0, claimed_blocks - max(0, self.recalled_blocks - dropped_blocks)),
        )

    def note_recalled(self, size: int) -> None:
        """Count a block that was recalled; of a negative size, one that the client returned without knowing it."""
        self.recalled_bytes += size
        self.recalled_blocks += 1 if size > 0 else -1

    def states(self, slots: int) -> bytes:
        """Return a copy of the states of the first `slots` slots."""
        return os.pread(self._fd, min(slots, self._layout.slots), self._layout.states)

    def usage(self, slot: int) -> tuple[int, int, int, float]:
        """Return the state, the requested size, the purpose and the time of a slot, as the client wrote them."""
        if slot >= self._layout.slots:
            return 0, 0, 0, 0.0
        state = os.pread(self._fd, 1, self._layout.states + slot)[0]
        detail = int.from_bytes(os.pread(self._fd, WORD_BYTES, self._layout.details + slot * WORD_BYTES), "little")
        since = os.pread(self._fd, WORD_BYTES, self._layout.since + slot * WORD_BYTES)
        return (state, *unpack_detail(detail), memoryview(since).cast("d")[0])

    def purpose(self, index: int) -> tuple[str, str]:
        """Return the label and the call site that the client has numbered so; empty ones when it has not."""
        if not 0 < index < PURPOSES:
            return "", ""
        data = os.pread(self._fd, PURPOSE_BYTES, self._layout.purposes + index * PURPOSE_BYTES)
        return unpack_purpose(data) or ("", "")

    def close(self) -> None:
        """Give the lane up; idempotent."""
        if self._fd >= 0:
            self._words.release()
            self._mapping.close()
            os.close(self._fd)
            self._fd = -1
