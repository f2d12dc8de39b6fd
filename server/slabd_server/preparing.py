"""Preparing blocks in a thread of their own, while the loop serves everybody else.

Owns how the work is cut: after each piece it looks whether the daemon stops. Promises to touch nothing but what the
preparation names, and to be over soon when it is told to stop. Must not know of sessions or books: the core decides,
`dispatch` calls, and tells the core what came of it.
"""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import OutOfMemory
from slabd_server.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slabd_server.core.memory import Memory
    from slabd_server.core.records import Preparation, Range

_PIECE: Final = 16 * MIB
_THREADS: Final = 2

log = logging.getLogger(__name__)


class Workers:
    """The threads that prepare blocks; none before there is something to do."""

    def __init__(self) -> None:
        self.pool: Final = ThreadPoolExecutor(_THREADS, thread_name_prefix="slabd-prepare")
        self._stopping = False

    def prepare(self, memory: Memory, preparation: Preparation) -> OutOfMemory | None:
        """Let pages exist and clear bytes, in this order; return why that is not possible, if it is not."""
        try:
            for offset, size in self._pieces(preparation.commits):
                memory.commit(offset, size)
            for offset, size in self._pieces(preparation.clears):
                memory.clear(offset, size)
        except OutOfMemory as error:
            return error
        except Exception as error:
            log.exception("blocks of heap %s could not be prepared", preparation.heap)
            return OutOfMemory(f"the blocks could not be prepared: {error}")
        return OutOfMemory("the daemon stops") if self._stopping else None

    def _pieces(self, ranges: Iterable[Range]) -> Iterator[tuple[int, int]]:
        for offset, size in ranges:
            for start in range(offset, offset + size, _PIECE):
                if self._stopping:
                    return
                yield start, min(_PIECE, offset + size - start)

    def stop(self) -> None:
        """Wait for the pieces under way; nothing is begun any more. The memory may go afterwards."""
        self._stopping = True
        with contextlib.suppress(RuntimeError):
            self.pool.shutdown(wait=True, cancel_futures=True)
