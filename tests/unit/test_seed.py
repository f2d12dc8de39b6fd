"""The seed's crate as the measure: its seven tests, its traces, and, by name, where we differ on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.benchmarks.replay import Operation, Replayer, TraceError, read_answers, read_trace, replay

from slabd_server.core.errors import InvalidAlignment, InvalidHeap, InvalidSize, OutOfMemory, TooLarge
from slabd_server.core.heap import Heap
from slabd_server.core.sizes import PAGE, QUANTUM, SizeClasses, class_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAP_SIZE = 16 * PAGE
WORD = 8
TRACES = Path(__file__).parent.parent / "fixtures" / "traces"
both_kinds = pytest.mark.parametrize("kind", ["pow2", "fine"])
each_trace = pytest.mark.parametrize("trace", sorted(TRACES.glob("*.in")), ids=lambda path: path.stem)


# -- the crate's seven tests


def test_out_of_memory() -> None:
    """A block larger than the heap is refused."""
    with pytest.raises(TooLarge):
        Heap(HEAP_SIZE).grant(HEAP_SIZE + 1, WORD)


def test_allocate_and_free_a_word_pair() -> None:
    """A small block can be had and given back."""
    heap = Heap(HEAP_SIZE)
    assert heap.free(heap.grant(2 * WORD, WORD).offset) == 64


def test_allocate_and_free_a_large_block() -> None:
    """So can one that goes to the page ranges."""
    heap = Heap(HEAP_SIZE)
    assert heap.free(heap.grant(4097, WORD).offset) == 8192
    assert heap.used_bytes == 0


def test_blocks_of_several_sizes() -> None:
    """The seed's sequence of sizes and alignments is served, without an overlap, and all of it can be freed."""
    heap = Heap(HEAP_SIZE)
    x = heap.grant(2 * WORD, WORD)
    y = heap.grant(3 * WORD, WORD)
    z = heap.grant(3 * WORD, WORD * 8)
    heap.free(x.offset)
    a = heap.grant(10 * WORD, WORD)
    b = heap.grant(2 * WORD, WORD)
    live = sorted((y, z, a, b))
    assert all(below.offset + below.size <= above.offset for below, above in pairwise(live))
    for block in live:
        heap.free(block.offset)
    assert heap.used_bytes == 0


def test_one_block_of_the_whole_heap() -> None:
    """A heap serves one block of its size, and nothing beside it."""
    heap = Heap(HEAP_SIZE)
    assert heap.grant(HEAP_SIZE) == (0, HEAP_SIZE)
    with pytest.raises(OutOfMemory):
        heap.grant(1)


def test_usable_size() -> None:
    """(requested size, size of the class) for the small."""
    heap = Heap(HEAP_SIZE)
    layouts = [(0, 1), (64, 64), (64, 128), (65, 1), (4096, 1), (1, 4096)]
    assert [heap.usable_size(*layout) for layout in layouts] == [
        (0, 64), (64, 64), (64, 128), (65, 128), (4096, 4096), (1, 4096),
    ]  # fmt: skip


def test_statistics() -> None:
    """Total, used and available, before, with and after a block."""
    heap = Heap(HEAP_SIZE)
    assert (heap.total_bytes, heap.used_bytes, heap.available_bytes) == (HEAP_SIZE, 0, HEAP_SIZE)
    offset = heap.grant(100).offset
    assert (heap.total_bytes, heap.used_bytes, heap.available_bytes) == (HEAP_SIZE, 128, HEAP_SIZE - 128)
    heap.free(offset)
    assert (heap.total_bytes, heap.used_bytes, heap.available_bytes) == (HEAP_SIZE, 0, HEAP_SIZE)


# -- the traces


def granted(replayer: Replayer) -> list[tuple[int, int]]:
    """The (offset, usable size) of every live block."""
    assert replayer.heap is not None
    return sorted(replayer.heap.blocks())


