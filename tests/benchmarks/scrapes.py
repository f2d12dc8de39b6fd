"""How long a scrape holds up a daemon's event loop, with many leases in its books.

    python tests/benchmarks/scrapes.py [--leases 100000] [--scrapes 200] [--alone]

The loop of a daemon (uvloop, a real engine, registry and metrics server; a hundred sessions, each with a lane) is
pinged: another process writes the time to a socket, two thousand times a second, and the loop looks how long ago that
was when it gets to read it. That is how long any client's request would have waited. A third process scrapes, twenty
times a second. Three lines are printed:

    another is scraped     an empty daemon in a fourth process: what the same work costs by being on the machine
    scraped                this daemon
    Python's own interval  this daemon, while threads take turns as Python has it: what SWITCH_SECONDS is for

Then for how long at a time a snapshot holds the loop, by number of leases, as the daemon itself says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import uvloop
from tests.fixtures.engines import MIB, UID, make_heap
from tests.fixtures.registries import full_registry

from slabd_server.core.engine import Engine
from slabd_server.core.records import Access, LeaseItem, Peer, SessionKey
from slabd_server.metrics import SWITCH_SECONDS
from slabd_server.web import MetricsServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PYTHONS_OWN_SECONDS = 0.005
SCRAPER = """
import sys, time, urllib.request
asked = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}  # as Prometheus does
for _ in range(int(sys.argv[2])):
    urllib.request.urlopen(urllib.request.Request(f"http://{sys.argv[1]}/metrics", headers=asked)).read()
    time.sleep(0.05)
"""
PINGER = """
import socket, struct, time
out = socket.socket(fileno=0)
while True:
    out.send(struct.pack("d", time.monotonic()))
    time.sleep(0.0005)
"""


def filled(leases: int) -> Engine:
    """Return an engine whose hundred sessions hold so many leases of two sizes."""
    engine = Engine([make_heap(size=1024 * MIB)])
    for number in range(100):
        secret = number.to_bytes(16, "little")
        session = engine.open_session(
            "", name="", access=Access.READ_WRITE, peer=Peer(pid=number, uid=UID), attached=True, secret=secret, now=0.0
        )
        left = leases // 100
        while left:
            batch = min(left, 1000)
            engine.lease(SessionKey(session.id, secret), [LeaseItem(64 if left % 2 else 5000)] * batch, now=0.0)
            left -= batch
    return engine


@contextlib.contextmanager
def pinged(waits: list[float]) -> Iterator[None]:
    """Have the loop pinged, and note how long each ping waited, in milliseconds."""
    loop = asyncio.get_running_loop()
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    mine.setblocking(False)

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                (sent,) = struct.unpack("d", mine.recv(8))
                waits.append((time.monotonic() - sent) * 1e3)

    loop.add_reader(mine, read)
    with mine, other, subprocess.Popen([sys.executable, "-c", PINGER], stdin=other.fileno()) as pinger:
        yield
        pinger.kill()
        loop.remove_reader(mine)


async def waits_for(address: str, scrapes: int) -> list[float]:
    """Return how long pings waited while a process scraped that address."""
    waits: list[float] = []
    with pinged(waits):
        scraper = await asyncio.create_subprocess_exec(sys.executable, "-c", SCRAPER, address, str(scrapes))
        assert await scraper.wait() == 0
    return waits


@contextlib.contextmanager
def another() -> Iterator[str]:
    """Start an empty daemon's metrics in another process; return its address."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        yield other.stdout.readline().strip()
        other.kill()


async def serve() -> None:
    """Be that other process."""
    with full_registry() as (registry, _):
        print(MetricsServer(registry, "127.0.0.1", 0).address, flush=True)
        await asyncio.Event().wait()


def line(what: str, waits: Sequence[float]) -> str:
    """Say how long the longest waits were."""
    ordered = sorted(waits)
    over = sum(1 for each in ordered if each >= 1)
    at = {share: ordered[int(len(ordered) * share)] for share in (0.5, 0.99, 0.999)}
    return (
        f"{what:22} {len(ordered):>7,} pings   median {at[0.5]:.3f}   p99 {at[0.99]:.3f}   p99.9 {at[0.999]:6.3f}   "
        f"longest {ordered[-1]:6.3f} ms   {over} of 1 ms or more"
    )


async def measure(leases: int, scrapes: int) -> None:
    """Print the waits for a loop with so many leases in its books."""
    engine = filled(leases)
    gc.collect()
    with another() as elsewhere, full_registry(engine) as (registry, _):
        server = MetricsServer(registry, "127.0.0.1", 0)
        for what, address, interval in (
            ("another is scraped", elsewhere, SWITCH_SECONDS),
            ("scraped", server.address, SWITCH_SECONDS),
            ("Python's own interval", server.address, PYTHONS_OWN_SECONDS),
        ):
            sys.setswitchinterval(interval)
            print(line(what, await waits_for(address, scrapes)))
        await server.close()


async def snapshots(leases: int) -> str:
    """Say how long the snapshot takes, which is the part of a scrape that is on the loop."""
    times = []
    with full_registry(filled(leases)) as (registry, _):
        for _ in range(300):
            taken = await asyncio.to_thread(registry.get_sample_value, "slabd_collector_duration_seconds")
            assert taken is not None
            times.append(taken * 1e6)
    return f"{leases:>9,} leases   snapshot {statistics.median(times):6.1f} us, longest {max(times):6.1f} us"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leases", type=int, default=100_000)
    parser.add_argument("--scrapes", type=int, default=200)
    parser.add_argument("--alone", action="store_true", help="as root: keep other work of the machine out of the way")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        # For this process and all that it starts. Of equals, none is stopped for another's sake.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    if given.serve:
        asyncio.run(serve())
    with contextlib.closing(uvloop.new_event_loop()) as loop:
        loop.run_until_complete(measure(given.leases, given.scrapes))
        for leases in (1_000, given.leases):
            print(loop.run_until_complete(snapshots(leases)))


if __name__ == "__main__":
    main()
