"""What a buffer costs a Python client: lease, write, release, beside what people use today, in one run.

Every peer gets a buffer of the size, writes all of it with one copy from ordinary memory, and gives it back:

    slabd                 pool.lease, view[:] = data, release: over gRPC, to a private daemon with a prefaulted heap
    shared_memory         SharedMemory(create=True), buf[:] = data, close, unlink
    anonymous mmap        mmap(-1), write, close: fresh memory without a name
    memcpy, warm          the copy alone, into memory that is used again and again: the floor

The peers take turns, so that a slow moment of the machine hits all of them. Medians, and the ratio to the floor.

    python tests/benchmarks/client.py [--quick]
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import time
from multiprocessing import shared_memory
from typing import TYPE_CHECKING

import slabd

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (64, 64 << 10, 1 << 20, 16 << 20)


def peers(pool: slabd.Pool, data: bytes, warm: bytearray) -> dict[str, Callable[[], None]]:
    """Return one round of each peer."""
    size = len(data)

    def lease() -> None:
        with pool.lease(size) as buffer:
            buffer.view[:] = data

    def named() -> None:
        segment = shared_memory.SharedMemory(create=True, size=size)
        assert segment.buf is not None
        segment.buf[:size] = data
        segment.close()
        segment.unlink()

    def anonymous() -> None:
        with mmap.mmap(-1, size) as memory:
            memory[:size] = data

    def copy() -> None:
        warm[:size] = data

    return {"slabd": lease, "shared_memory": named, "anonymous mmap": anonymous, "memcpy, warm": copy}


def median_microseconds(rounds: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Return each peer's median, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in rounds}
    for turn in range(repeats + repeats // 5):
        for name, run in rounds.items():
            began = time.perf_counter()
            run()
            if turn >= repeats // 5:
                times[name].append((time.perf_counter() - began) * 1e6)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    repeats = 50 if parser.parse_args().quick else 500
    warm = bytearray(max(SIZES))
    print(f"{'bytes':>10}  {'peer':<16}{'median us':>12}{'x memcpy':>10}")
    with slabd.start(heap_size="64MiB", prefault=True) as daemon, daemon.connect() as pool:
        for size in SIZES:
            medians = median_microseconds(peers(pool, b"x" * size, warm), repeats)
            for name, median in medians.items():
                print(f"{size:>10}  {name:<16}{median:>12.1f}{median / medians['memcpy, warm']:>10.1f}")


if __name__ == "__main__":
    main()
