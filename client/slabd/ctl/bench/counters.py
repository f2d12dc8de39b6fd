"""The daemon's own count of the gRPC calls it was asked: grpc_server_started_total of its Prometheus metrics."""

from __future__ import annotations

import http.client
import re
import urllib.request
from typing import Final

_SECONDS: Final = 10.0
_LINE: Final = re.compile(r'grpc_server_started_total\{[^}]*grpc_service="slabd\.v1\.PoolService"[^}]*\} (\S+)')


def calls_made(metrics_address: str) -> int:
    """Return how many calls of PoolService there have been. Looking is none: metrics have a server of their own.

    Raises:
        OSError: the daemon does not answer.
    """
    try:
        with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=_SECONDS) as answer:  # http
            return parse(answer.read().decode())
    except http.client.HTTPException as error:  # it has ended in the middle of its answer
        raise ConnectionError(f"{metrics_address}: {error!r}") from error


def parse(text: str) -> int:
    """Return the sum over all methods of PoolService in a scrape."""
    return round(sum(float(value) for value in _LINE.findall(text)))
