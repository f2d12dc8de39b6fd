"""What a scrape is made from: copies of everything, taken at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slabd_server.core.figures import HeapFigures
    from slabd_server.core.histogram import Observed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment. `seconds` is how long taking it held the event loop."""

    heaps: tuple[HeapFigures, ...]
    lag: Observed
    serving: bool
    seconds: float


def buckets(observed: Observed) -> list[tuple[str, float]]:
    """Return a histogram's buckets as the client library wants them."""
    return [("+Inf" if edge == float("inf") else str(edge), float(count)) for edge, count in observed.cumulative]
