"""The allocator alone: operations a second, whether costs grow, and what a live block costs in memory.

Promises ratios within one run, which mean something on any machine; absolute figures do not. Must not do any I/O but
printing.

    python tests/benchmarks/allocator.py [--quick] [-o json]

- `pair`: one grant and one free, in microseconds, with a window of blocks held so that the pair is not always the same
  block: small (64 to 4096 bytes), large (5 KiB to 1 MiB) and mixed; and one size at a time.
- `floor`: what calling two methods that do nothing but a dict look-up each costs here. No allocator can be faster.
- `flat`: the same pair on heaps of 1 GiB and 1 TiB, and beside 1,000 and 1,000,000 live blocks, as ratios. Its blocks
  are freed soon after they were granted, and what was written about them is still in the processor's caches.
- `random victims`: a pair that frees any of the live blocks, each as likely as the others, and grants one of the same
  size. Beside a million blocks that costs more than beside a thousand, in any program: what is known of the victim is
  in none of the caches. So a control is measured in turns with it, a bare dictionary of as many items from which a
  random one is deleted and into which another is put. Compare the two ratios, not the heap's with 1.
- `longest step`: a heap full of slabs of which each is half used, and a request that fits nowhere, made as the daemon
  makes it: the search for its place is cut into steps (`core/patience.py`). In milliseconds of this thread's time; the
  first search, one for an alignment, and the same again when the index has been let go; then a search to the end.
- `bytes a block`: growth of traced memory over a million live blocks, for each kind of block, packed and after churn.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
import tracemalloc
from typing import TYPE_CHECKING

from slabd_server.core.crumbs import MIN_IDLE
from slabd_server.core.errors import NoMemory
from slabd_server.core.heap import Heap
from slabd_server.core.patience import SLICE
from slabd_server.core.sizes import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GIB = 1 << 30
TIB = 1 << 40
WINDOW = 64
HALF = PAGE // 2
MIXES: dict[str, Callable[[random.Random], int]] = {
    "small": lambda rng: int(2 ** rng.uniform(6, 12)),
    "large": lambda rng: int(2 ** rng.uniform(12.33, 20)),
    "mixed": lambda rng: int(2 ** rng.uniform(6, 20)),
    "64 bytes": lambda _: 64,
    "4096 bytes": lambda _: 4096,
    "1 MiB": lambda _: 1 << 20,
}


class Floor:
    """What remains when an allocator decides nothing."""

    def __init__(self) -> None:
        self.table = dict.fromkeys(range(1, 1 << 20), (0, 1))

    def grant(self, size: int, alignment: int = 1) -> tuple[int, int]:
        """Look something up."""
        return self.table.get(alignment) or (0, size)

    def free(self, offset: int) -> int:
        """Look something up."""
        return self.table.get(offset >> 12, (0, 0))[1]


def pair_us(heap: Heap | Floor, sizes: Sequence[int], repeats: int = 5) -> float:
    """Return the microseconds of one grant and one free, the median of some passes over `sizes`."""
    grant, free = heap.grant, heap.free
    window = [grant(size)[0] for size in sizes[:WINDOW]]
    passes = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for turn, size in enumerate(sizes):
            slot = turn % WINDOW
            free(window[slot])
            window[slot] = grant(size)[0]
        passes.append((time.perf_counter() - begin) / len(sizes) * 1e6)
    for offset in window:
        free(offset)
    return statistics.median(passes)


def sizes_of(mix: str, count: int) -> list[int]:
    """Draw `count` sizes."""
    rng = random.Random(3)
    return [MIXES[mix](rng) for _ in range(count)]


def populate(heap: Heap, mix: str, count: int) -> list[int]:
    """Grant `count` blocks, then free a random half and grant as many again: holes everywhere, as in real life."""
    rng = random.Random(4)
    sizes = sizes_of(mix, count)
    live = [heap.grant(size).offset for size in sizes]
    rng.shuffle(live)
    for index in range(count // 2):
        heap.free(live[index])
    live[: count // 2] = [heap.grant(MIXES[mix](rng)).offset for _ in range(count // 2)]
    return live


def flatness(mix: str, operations: int, many: int) -> dict[str, float]:
    """Return the costs of the pair on the large over the small, measured in turns so that both see the same machine."""
    sizes = sizes_of(mix, operations)
    small, large = Heap(GIB), Heap(TIB)
    few_live, many_live = Heap(TIB), Heap(TIB)
    populate(few_live, mix, 1000)
    populate(many_live, mix, many)
    gc.collect()
    gc.freeze()
    rounds = [[pair_us(heap, sizes, 1) for heap in (small, large, few_live, many_live)] for _ in range(7)]
    a, b, c, d = (statistics.median(column) for column in zip(*rounds, strict=True))
    gc.unfreeze()
    return {"1 TiB / 1 GiB": b / a, f"{many:,} / 1,000 live": d / c, "us beside 1,000": c, f"us beside {many:,}": d}


def random_victims(mix: str, operations: int, many: int) -> dict[str, float]:
    """Return what a pair costs whose victim is any live block, beside few and many, and what it costs a dictionary."""
    rng = random.Random(5)
    lives = {number: populated(mix, number) for number in (1000, many)}
    gc.collect()
    gc.freeze()
    rounds: dict[str, list[float]] = {}
    for _ in range(5):
        for number, (heap, live, table) in lives.items():
            victims = [rng.randrange(number) for _ in range(operations)]
            rounds.setdefault(f"us beside {number:,}", []).append(replace(heap, live, victims))
            rounds.setdefault(f"dict, us beside {number:,}", []).append(replace_in(table, victims))
    gc.unfreeze()
    report = {name: statistics.median(column) for name, column in rounds.items()}
    for what in ("", "dict, "):
        ratio = report[f"{what}us beside {many:,}"] / report[f"{what}us beside 1,000"]
        report[f"{what}{many:,} / 1,000 live"] = ratio
    return report


def populated(mix: str, number: int) -> tuple[Heap, list[tuple[int, int]], dict[int, int]]:
    """Return a heap that has lived, its blocks as (offset, size) in random order, and a dictionary of as many items."""
    heap = Heap(TIB)
    populate(heap, mix, number)
    live: list[tuple[int, int]] = list(heap.blocks())
    random.Random(6).shuffle(live)
    return heap, live, dict(live)


def replace(heap: Heap, live: list[tuple[int, int]], victims: Sequence[int]) -> float:
    """Return the microseconds of freeing a victim and granting as much."""
    grant, free = heap.grant, heap.free
    begin = time.perf_counter()
    for victim in victims:
        offset, size = live[victim]
        free(offset)
        live[victim] = grant(size)
    return (time.perf_counter() - begin) / len(victims) * 1e6


def replace_in(table: dict[int, int], victims: Sequence[int]) -> float:
    """Return the microseconds of taking a victim out of a dictionary and putting another item in."""
    keys = list(table)
    begin = time.perf_counter()
    for victim in victims:
        key = keys[victim]
        size = table.pop(key)
        keys[victim] = key = key + 1
        table[key] = size
    return (time.perf_counter() - begin) / len(victims) * 1e6


def longest_steps(slabs: int) -> dict[str, float]:
    """Return the milliseconds of the longest step of searches among so many slabs of which each is half used."""
    heap = half_used(slabs, SLICE)
    report: dict[str, float] = {}
    searches = (("first search", 1), ("at an alignment", PAGE), ("index let go", 1))
    for name, alignment in searches:
        if name == "index let go":
            for _ in range(slabs + 2 * MIN_IDLE):
                heap.free(heap.grant(HALF).offset)
        steps = steps_of(heap, HALF + 16 if alignment == 1 else HALF // 2, alignment)
        report[f"{name}, longest"] = max(steps)
        report[f"{name}, in all"] = sum(steps)
        report[f"{name}, steps"] = len(steps)
    report["without patience"] = max(steps_of(half_used(slabs, None), HALF + 16, 1))
    return report


def half_used(slabs: int, patience: int | None) -> Heap:
    """Return a heap of as many slabs of a page, the first half of each in use."""
    heap = Heap(slabs * PAGE, patience=patience)
    for page in range(slabs):
        heap.adopt(page * PAGE, HALF)
    return heap


def steps_of(heap: Heap, size: int, alignment: int) -> list[float]:
    """Ask until the answer is known; return the milliseconds of each step."""
    steps = []
    while True:
        begin = time.thread_time()
        heap.begin(1)
        try:
            heap.grant(size, alignment)
        except NoMemory:
            steps.append((time.thread_time() - begin) * 1e3)
        if not heap.searching:
            return steps
        more = True
        while more:
            begin = time.thread_time()
            more = heap.search()
            steps.append((time.thread_time() - begin) * 1e3)


def bytes_per_block(mix: str, count: int, *, churned: bool) -> float:
    """Return the bytes of traced memory a live block costs."""
    sizes = sizes_of(mix, count)
    gc.collect()
    tracemalloc.start()
    heap = Heap(TIB)
    if churned:
        populate(heap, mix, count)
    else:
        for size in sizes:
            heap.grant(size)
    gc.collect()
    traced, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return traced / heap.used_blocks


def measure(*, quick: bool) -> dict[str, dict[str, float]]:
    """Run everything."""
    operations = 20_000 if quick else 200_000
    many = 50_000 if quick else 1_000_000
    report: dict[str, dict[str, float]] = {}
    report["pair, us"] = {mix: pair_us(Heap(GIB), sizes_of(mix, operations)) for mix in MIXES}
    report["floor, us"] = {"floor": pair_us(Floor(), sizes_of("mixed", operations))}
    report["operations a second"] = {mix: 2e6 / report["pair, us"][mix] for mix in ("small", "large", "mixed")}
    for mix in ("small", "large", "mixed"):
        report[f"flat, {mix}"] = flatness(mix, operations // 10, many)
    for mix in ("small", "large", "mixed"):
        report[f"random victims, {mix}"] = random_victims(mix, operations // 10, many)
    report["longest step, ms"] = longest_steps(5_000 if quick else 100_000)
    for churned in (False, True):
        label = "bytes a block, " + ("churned" if churned else "packed")
        report[label] = {mix: bytes_per_block(mix, many, churned=churned) for mix in MIXES}
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the allocator alone.")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the work: a smoke test, not a measurement")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args(arguments)
    report = measure(quick=options.quick)
    if options.output == "json":
        print(json.dumps(report, indent=2))
        return 0
    for title, figures in report.items():
        print(title)
        for name, figure in figures.items():
            print(f"  {name:24}{figure:14,.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
