"""The gates: what tells clients, without a question, whether a block may still be opened by its handle.

There is one gate for each ledger slot. It is open from the grant of a block on; shut while no handle promises an open
of it; closed when the block has lost its last keeper. A slot that is re-issued has a gate of another generation.

Whoever opens a block without asking the daemon looks at its gate before it says so, when it has to be open, and after,
when it must not be closed. So a closed gate does not yet mean that nobody is coming: see `books`, CLOSING.
"""

from __future__ import annotations

from typing import Protocol


class Gates(Protocol):
    """The gates of one heap. No method fails."""

    @property
    def watched(self) -> bool:
        """Whether there is anybody who opens blocks without asking."""
        ...

    def open(self, slot: int, generation: int) -> None:
        """Let the block be opened that has this slot and generation."""
        ...

    def shut(self, slot: int, generation: int) -> None:
        """Let it be opened no more; who has been let in stays."""
        ...

    def close(self, slot: int, generation: int) -> None:
        """Let nobody in any more, nor stay who is just coming."""
        ...


class NoGates:
    """The gates of a heap whose clients ask each time."""

    watched = False

    def open(self, slot: int, generation: int) -> None:
        """Do nothing."""

    def shut(self, slot: int, generation: int) -> None:
        """Do nothing."""

    def close(self, slot: int, generation: int) -> None:
        """Do nothing."""
