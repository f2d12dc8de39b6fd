"""One session's lane, as the daemon keeps it: its memory, its eventfds, and what is going on with it."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slabd_proto.lane import Completion

if TYPE_CHECKING:
    from slabd_proto.lane import Answer
    from slabd_server.core.records import Block, BlockRef, SessionId
    from slabd_server.lane_memory import LaneSegment


@dataclass(slots=True)
class Lane:
    """One session's lane. `quiet` counts ticks without anything to read; `broken` says that its client has lied.

    `reading` while it is being read, which it is not a second time meanwhile; `blocked` when what was posted could not
    all be read the last time; `patience` for opens that nobody seems to have promised. `granted` are the blocks whose
    completions the client may not have taken yet, `waiting` their names. `hits` and `misses` are as many as have been
    counted, and when.
    """

    session: SessionId
    heap: str
    segment: LaneSegment
    doorbell: int
    bell: int
    quiet: int = 0
    broken: bool = False
    reading: bool = False
    blocked: bool = False
    patience: int = 0
    granted: deque[tuple[int, BlockRef, int]] = field(default_factory=deque)
    waiting: set[BlockRef] = field(default_factory=set)
    hits: int = 0
    misses: int = 0
    counted_at: float = 0.0

    def untaken(self) -> list[tuple[int, BlockRef, int]]:
        """Return the completions that the client has not taken from the ring: number, block and size."""
        self.forget_taken()
        return list(self.granted)

    def is_untaken(self, ref: BlockRef) -> bool:
        """Whether the client may not have taken a block's completion from the ring."""
        self.forget_taken()
        return ref in self.waiting

    def forget_taken(self) -> None:
        """Keep in mind only what the client has not taken."""
        taken = self.segment.completions_taken
        while self.granted and self.granted[0][0] <= taken:
            self.waiting.discard(self.granted.popleft()[1])

    def close(self) -> None:
        """Give it up."""
        self.segment.close()
        os.close(self.doorbell)
        os.close(self.bell)

    def grant(self, answer: Answer, block: Block, *, request: int, left: int = 0, min_size: int = 0) -> None:
        """Tell the client of a block that it has got. The caller knows that there is room for that."""
        entry = Completion(answer, request, left, *block.ref, offset=block.offset, size=block.size, min_size=min_size)
        self.segment.complete(entry)
        self.granted.append((self.segment.completed, block.ref, block.size))
        self.waiting.add(block.ref)

    def cached(self, claimed: list[tuple[int, int]] | None = None) -> tuple[int, int]:
        """Return how many bytes, in how many blocks, a client does not use: what it says, and what it has not taken."""
        cached_bytes, cached_blocks = self.segment.cached(claimed)
        untaken = self.untaken()
        return cached_bytes + sum(size for _, _, size in untaken), cached_blocks + len(untaken)

    def ring(self) -> None:
        """Wake the client."""
        with contextlib.suppress(BlockingIOError):  # it has not read the last 2**64 - 2 of them
            os.eventfd_write(self.bell, 1)
