"""The narrow interface through which the ledger reaches its memory, and the store that tests use.

Everything the daemon must remember over a restart goes through `Store.write`, one whole record at a time, so a test can
stop after the k-th write for every k.
"""

from __future__ import annotations

from typing import Final, Protocol

RECORD_BYTES: Final = 64


class Store(Protocol):
    """An array of records of RECORD_BYTES bytes each, all zero at first."""

    @property
    def capacity(self) -> int:
        """How many records there is room for."""
        ...

    def grow(self, capacity: int) -> None:
        """Make room for at least `capacity` records; afterwards no write can run out of memory.

        Raises:
            LedgerFull: there is no memory for it; nothing has changed.
        """
        ...

    def read(self, index: int) -> bytes:
        """Return the record at `index`, below `capacity`."""
        ...

    def write(self, index: int, record: bytes) -> None:
        """Replace the record at `index`, below `capacity`, by `record` of RECORD_BYTES bytes. Never fails."""
        ...


class MemoryStore:
    """A store in ordinary memory. It counts its writes and forgets everything with the process."""

    def __init__(self, capacity: int = 64) -> None:
        self._data = bytearray(capacity * RECORD_BYTES)
        self.writes = 0

    @property
    def capacity(self) -> int:
        """How many records there is room for."""
        return len(self._data) // RECORD_BYTES

    def grow(self, capacity: int) -> None:
        """Make room for at least `capacity` records."""
        self._data.extend(bytes(max(0, capacity * RECORD_BYTES - len(self._data))))

    def read(self, index: int) -> bytes:
        """Return the record at `index`."""
        return bytes(self._data[index * RECORD_BYTES : (index + 1) * RECORD_BYTES])

    def write(self, index: int, record: bytes) -> None:
        """Replace the record at `index`."""
        self._data[index * RECORD_BYTES : (index + 1) * RECORD_BYTES] = record
        self.writes += 1
