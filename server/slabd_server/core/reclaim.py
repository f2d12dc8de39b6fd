"""The port through which the core reaches what has not arrived yet: posts in lanes, and blocks in clients' caches.

`Leasing` asks before it calls a heap full. Whoever implements it calls back into `Posts` and `Books`; at that moment
nothing of the request has been done.
"""

from __future__ import annotations

from typing import Protocol


class Reclaimer(Protocol):
    """Gets memory back that clients do not use."""

    def reclaim(self, heap: str, wanted_bytes: int) -> bool:
        """Do what clients have posted, and recall cached blocks of about this size in all, or all there are if need be.

        Return whether anything became free; then it is worth asking again if that was not enough.
        """
        ...


class NoReclaimer:
    """For an engine whose clients ask for everything."""

    def reclaim(self, heap: str, wanted_bytes: int) -> bool:  # noqa: ARG002 - the port's signature
        """Say that there is nothing."""
        return False
