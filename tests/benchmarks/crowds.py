"""What a crowd costs the others: very many sessions, and sessions with very many blocks. The core alone, no I/O.

    python tests/benchmarks/crowds.py

For each size it prints the median time of a request that is refused (and told who holds the memory) and of a lease with
its release, with so many sessions; then, for a session that ends with so many blocks, how long all of it took and the
longest single step, which is how long anybody else had to wait.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fixtures.engines import MIB, UID, make_heap

from slabd_server.core.engine import Engine
from slabd_server.core.errors import OutOfMemory
from slabd_server.core.records import Access, Leased, LeaseItem, Peer, SessionKey

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 300


def open_session(engine: Engine, number: int) -> SessionKey:
    """Open an attached session."""
    secret = number.to_bytes(16, "little")
    session = engine.open_session(
        "",
        name=f"client {number}",
        access=Access.READ_WRITE,
        peer=Peer(pid=number, uid=UID),
        attached=True,
        secret=secret,
        now=0.0,
    )
    return SessionKey(session.id, secret)


def lease(engine: Engine, key: SessionKey, *sizes: int) -> Leased:
    """Lease blocks without waiting."""
    outcome = engine.lease(key, [LeaseItem(size) for size in sizes], now=0.0)
    assert isinstance(outcome, Leased)
    return outcome


def median_us(action: Callable[[], object]) -> float:
    """Return the median time of an action in microseconds."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def many_sessions(count: int) -> str:
    """Measure a refusal, and a lease with its release, among `count` sessions that all hold something."""
    engine = Engine([make_heap(size=256 * MIB)], session_limit=count)
    keys = [open_session(engine, number + 1) for number in range(count)]
    for number, key in enumerate(keys):
        lease(engine, key, 64 + number)

    def refuse() -> None:
        with contextlib.suppress(OutOfMemory):
            lease(engine, keys[0], 256 * MIB)

    def cycle() -> None:
        refs = [block.ref for block in lease(engine, keys[0], 100).blocks]
        engine.release(keys[0], refs, now=0.0)

    return f"{count:>9,} sessions   refusal {median_us(refuse):7.1f} us   lease + release {median_us(cycle):7.1f} us"


def many_blocks(count: int) -> str:
    """Measure the end of a session with `count` blocks: as a whole, and its longest step."""
    engine = Engine([make_heap(size=256 * MIB)])
    key = open_session(engine, 1)
    for start in range(0, count, 1000):
        lease(engine, key, *[64] * min(1000, count - start))
    gc.collect()
    steps = []
    began = time.perf_counter()
    engine.process_gone(key.id, now=0.0)
    engine.hang_up(key.id, now=0.0)
    steps.append(time.perf_counter() - began)
    while engine.next_deadline(now=0.0) is not None:
        began = time.perf_counter()
        engine.tick(now=0.0)
        steps.append(time.perf_counter() - began)
    assert not len(engine.sessions)
    return (
        f"{count:>9,} blocks     end {sum(steps) * 1e3:9.1f} ms in {len(steps):>4} steps   "
        f"longest step {max(steps) * 1e3:6.1f} ms"
    )


def main() -> None:
    """Print one line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for count in (10, 1_000, 10_000):
        print(many_sessions(count))
    for count in (100, 10_000, 200_000):
        print(many_blocks(count))


if __name__ == "__main__":
    main()
