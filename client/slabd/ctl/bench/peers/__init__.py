"""Who is measured: for each figure and peer of the catalogue, how its work is opened in a case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slabd.ctl.bench.model import OURS
from slabd.ctl.bench.peers import echo, iceoryx, memory, ours
from slabd.ctl.terminal import printable

if TYPE_CHECKING:
    from slabd.ctl.bench.rounds import Opening

_HOW_TO_GET: Final = {"iceoryx2": "not installed: pip install 'slabd[bench]'"}

OPENINGS: Final[dict[tuple[str, str], Opening]] = {
    ("untouched", OURS): ours.untouched,
    ("untouched", "shared_memory"): memory.untouched,
    ("untouched", "manager"): memory.managed,
    ("untouched", "iceoryx2"): iceoryx.untouched,
    ("untouched", "list pool"): memory.list_pool,
    ("miss", OURS): ours.missed,
    ("miss", "by gRPC"): ours.over_grpc,
    ("miss", "bare echo"): echo.calls,
    ("miss", "socket echo"): echo.through_a_socket,
    ("grpc", OURS): ours.over_grpc,
    ("grpc", "bare echo"): echo.calls,
    ("write", OURS): ours.written,
    ("write", "shared_memory"): memory.written,
    ("write", "iceoryx2"): iceoryx.written,
    ("write", "memcpy, cold"): memory.cold_copy,
    ("write", "memcpy, warm"): memory.warm_copy,
    ("clients", OURS): ours.client,
    ("clients", "shared_memory"): memory.client,
    ("clients", "iceoryx2"): iceoryx.client,
    ("calls", OURS): ours.client,
    ("idle", OURS): ours.client,
    ("live", OURS): ours.among_live,
}


def reason_of(error: Exception) -> str:
    """Return why a peer cannot take part, in one line; for a missing package, how to get it."""
    if isinstance(error, ModuleNotFoundError) and error.name in _HOW_TO_GET:
        return _HOW_TO_GET[error.name]
    return printable(" ".join(f"{type(error).__name__}: {error}".split()))
