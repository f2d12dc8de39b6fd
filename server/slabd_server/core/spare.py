"""The spare places that a dictionary keeps after what was in it has gone.

Owns the decision when a dictionary is worth making anew. In CPython it never shrinks, and one in which items come and
go grows to between three and six times as many places as it has items, because those that went take a place too until
the next time it grows. Promises an amortised constant cost: one that was just made anew has to see a fifth of its
items replaced or gone before it can be too large again.

An item costs, at 20 bytes a place: 30 to 60 bytes in a new dictionary, 60 to 120 in a grown one, any number in one that
has shrunk.
"""

from __future__ import annotations

import sys
from typing import Final, TypeVar

TIGHT: Final = 72  # bytes an item, for what there is most of: not even every grown dictionary keeps to it
LOOSE: Final = 128  # bytes an item: only what has shrunk exceeds it
SMALL: Final = 64 << 10

K = TypeVar("K")
V = TypeVar("V")


def without_spare(table: dict[K, V], limit: int, slack: int = SMALL) -> dict[K, V]:
    """Return the dictionary, or an equal one in the same order when it has more than `limit` bytes an item.

    So many bytes that it has on top, whatever its items, are not worth the trouble.
    """
    if sys.getsizeof(table) <= limit * len(table) + slack:
        return table
    return dict(table)  # not table.copy(), which keeps the spare places unless a third of the others are dead
