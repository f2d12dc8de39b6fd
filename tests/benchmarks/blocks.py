"""What a live block costs the daemon: bytes of memory, ledger included, and microseconds of the core.

One session leases blocks through the engine, in a process of its own for each row, with the ledger in a memfd as in
the daemon and the heap sparse and never touched. Memory is the growth of the process per block, private and shared
resident pages. "churned" gives half of the blocks back at random and leases as many again, several times, so that the
books are those of a heap that has lived.

    python tests/benchmarks/blocks.py [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from slabd_server.core.access import Policy
from slabd_server.core.engine import Engine
from slabd_server.core.memory import FixedMemory
from slabd_server.core.records import Access, BlockRef, Leased, LeaseItem, Peer, SessionKey, SlotId
from slabd_server.core.served import HeapSpec, ServedHeap
from slabd_server.segments import LedgerSegment

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZES = (64, 1024, 4096, 6000, 100_000)
BATCH = 1000
CHURNS = 4


def make_engine(heap_bytes: int) -> tuple[Engine, SessionKey]:
    """Return an engine with one heap and one session."""
    spec = HeapSpec(name="bench", size=heap_bytes, policy=Policy(uids=frozenset({0})))
    served = ServedHeap.make(spec, heap_id=1, store=LedgerSegment.create("bench"), memory=FixedMemory())
    engine = Engine([served])
    peer = Peer(pid=1, uid=0)
    made = engine.open_session(
        "", name="bench", access=Access.READ_WRITE, peer=peer, attached=True, secret=bytes(16), now=0.0
    )
    return engine, SessionKey(made.id, bytes(16))


def resident_bytes() -> int:
    """Return this process's resident memory, shared pages included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise LookupError("VmRSS")


class Names:
    """The names of the live blocks, at eight bytes each: they are the client's affair and not to be counted."""

    def __init__(self, number: int) -> None:
        self.slots = array("I", bytes(4 * number))
        self.generations = array("I", bytes(4 * number))

    def lease(self, engine: Engine, key: SessionKey, size: int, indices: Sequence[int]) -> None:
        """Lease a block for each index, in batches."""
        for batch in (indices[start : start + BATCH] for start in range(0, len(indices), BATCH)):
            outcome = engine.lease(key, [LeaseItem(size)] * len(batch), now=1.0)
            assert isinstance(outcome, Leased)
            for index, block in zip(batch, outcome.blocks, strict=True):
                self.slots[index], self.generations[index] = block.ref

    def release(self, engine: Engine, key: SessionKey, indices: Sequence[int]) -> None:
        """Release the blocks of these indices, in batches."""
        for batch in (indices[start : start + BATCH] for start in range(0, len(indices), BATCH)):
            refs = [BlockRef(SlotId(self.slots[index]), self.generations[index]) for index in batch]
            engine.release(key, refs, now=1.0)


def row(size: int, number: int) -> dict[str, float]:
    """Measure one size in this process."""
    engine, key = make_engine(1 << 40)
    names = Names(number)
    order = array("I", range(number))
    before = resident_bytes()
    names.lease(engine, key, size, order)
    gc.collect()
    packed = (resident_bytes() - before) / number
    chooser = random.Random(size)
    for _ in range(CHURNS):
        chooser.shuffle(order)
        half = order[: number // 2]
        names.release(engine, key, half)
        names.lease(engine, key, size, half)
    gc.collect()
    churned = (resident_bytes() - before) / number
    return {"size": size, "blocks": number, "packed": packed, "churned": churned, "pair_us": pair(engine, key, size)}


def pair(engine: Engine, key: SessionKey, size: int) -> float:
    """Return the median microseconds of one lease and one release, with all the other blocks alive."""
    times = []
    for _ in range(2000):
        began = time.perf_counter()
        outcome = engine.lease(key, [LeaseItem(size)], now=1.0)
        assert isinstance(outcome, Leased)
        engine.release(key, [outcome.blocks[0].ref], now=1.0)
        times.append((time.perf_counter() - began) * 1e6)
    return statistics.median(times)


def main() -> None:
    """Run each row in its own process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 blocks a row instead of 1,000,000")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--row", nargs=2, type=int, metavar=("SIZE", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(row(*options.row)))
        return
    number = 100_000 if options.quick else 1_000_000
    if options.output == "table":
        print(f"{'size':>8}{'blocks':>10}{'bytes, packed':>15}{'bytes, churned':>16}{'pair us':>10}")
    for size in SIZES:
        command = [sys.executable, __file__, "--row", str(size), str(number)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        if options.output == "json":
            print(json.dumps(found))
        else:
            print(f"{size:>8}{number:>10,}{found['packed']:>15.0f}{found['churned']:>16.0f}{found['pair_us']:>10.1f}")


if __name__ == "__main__":
    main()
