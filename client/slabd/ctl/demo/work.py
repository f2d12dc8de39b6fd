"""The demo's books: what is to be read, digested and checked, what came of it, and what to do when somebody dies. Pure.

A piece goes   to do ─take_read─► reading ─shared─► ready ─take_digest─► digesting ─digested─► digest known
and, beside it, to check ─take_check─► checking ─checked─► direct digest known.   When both are known they are compared.

Invariants:

1. Every file ends with exactly one outcome: matched, wrong, or skipped with a reason.
2. A batch is in one place. What a dead child had in flight is `lost` and goes back one step: handles to ready, because
   they may still stand. If they turn out `stale`, the dead one had opened them, and their pieces are read again.
3. A file that changed is planned anew, with new pieces. Its old ones are void: nobody waits for them, but their blocks
   are still opened and closed, so that none stays behind.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from slabd.ctl.demo.messages import Digest, Piece, Read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slabd.ctl.demo.files import Found
    from slabd.ctl.demo.messages import BatchId, Checked, Digests, Failure, PieceId, Shared, Stamp

BATCH_ITEMS: Final = 64
# A batch takes at most this part of the heap, so that several are under way at once ...
_BATCHES_IN_HEAP: Final = 16
# ... and a file that does not fit is done in pieces of this part of it.
_PIECES_IN_HEAP: Final = 4
_PAGE: Final = 4096
_ATTEMPTS: Final = 5
_NOTHING: Final = hashlib.sha256(b"").digest()


class Outcome(Enum):
    """What came of a file."""

    MATCHED = "matched"
    WRONG = "wrong"
    SKIPPED = "skipped"


@dataclass(slots=True)
class FileRecord:
    """A file, and what came of it."""

    path: str
    stamp: Stamp
    attempts: int = 0
    pieces: int = 0
    open_pieces: set[PieceId] = field(default_factory=set)
    outcome: Outcome | None = None
    reason: str = ""


@dataclass(slots=True)
class _Live:
    """A piece that somebody waits for."""

    piece: Piece
    file: FileRecord
    attempts: int = 1
    digest: bytes | None = None
    direct: bytes | None = None


@dataclass(slots=True)
class Totals:
    """What the summary counts."""

    leases: int = 0
    bytes_through_heap: int = 0
    read_again: int = 0
    waits: int = 0
    waited_seconds: float = 0.0


class Work:
    """All files of one demo, and where each is."""

    def __init__(self, files: Sequence[Found], heap_bytes: int) -> None:
        self.heap_bytes = heap_bytes
        self.files = [FileRecord(found.path, found.stamp) for found in files]
        self.totals = Totals()
        self.files_done = 0
        self.pieces_taken = 0
        self._batch_bytes = max(heap_bytes // _BATCHES_IN_HEAP, _PAGE)
        self._ids = itertools.count(1)
        self._batches = itertools.count(1)
        self._live: dict[PieceId, _Live] = {}
        self._todo: deque[Piece] = deque()
        self._to_check: deque[Piece] = deque()
        self._ready: deque[dict[PieceId, bytes]] = deque()
        self._reading: dict[BatchId, tuple[Piece, ...]] = {}
        self._digesting: dict[BatchId, dict[PieceId, bytes]] = {}
        self._checking: dict[BatchId, tuple[Piece, ...]] = {}
        self._changed: list[FileRecord] = []
        for file in self.files:
            self._plan(file)
        self.pieces_planned = len(self._todo)

    @property
    def finished(self) -> bool:
        """Whether every file has its outcome and nothing is under way."""
        return self.files_done == len(self.files) and self.quiet and not self._checking

    @property
    def quiet(self) -> bool:
        """Whether no block is in use: nothing is being read, ready, or being digested."""
        return not (self._reading or self._ready or self._digesting)

    @property
    def reading(self) -> bool:
        """Whether the reader has something to do."""
        return bool(self._reading)

    @property
    def ready(self) -> int:
        """How many batches wait for a worker."""
        return len(self._ready)

    @property
    def something_to_read(self) -> bool:
        """Whether `take_read` would give something."""
        return self._next(self._todo) is not None

    def outcome_of(self, outcome: Outcome) -> list[FileRecord]:
        """Return the files with this outcome."""
        return [file for file in self.files if file.outcome is outcome]

    # Reading

    def take_read(self, most_items: int = BATCH_ITEMS) -> Read | None:
        """Take the next pieces to read: as many as a batch holds, and at least one."""
        pieces: list[Piece] = []
        room = self._batch_bytes
        while len(pieces) < min(most_items, BATCH_ITEMS) and (piece := self._next(self._todo)) is not None:
            cost = -(-piece.length // _PAGE) * _PAGE
            if pieces and cost > room:
                break
            room -= cost
            pieces.append(self._todo.popleft())
        if not pieces:
            return None
        batch = next(self._batches)
        self._reading[batch] = tuple(pieces)
        self.pieces_taken += len(pieces)
        return Read(batch, tuple(pieces))

    def small_first(self) -> None:
        """Bring the pieces that fit into a batch to the front of what is to be read."""
        self._todo = deque(sorted(self._todo, key=lambda piece: piece.length > self._batch_bytes))

    def shared(self, answer: Shared) -> None:
        """Take the reader's answer."""
        pieces = self._reading.pop(answer.batch)
        self.totals.leases += len(pieces)
        if answer.waited is not None:
            self.totals.waits += 1
            self.totals.waited_seconds += answer.waited
        if answer.handles:
            self._ready.append(answer.handles)
        for piece, failure in answer.failures.items():
            self._failed(piece, failure)

    # Digesting

    def take_digest(self, *, hold: bool = False) -> Digest | None:
        """Take the next blocks to digest; those to hold are the batch with the most, so that it is always the same."""
        if not self._ready:
            return None
        batch = next(self._batches)
        handles = max(self._ready, key=lambda each: (len(each), -min(each))) if hold else self._ready[0]
        self._ready.remove(handles)
        self._digesting[batch] = handles
        return Digest(batch, self._digesting[batch], hold=hold)

    def digested(self, answer: Digests) -> None:
        """Take a worker's answer."""
        del self._digesting[answer.batch]
        for piece, digest in answer.digests.items():
            if (live := self._live.get(piece)) is not None:
                live.digest = digest
                self.totals.bytes_through_heap += live.piece.length
                self._compare(live)

    def blocks_of(self, batch: BatchId) -> int:
        """Return how many blocks a batch that is being digested has."""
        return len(self._digesting[batch])

    def stale(self, batch: BatchId) -> None:
        """Have the pieces of a batch read again: a worker that died had opened it."""
        again = [self._live[piece] for piece in self._digesting.pop(batch) if piece in self._live]
        self.totals.read_again += len(again)
        for live in again:
            live.attempts += 1
            if live.attempts > _ATTEMPTS:
                self._end(live.file, Outcome.WRONG, f"its handle was stale {_ATTEMPTS} times")
        self._todo.extendleft(live.piece for live in reversed(again) if live.piece.id in self._live)

    # Checking

    def take_check(self) -> tuple[BatchId, tuple[Piece, ...]] | None:
        """Take the next pieces to digest directly."""
        pieces: list[Piece] = []
        while len(pieces) < BATCH_ITEMS and self._next(self._to_check) is not None:
            pieces.append(self._to_check.popleft())
        if not pieces:
            return None
        batch = next(self._batches)
        self._checking[batch] = tuple(pieces)
        return batch, tuple(pieces)

    def checked(self, answer: Checked) -> None:
        """Take the checker's answer."""
        del self._checking[answer.batch]
        for piece, digest in answer.digests.items():
            if (live := self._live.get(piece)) is not None:
                live.direct = digest
                self._compare(live)
        for piece, failure in answer.failures.items():
            self._failed(piece, failure)

    # Children that die, files that change

    def lost(self, batch: BatchId) -> None:
        """Take back what a child that died had in flight. Handles it had to open may still stand."""
        if (pieces := self._reading.pop(batch, None)) is not None:
            self._todo.extendleft(reversed(pieces))
        elif (handles := self._digesting.pop(batch, None)) is not None:
            self._ready.appendleft(handles)
        else:
            self._to_check.extendleft(reversed(self._checking.pop(batch)))

    def take_changed(self) -> list[FileRecord]:
        """Take the files whose stamp has to be looked at again, for `plan_again` or `skip`."""
        changed, self._changed = self._changed, []
        return changed

    def plan_again(self, file: FileRecord, stamp: Stamp) -> None:
        """Start over with a file that has changed, unless it has too often."""
        if file.attempts >= _ATTEMPTS:
            self._end(file, Outcome.SKIPPED, f"{file.reason}, {_ATTEMPTS} times in a row")
            return
        file.stamp = stamp
        self._plan(file)

    def skip(self, file: FileRecord, reason: str) -> None:
        """Give a file up, and say why."""
        self._end(file, Outcome.SKIPPED, reason)

    # Inside

    def _plan(self, file: FileRecord) -> None:
        file.attempts += 1
        pieces = [
            Piece(next(self._ids), file.path, offset, length, file.stamp)
            for offset, length in stretches(file.stamp.size, self.heap_bytes)
        ]
        file.pieces = len(pieces)
        file.open_pieces = {piece.id for piece in pieces}
        self._live.update((piece.id, _Live(piece, file)) for piece in pieces)
        self._to_check.extend(pieces)
        if file.stamp.size:
            self._todo.extend(pieces)
        else:  # no block has 0 bytes: the checker has to find the digest of nothing
            self._live[pieces[0].id].digest = _NOTHING

    def _compare(self, live: _Live) -> None:
        if live.digest is None or live.direct is None:
            return
        if live.digest != live.direct:
            reason = f"through the heap {live.digest.hex()}, directly {live.direct.hex()}"
            where = f" for {live.piece.length} bytes from {live.piece.offset} on" if live.file.pieces > 1 else ""
            self._end(live.file, Outcome.WRONG, reason + where)
            return
        del self._live[live.piece.id]
        live.file.open_pieces.discard(live.piece.id)
        if not live.file.open_pieces:
            self._end(live.file, Outcome.MATCHED)

    def _failed(self, piece: PieceId, failure: Failure) -> None:
        if (live := self._live.get(piece)) is None:
            return
        if failure.changed:
            self._void(live.file)
            live.file.reason = failure.reason
            self._changed.append(live.file)
        else:
            self._end(live.file, Outcome.SKIPPED, failure.reason)

    def _end(self, file: FileRecord, outcome: Outcome, reason: str = "") -> None:
        self._void(file)
        file.outcome, file.reason = outcome, reason
        self.files_done += 1

    def _void(self, file: FileRecord) -> None:
        # Where they are queued, they are passed over when their turn comes.
        for piece in file.open_pieces:
            self._live.pop(piece, None)
        file.open_pieces = set()

    def _next(self, queue: deque[Piece]) -> Piece | None:
        """Return the piece at the front, the void ones dropped."""
        while queue and queue[0].id not in self._live:
            queue.popleft()
        return queue[0] if queue else None


def stretches(size: int, heap_bytes: int) -> list[tuple[int, int]]:
    """Return the (offset, length) of each piece of a file: one, unless it is larger than the heap."""
    if size <= heap_bytes:
        return [(0, size)]
    step = max(heap_bytes // _PIECES_IN_HEAP, _PAGE)
    return [(offset, min(step, size - offset)) for offset in range(0, size, step)]
