"""The narrow interface through which the core reaches the pages of a heap: the only place where it touches memory.

It is used when memory is given back to the system, taken from it again, and cleared between users. Offsets and sizes
are in bytes; those of `commit` and `give_back` are whole pages.
"""

from __future__ import annotations

from typing import Protocol


class Memory(Protocol):
    """The pages of one heap."""

    def afford(self, offset: int, size: int) -> None:
        """Look whether there is memory for these pages, as far as that can be known without taking it.

        Raises:
            OutOfMemory: there is not.
        """
        ...

    def commit(self, offset: int, size: int) -> None:
        """Make sure that these pages exist, so that nobody who touches them can fail; those that do keep their bytes.

        Raises:
            OutOfMemory: the system has no memory for them; what they held is as it was.
        """
        ...

    def give_back(self, offset: int, size: int) -> None:
        """Give these pages back to the system. Afterwards `commit` must come before any use, and finds zeros."""
        ...

    def clear(self, offset: int, size: int) -> None:
        """Set these bytes to zero."""
        ...


class FixedMemory:
    """Pages that always exist and are never cleared: for heaps that give nothing back, and for tests."""

    def afford(self, offset: int, size: int) -> None:
        """Do nothing."""

    def commit(self, offset: int, size: int) -> None:
        """Do nothing."""

    def give_back(self, offset: int, size: int) -> None:
        """Do nothing."""

    def clear(self, offset: int, size: int) -> None:
        """Do nothing."""
