"""Something for dashboards and alerts to show: a producer, consumers, and a hog. Made-up work, honest leases.

    python load.py produce [--frames-a-second 50]   leases buffers of many sizes, fills them, hands them to consumers
    python load.py consume                          opens what the producer hands over, reads it, now and then dies
    python load.py fill 0.97                        holds so much of the heap until it is stopped

Producer and consumers meet at a socket (--meet), over which the handles go, 48 bytes each; the buffers stay in place.
All find the daemon as every client does: by SLABD_ADDRESS, or where it is by default.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import slabd

if TYPE_CHECKING:
    from collections.abc import Iterator

HANDLE_BYTES = 48
SIZES = (100, 700, 3000, 4096, 9000, 65_536, 640 * 480, 1_000_000, 1920 * 1080 * 3 // 2)
KEPT = 40
READ_BYTES = PAGE_BYTES = 4096


def produce(arguments: argparse.Namespace) -> None:
    """Lease, fill, share, send; keep some for a while, so that the heap is never empty and never the same."""
    place = random.Random(1)  # noqa: S311 - no secret
    with slabd.connect(name="producer") as pool, listening(arguments.meet) as door:
        consumers: list[socket.socket] = []
        kept: list[slabd.Lease] = []
        while True:
            admit(door, consumers)
            try:
                lease = pool.lease(place.choice(SIZES), timeout=1.0, label="frame")
            except slabd.OutOfMemory:
                release_one(kept, place)
                continue
            lease.view[:HANDLE_BYTES] = bytes(HANDLE_BYTES)
            send(lease, consumers, place)
            kept.append(lease)
            while len(kept) > KEPT + KEPT * abs(time.time() % 120 - 60) / 60:
                release_one(kept, place)
            time.sleep(place.expovariate(arguments.frames_a_second))


def release_one(kept: list[slabd.Lease], place: random.Random) -> None:
    """Give one of the leases back, whichever."""
    if kept:
        kept.pop(place.randrange(len(kept))).release()


def send(lease: slabd.Lease, consumers: list[socket.socket], place: random.Random) -> None:
    """Hand a buffer to one consumer, if there is any. One that is gone leaves a handle behind, which expires."""
    if not consumers:
        return
    consumer = place.choice(consumers)
    handle = lease.share(ttl=20)
    try:
        consumer.sendall(bytes(handle))
    except OSError:
        consumers.remove(consumer)
        consumer.close()


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Wait for consumers."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()
        door.setblocking(False)
        yield door


def admit(door: socket.socket, consumers: list[socket.socket]) -> None:
    """Admit a consumer that has come."""
    with contextlib.suppress(BlockingIOError):
        consumer, _ = door.accept()
        consumer.settimeout(1.0)
        consumers.append(consumer)


def consume(arguments: argparse.Namespace) -> None:
    """Open what comes, read it, hold it for a moment. Now and then, die without a word."""
    place = random.Random()  # noqa: S311
    dies_at = time.monotonic() + place.expovariate(1 / arguments.life_seconds)
    with slabd.connect(read_only=True, name="consumer") as pool, socket.socket(socket.AF_UNIX) as producer:
        reach(producer, arguments.meet)
        while data := producer.recv(HANDLE_BYTES, socket.MSG_WAITALL):
            with contextlib.suppress(slabd.StaleHandle), pool.open(data) as frame:
                sum(frame.view[:READ_BYTES])
                time.sleep(place.expovariate(100))
                if time.monotonic() > dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)


def reach(producer: socket.socket, path: Path) -> None:
    """Connect, when the producer is there."""
    while True:
        try:
            return producer.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.2)


def fill(arguments: argparse.Namespace) -> None:
    """Hold so much that this share of the heap is in use, whatever others do."""
    with slabd.connect(name="hog") as pool:
        held = []
        while True:
            stats = pool.stats()
            missing = int(arguments.share * stats.total_bytes) - stats.used_bytes
            if missing <= 0:
                time.sleep(0.05)
                continue
            size = max(PAGE_BYTES, min(missing, stats.largest_free_block_bytes))
            with contextlib.suppress(slabd.OutOfMemory):  # what was free is gone again, or others wait before us
                held.append(pool.lease(size, timeout=1.0, label="hog"))


def main() -> None:
    """Run one of the three until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    roles = parser.add_subparsers(required=True)
    producer = roles.add_parser("produce")
    producer.set_defaults(role=produce)
    producer.add_argument("--frames-a-second", type=float, default=50.0)
    consumer = roles.add_parser("consume")
    consumer.set_defaults(role=consume)
    consumer.add_argument("--life-seconds", type=float, default=60.0, help="how long it lives on average")
    for role in (producer, consumer):
        role.add_argument("--meet", type=Path, default=Path(tempfile.gettempdir()) / "slabd-samples.sock")
    hog = roles.add_parser("fill")
    hog.set_defaults(role=fill)
    hog.add_argument("share", type=float)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt, ConnectionResetError):
        arguments.role(arguments)


if __name__ == "__main__":
    main()