def free_runs(blocks: list[tuple[int, int]], total: int) -> Iterator[tuple[int, int]]:
    """Yield the maximal runs [begin, end) of bytes that no block has: all that matters, from the blocks alone."""
    begin = 0
    for offset, size in [*blocks, (total, 0)]:
        if offset > begin:
            yield begin, offset
        begin = offset + size


def fits(blocks: list[tuple[int, int]], total: int, base: int, size: int, alignment: int) -> bool:
    """Say, by brute force, whether some run of free bytes has room for the request where its alignment permits.

    Only the grain of the books is conceded: a block begins at a multiple of 16 and has a multiple of 16 bytes.
    """
    need, step = max(-(-size // QUANTUM) * QUANTUM, QUANTUM), max(alignment, QUANTUM)
    return any(-(-(base + begin) // step) * step - base + need <= end for begin, end in free_runs(blocks, total))


@each_trace
@both_kinds
def test_no_request_fails_while_a_range_fits(trace: Path, kind: SizeClasses) -> None:
    """At each failure of a trace, brute force over the live blocks finds no place either."""
    replayer = Replayer(kind)
    base = 0
    for operation in read_trace(trace):
        if operation.verb == "new":
            base = sum(operation.numbers[1:])
        answer = replayer.apply(operation)
        heap = replayer.heap
        if heap is None:
            continue
        heap.check()
        assert heap.used_bytes == sum(size for _, size in granted(replayer))
        if operation.verb == "a" and answer.outcome == "err":
            size, alignment = operation.numbers
            assert not fits(granted(replayer), heap.total_bytes, base, size, alignment), operation


@each_trace
@both_kinds
def test_fewer_requests_fail_than_in_the_crate(trace: Path, kind: SizeClasses) -> None:
    """On every trace; and none that the crate served, as long as both hold the same blocks."""
    summary = replay(trace, kind, check_each=True)
    assert summary.crate_failures is not None
    assert summary.failures < summary.crate_failures
    assert summary.like_for_like == 0
    assert summary.check == "ok"


def test_the_same_inputs_are_invalid() -> None:
    """Where the crate panics or refuses a layout, so do we, and nowhere else."""
    trace = TRACES / "edge.in"
    replayer = Replayer()
    for operation, answer in zip(read_trace(trace), read_answers(trace.with_suffix(".out")), strict=True):
        if operation.line == 99:  # "w" is live with us: see test_added_memory_serves_blocks_over_the_old_end
            continue
        ours = replayer.apply(operation).outcome
        refused = {"panic", "bad"} - ({"bad"} if operation.verb == "d" else set())
        if ours in refused or answer.outcome in refused:
            assert ours == answer.outcome, operation


def test_a_layout_is_one_where_it_is_in_the_seed() -> None:
    """`Layout::from_size_align`: a power of two of 64 bits, and a size that rounded up to it is at most 2 ** 63 - 1."""
    heap = Heap(HEAP_SIZE)
    for alignment in (1 << shift for shift in range(64)):
        most = (1 << 63) - alignment
        assert heap.usable_size(most, alignment)[0] == most
        with pytest.raises(InvalidSize):
            heap.usable_size(most + 1, alignment)
    with pytest.raises(InvalidAlignment):
        heap.usable_size(0, 1 << 64)


# -- where we differ on purpose


def edge_pairs(verb: str) -> Iterator[tuple[Operation, str, str]]:
    """Yield (operation, our answer, the crate's) for one verb of the edge trace, where both succeed."""
    trace = TRACES / "edge.in"
    replayer = Replayer()
    for operation, theirs in zip(read_trace(trace), read_answers(trace.with_suffix(".out")), strict=True):
        ours = replayer.apply(operation)
        if operation.verb == verb and ours.outcome == theirs.outcome == "ok":
            yield operation, ours.where, theirs.where


def test_books_that_balance() -> None:
    """The crate counts slab memory twice: after one small block a heap of 65,536 bytes has 69,632 with it."""
    trace = TRACES / "edge.in"
    replayer = Replayer()
    apart = 0
    for operation, theirs in zip(read_trace(trace), read_answers(trace.with_suffix(".out")), strict=True):
        ours = replayer.apply(operation)
        assert ours.used + ours.available == ours.total
        apart += ours.total != theirs.total and theirs.outcome != "panic"
    assert apart > 20


def test_alignment_above_a_page_is_honoured_for_small_sizes_too() -> None:
    """The crate ignores it: asked for 16 KiB alignment, it answers 253952, which has 8 KiB."""
    wrong = 0
    for operation, ours, theirs in edge_pairs("a"):
        assert int(ours) % operation.numbers[1] == 0, operation
        wrong += int(theirs) % operation.numbers[1] != 0
    assert wrong >= 1


def test_usable_size_of_large_blocks_is_in_whole_pages() -> None:
    """The crate says 5000 of 5000 though it hands out 8192 bytes; ours may use the pages it has. Small sizes agree."""
    for operation, ours, theirs in edge_pairs("u"):
        size, _ = operation.numbers
        want = theirs if size <= PAGE else f"{size},{-(-size // PAGE) * PAGE}"
        assert ours == want, operation


def test_added_memory_serves_blocks_over_the_old_end() -> None:
    """The crate joins added memory only when something is freed next to it."""
    heap = Heap(32768)
    heap.add_memory(32768)
    assert heap.grant(65536) == (0, 65536)


@pytest.mark.parametrize("size", class_sizes("pow2"))
def test_the_smallest_heap_has_every_class(size: int) -> None:
    """The crate's growth needs room for 64 blocks at once: in 32 KiB it never serves a block of 513 bytes."""
    heap = Heap(32768)
    assert [heap.grant(size).size for _ in range(8)] == [size] * 8


def test_a_class_gives_its_memory_back() -> None:
    """In the crate one block of 512 bytes, granted and freed, leaves a heap of 32 KiB without room for a byte."""
    heap = Heap(32768)
    heap.free(heap.grant(512).offset)
    assert heap.grant(8192).size == 8192
    assert heap.grant(1).size == 64


def test_a_heap_begins_on_a_page() -> None:
    """Each validation of the crate, with the numbers in the message."""
    with pytest.raises(InvalidHeap, match="begins on a page of 4096 bytes, 2048 does not"):
        Heap(65536, base=2048)


# -- the replay command


REPLAY = Path(__file__).parent.parent / "benchmarks" / "replay.py"


def run_replay(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    command = [sys.executable, str(REPLAY), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_replay_prints_a_line_a_file() -> None:
    """With operations, failures, the crate's, and the verdict of `check()`; as JSON too."""
    files = sorted(TRACES.glob("*.in"))
    table = run_replay(*files)
    assert (table.returncode, table.stderr, len(table.stdout.splitlines())) == (0, "", 2)
    assert "t200_1MiB.in: operations 201, failures " in table.stdout
    assert "edge.in: operations 101, failures 6, refused 12, crate failures 13, crate refused 9, " in table.stdout
    parsed = json.loads(run_replay("-o", "json", *files).stdout)
    assert [(row["operations"], row["crate_failures"], row["check"]) for row in parsed] == [
        (101, 13, "ok"),
        (201, 21, "ok"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("new 65536\nfly x\n", ":2: no such operation: 'fly'"),
        ("new 65536\n\n# a\na x 5\n", ":4: 'a' with 2 words behind it"),
        ("new 65536\na x 5 many\n", ":2: a number is missing in 'a x 5 many': 'many' is none"),
        ("new 65536\na x 1_2 1\n", ":2: a number is missing in 'a x 1_2 1': '1_2' is none"),
        ("new +5\n", ":1: a number is missing in 'new +5': '+5' is none"),
        ("new ٣٢٧٦٨\n", ":1: a number is missing in 'new ٣٢٧٦٨': '٣٢٧٦٨' is none"),
        ("\ufeffnew 65536\n", ":1: begins with a byte order mark"),
        ("\ufeff# a comment\n", ":1: begins with a byte order mark"),
        (f"new {'7' * 5000}\n", f":1: a number of 5,000 digits in 'new {'7' * 56}...'"),
        (f"{'fly' * 1000} x\n", f":1: no such operation: '{'fly' * 20}...'; there are new, a, d, add, u"),
        ("new\n", ":1: 'new' with 0 words behind it"),
        ("a x 5 1\n", ":1: 'a' comes before the first 'new'"),
    ],
)
def test_a_malformed_trace_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    """The message says which line of which file; nothing is guessed."""
    path = tmp_path / "broken.in"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceError) as refused:
        replay(path)
    assert str(refused.value).startswith(f"{path}{message}")


def test_a_malformed_trace_ends_the_command_with_status_2(tmp_path: Path) -> None:
    """So does a missing file, one that is no text, and answers that do not match; standard output stays empty."""
    trace = tmp_path / "short.in"
    trace.write_text("new 65536\na x 5 1\n", encoding="utf-8")
    trace.with_suffix(".out").write_text("ok 0 65536 0 65536\n", encoding="utf-8")
    binary = tmp_path / "binary.in"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (trace, binary, tmp_path / "missing.in"):
        ran = run_replay(path)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert str(path.with_suffix("")) in ran.stderr


def test_a_file_that_cannot_be_replayed_does_not_hide_the_others(tmp_path: Path) -> None:
    """Those before and behind it have their lines, it has its message, and the status says that something was wrong."""
    good = TRACES / "t200_1MiB.in"
    missing, broken = tmp_path / "missing.in", tmp_path / "broken.in"
    broken.write_text("new 65536\nfly\n", encoding="utf-8")
    table = run_replay(good, missing, broken, good)
    assert table.returncode == 2
    assert [line.split(":")[0] for line in table.stdout.splitlines()] == [str(good)] * 2
    assert [line.split(":")[0] for line in table.stderr.splitlines()] == [str(missing), str(broken)]
    parsed = run_replay("-o", "json", good, missing)
    assert (parsed.returncode, [row["file"] for row in json.loads(parsed.stdout)]) == (2, [str(good)])


def test_answers_are_read_as_strictly_as_operations(tmp_path: Path) -> None:
    """A number in them is one, too."""
    path = tmp_path / "odd.in"
    path.write_text("new 32768\n", encoding="utf-8")
    path.with_suffix(".out").write_text("ok 0 32_768 0 32768\n", encoding="utf-8")
    with pytest.raises(TraceError, match="'32_768' is none"):
        replay(path)


def test_refused_lines_are_counted(tmp_path: Path) -> None:
    """Bad layouts, names in use, blocks that are not there, heaps that cannot be: apart from failures."""
    lines = ["new 32768", "a x 5 3", "a y -1 1", "a z 5 1", "a z 5 1", "d nobody", "a w 32768 1", "new 5", "a v 5 1"]
    path = tmp_path / "refused.in"
    path.write_text("\n".join(lines), encoding="utf-8")
    summary = replay(path)
    assert (summary.operations, summary.failures, summary.refused, summary.crate_refused) == (9, 1, 6, None)
    # What the crate did and we refuse counts as ours to answer for; to free what we refused is not counted again.
    answers = ["ok 0 1 1 1"] * 6 + ["err - 1 1 1", "panic - 1 1 1", "bad - 1 1 1"]
    path.with_suffix(".out").write_text("\n".join(answers), encoding="utf-8")
    summary = replay(path)
    assert (summary.crate_failures, summary.crate_refused) == (1, 2)
    assert summary.failures_where_the_crate_succeeded == 3


def test_a_trace_without_answers_is_replayed_alone(tmp_path: Path) -> None:
    """The comparison is left out; frees of blocks that were never granted are no failures."""
    path = tmp_path / "alone.in"
    path.write_text("new 32768\na x 32769 1\nd x\na y 1 1\nd y\n", encoding="utf-8")
    summary = replay(path)
    assert (summary.failures, summary.operations) == (1, 5)
    assert summary.crate_failures is summary.like_for_like is summary.failures_where_the_crate_succeeded is None
