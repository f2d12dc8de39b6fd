"""The allocator alone: operations a second, whether costs grow, and what a live block costs in memory.

Promises ratios within one run, which mean something on any machine; absolute figures do not. Must not do any I/O but
printing.

    python tests/benchmarks/allocator.py [--quick] [-o json]

- `pair`: one grant and one free, in microseconds, with a window of blocks held so that the pair is not always the same
  block: small (64 to 4096 bytes), large (5 KiB to 1 MiB) and mixed; and one size at a time.
- `floor`: what calling two methods that do nothing but a dict look-up each costs here. No allocator can be faster.
- `flat`: the same pair on heaps of 1 GiB and 1 TiB, and beside 1,000 and 1,000,000 live blocks, as ratios.
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

from slabd_server.core.heap import Heap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GIB = 1 << 30
TIB = 1 << 40
WINDOW = 64
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
