"""Clearing blocks, so that nobody reads what somebody else left in them.

A block's bytes stay as they were when it is given back. When everybody who ever leased from a heap may see everything
in it anyway, clearing would only cost time; so a block is cleared only once there has been somebody else: another user
("users"), or another session ("sessions"). Who had these very bytes last is not remembered: from the first stranger on,
every block is cleared. Reading the whole mapping is not prevented by this, only finding leftovers in one's own block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from slabd_server.core.memory import Memory
    from slabd_server.core.records import SessionId

Clear = Literal["off", "users", "sessions"]


class Cleaner:
    """Clears blocks of one heap before they are granted, when that is needed."""

    def __init__(self, memory: Memory, clear: Clear) -> None:
        self._memory: Final = memory
        self._clear: Final = clear
        self._first: object = None
        self._shared = False

    def prepare(self, offset: int, size: int, *, session: SessionId, uid: int | None) -> None:
        """Clear a block that is about to be granted. `uid` is None for sessions over gRPC alone."""
        if self._clear == "off":
            return
        if not self._shared:
            who = (uid,) if self._clear == "users" else (uid, session)
            if self._first is None:
                self._first = who
            self._shared = who != self._first
        if self._shared:
            self._memory.clear(offset, size)
