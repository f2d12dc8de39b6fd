"""How full a heap gets before the first failure, under the sizes real users have, beside three plain allocators.

Owns the size mixes and the plain allocators. Promises the same requests, in the same order, to every allocator. Must
not be read as a speed comparison: the plain allocators are written to be understood.

    python tests/benchmarks/occupancy.py [--quick] [--seeds N] [-o json]

A run fills the heap to half, then raises the level by half a per cent at a time, replacing a quarter of all blocks at
random at each level, until a request fails. Occupancy is what was *asked for* over what there is, so that rounding
counts against an allocator as much as fragmentation does. Beside it, for the heap at that moment: internal waste
(granted but not asked for, of the granted), and external fragmentation (1 - largest free block / free bytes).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from bisect import insort
from typing import TYPE_CHECKING, NamedTuple, Protocol

from slabd_server.core.errors import NoMemory
from slabd_server.core.heap import Heap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GRAIN = 64
MIB = 1 << 20
NOWHERE = -1


# -- who is compared


class Allocator(Protocol):
    """What a run needs: an offset or -1, and the state at the end."""

    def grant(self, size: int) -> int:
        """Grant a block."""

    def free(self, offset: int) -> None:
        """Take it back."""

    def state(self) -> tuple[int, int]:
        """Return (granted bytes, largest free block)."""


class Ours:
    """The heap of slabd."""

    def __init__(self, total: int, *, fine: bool = False) -> None:
        self.heap = Heap(total, size_classes="fine" if fine else "pow2")

    def grant(self, size: int) -> int:
        """Grant, with a refusal as -1."""
        try:
            return self.heap.grant(size).offset
        except NoMemory:
            return NOWHERE

    def free(self, offset: int) -> None:
        """Free."""
        self.heap.free(offset)

    def state(self) -> tuple[int, int]:
        """Ask the heap."""
        return self.heap.used_bytes, self.heap.largest_free_block_bytes


class Buddy:
    """A plain binary buddy: powers of two from 64 bytes, lowest address first."""

    def __init__(self, total: int) -> None:
        self.free_blocks: dict[int, list[int]] = {1 << order: [] for order in range(6, total.bit_length())}
        self.granted: dict[int, int] = {}
        self.used = 0
        offset = 0
        while offset < total:
            size = 1 << (total - offset).bit_length() - 1
            self.free_blocks[size].append(offset)
            offset += size

    def grant(self, size: int) -> int:
        """Split the smallest block that is large enough."""
        want = max(1 << (size - 1).bit_length(), GRAIN)
        have = next((order for order, blocks in self.free_blocks.items() if order >= want and blocks), 0)
        if not have:
            return NOWHERE
        offset = self.free_blocks[have].pop(0)
        while have > want:
            have //= 2
            insort(self.free_blocks[have], offset + have)
        self.granted[offset] = want
        self.used += want
        return offset

    def free(self, offset: int) -> None:
        """Join with the buddy as long as it is free."""
        size = self.granted.pop(offset)
        self.used -= size
        while (offset ^ size) in self.free_blocks.get(size, ()):
            self.free_blocks[size].remove(offset ^ size)
            offset &= ~size
            size *= 2
        insort(self.free_blocks[size], offset)

    def state(self) -> tuple[int, int]:
        """Return (granted bytes, largest free block)."""
        return self.used, max((order for order, blocks in self.free_blocks.items() if blocks), default=0)


class Fit:
    """Free ranges by address, cut to 64 bytes: first fit, or best fit (the lowest of the smallest)."""

    def __init__(self, total: int, *, best: bool) -> None:
        self.best = best
        self.ranges = [(0, total)]
        self.granted: dict[int, int] = {}
        self.used = 0

    def grant(self, size: int) -> int:
        """Cut from the front of the range chosen."""
        want = max(-(-size // GRAIN) * GRAIN, GRAIN)
        fitting = (index for index, (_, length) in enumerate(self.ranges) if length >= want)
        index = min(fitting, key=lambda i: self.ranges[i][1], default=NOWHERE) if self.best else next(fitting, NOWHERE)
        if index < 0:
            return NOWHERE
        offset, length = self.ranges[index]
        if length > want:
            self.ranges[index] = (offset + want, length - want)
        else:
            del self.ranges[index]
        self.granted[offset] = want
        self.used += want
        return offset

    def free(self, offset: int) -> None:
        """Join with the neighbours."""
        size = self.granted.pop(offset)
        self.used -= size
        insort(self.ranges, (offset, size))
        index = self.ranges.index((offset, size)) if len(self.ranges) < GRAIN else _place(self.ranges, offset)
        if index + 1 < len(self.ranges) and self.ranges[index + 1][0] == offset + size:
            size += self.ranges.pop(index + 1)[1]
            self.ranges[index] = (offset, size)
        if index and sum(self.ranges[index - 1]) == offset:
            before, length = self.ranges[index - 1]
            self.ranges[index - 1 : index + 1] = [(before, length + size)]

    def state(self) -> tuple[int, int]:
        """Return (granted bytes, largest free block)."""
        return self.used, max((length for _, length in self.ranges), default=0)


ALLOCATORS: dict[str, Callable[[int], Allocator]] = {
    "slabd pow2": Ours,
    "slabd fine": lambda total: Ours(total, fine=True),
    "binary buddy": Buddy,
    "first fit": lambda total: Fit(total, best=False),
    "best fit": lambda total: Fit(total, best=True),
}


# -- what they are asked


def _video(rng: random.Random) -> int:
    width, height = rng.choice(((640, 480), (1280, 720), (1920, 1080), (1920, 1080), (3840, 2160)))
    return int(width * height * rng.choice((1.5, 1.5, 2, 3)))  # NV12, YUYV, RGB24


def _arrow(rng: random.Random) -> int:
    rows = rng.choice((1024, 8192, 65536, 122880))
    column = rng.choice(
        (rows // 8, rows, rows * 4, rows * 8, int(rows * rng.lognormvariate(3, 0.7)))
    )  # bits .. strings
    return -(-column // 64) * 64


def _tensor(rng: random.Random) -> int:
    batch = rng.choice((1, 4, 8, 16, 32))
    item = rng.choice((3 * 224 * 224, 3 * 224 * 224 * 4, 512 * 8, 2048 * 8, 768 * 4, 1024 * 2, 80 * 3000 * 4))
    return batch * item


def _kv_cache(rng: random.Random) -> int:
    tokens, heads = 16, rng.choice((1, 4, 8, 8, 8, 32))
    return 2 * tokens * heads * 128 * 2


def _messages(rng: random.Random) -> int:
    return min(max(int(rng.lognormvariate(5.8, 1.1)), 8), 65536)


def _everything(rng: random.Random) -> int:
    return rng.choice((_arrow, _tensor, _kv_cache, _messages))(rng)


class Mix(NamedTuple):
    """Sizes of one kind of user, and a heap that holds about two thousand of them."""

    draw: Callable[[random.Random], int]
    total: int


MIXES = {
    "video frames": Mix(_video, 2048 * MIB),
    "Arrow batches": Mix(_arrow, 512 * MIB),
    "tensors": Mix(_tensor, 2048 * MIB),
    "KV-cache pages": Mix(_kv_cache, 128 * MIB),
    "small messages": Mix(_messages, 2 * MIB),
    "everything": Mix(_everything, 512 * MIB),
}


# -- a run


class Result(NamedTuple):
    """How far one run came; all as shares of one."""

    occupancy: float
    internal_waste: float
    external_fragmentation: float


class Run:
    """One allocator under one mix."""

    def __init__(self, allocator: Allocator, mix: Mix, seed: int) -> None:
        self.allocator = allocator
        self.mix = mix
        self.rng = random.Random(seed)
        self.live: list[tuple[int, int]] = []
        self.asked = 0

    def until_failure(self, churn: float) -> Result:
        """Raise the level till a request fails."""
        level = 0.5
        while self.fill(level) and self.replace(level, churn):
            level += 0.005
        used, largest = self.allocator.state()
        free = self.mix.total - used
        return Result(self.asked / self.mix.total, 1 - self.asked / used, 1 - largest / free if free else 0.0)

    def fill(self, level: float) -> bool:
        """Grant till the level is reached; tell whether that worked."""
        while self.asked < level * self.mix.total:
            size = self.mix.draw(self.rng)
            offset = self.allocator.grant(size)
            if offset < 0:
                return False
            self.live.append((offset, size))
            self.asked += size
        return True

    def replace(self, level: float, churn: float) -> bool:
        """Free and grant at the level; tell whether that worked."""
        for _ in range(int(len(self.live) * churn)):
            index = self.rng.randrange(len(self.live))
            self.live[index], self.live[-1] = self.live[-1], self.live[index]
            offset, size = self.live.pop()
            self.allocator.free(offset)
            self.asked -= size
            if not self.fill(level):
                return False
        return True


def measure(seeds: int, churn: float) -> dict[str, dict[str, Result]]:
    """Return the means over the seeds: {mix: {allocator: result}}."""
    return {
        name: {who: _mean([_run(make, mix, seed, churn) for seed in range(seeds)]) for who, make in ALLOCATORS.items()}
        for name, mix in MIXES.items()
    }


def _mean(results: list[Result]) -> Result:
    return Result(*map(statistics.fmean, zip(*results, strict=True)))


def _run(make: Callable[[int], Allocator], mix: Mix, seed: int, churn: float) -> Result:
    return Run(make(mix.total), mix, seed).until_failure(churn)


def _place(ranges: list[tuple[int, int]], offset: int) -> int:
    return next(index for index, (start, _) in enumerate(ranges) if start == offset)


def _table(report: dict[str, dict[str, Result]]) -> str:
    lines = [f"{'occupancy (internal waste, external)':38}" + "".join(f"{who:>22}" for who in ALLOCATORS)]
    for mix, results in report.items():
        lines.append(f"{mix:38}" + "".join(f"{_cell(result):>22}" for result in results.values()))
    return "\n".join(lines)


def _cell(result: Result) -> str:
    return f"{result.occupancy:.1%} ({result.internal_waste:.1%}, {result.external_fragmentation:.0%})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare how full a heap gets before the first failure.")
    parser.add_argument("--quick", action="store_true", help="one seed and little churn: a smoke test")
    parser.add_argument("--seeds", type=int, default=5, help="runs to take the mean of (default 5)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args(arguments)
    report = measure(1, 0.05) if options.quick else measure(max(options.seeds, 1), 0.25)
    if options.output == "json":
        print(json.dumps({mix: {w: r._asdict() for w, r in rs.items()} for mix, rs in report.items()}, indent=2))
    else:
        print(_table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
