"""What a first write into a leased block costs, with spare blocks mapped in beforehand and without.

    python tests/benchmarks/prefault.py [--frames 48]

In turns, in one run: a pool that maps its spare blocks in in the background (the default), one that does not, and
floors: a copy into memory of the heap that this process has touched before, and into memory that it has not. Each turn
is a new session, which leases frames of 1 MiB with a pause in between, as a camera would, and keeps them. Printed are
medians in microseconds of a whole first write, and the ratio of each to the warm copy.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import time

import slabd

FRAME = 1 << 20
REPEATS = 5
PAUSE_SECONDS = 0.003


def through(daemon: slabd.PrivateDaemon, data: bytes, frames: int, *, prefault: bool) -> list[float]:
    """Return how long each first write into a frame took."""
    times, held = [], []
    with daemon.connect(prefault=prefault) as pool:
        for _ in range(frames):
            lease = pool.lease(FRAME)
            began = time.perf_counter()
            lease.view[:] = data
            times.append(time.perf_counter() - began)
            held.append(lease)
            time.sleep(PAUSE_SECONDS)
        pool.release_many(held)
    return times


def bare(data: bytes, frames: int, *, warm: bool) -> list[float]:
    """Return how long each copy into allocated shared memory took, touched by this process before or not."""
    times = []
    fd = os.memfd_create("prefault")
    try:
        os.posix_fallocate(fd, 0, frames * FRAME)
        with mmap.mmap(fd, frames * FRAME) as memory:
            for at in range(0, frames * FRAME, FRAME):
                if warm:
                    memory[at : at + FRAME] = data
                began = time.perf_counter()
                memory[at : at + FRAME] = data
                times.append(time.perf_counter() - began)
    finally:
        os.close(fd)
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=48, help="how many frames a turn has (default: %(default)s)")
    frames = parser.parse_args().frames
    data = os.urandom(FRAME)
    found: dict[str, list[float]] = {}
    with slabd.start(4 * frames * FRAME) as daemon:
        for _ in range(REPEATS):
            for what, times in (
                ("copy, warm", bare(data, frames, warm=True)),
                ("copy, cold", bare(data, frames, warm=False)),
                ("slabd, mapped in beforehand", through(daemon, data, frames, prefault=True)),
                ("slabd, prefault=False", through(daemon, data, frames, prefault=False)),
            ):
                found.setdefault(what, []).append(statistics.median(times) * 1e6)
    warm = statistics.median(found["copy, warm"])
    for what, medians in found.items():
        spread = f"{min(medians):.0f} to {max(medians):.0f}"
        print(f"{what:30} {statistics.median(medians):8.0f} us  ({spread})  {statistics.median(medians) / warm:5.2f}")


if __name__ == "__main__":
    main()
