"""Replay operation traces in the format of `traces/README.txt`, and say what they met: one line a file.

Owns the reading of traces (`read_trace`, `read_answers`) and their replay (`replay`), which the seed's tests use too.
Promises a line for every file that can be replayed, printed as soon as it has been, whatever is wrong with the others;
that the line of a malformed file is named on standard error; and a status: 2 when a file could not be read, else 1 when
`check()` found a heap whose books do not balance, else 0. Must not correct what it reads: a number is ASCII digits, and
words are separated by spaces and tabs.

What a line says of a file: its operations; failures (no memory: `err`); refused lines (`bad`: no layout, no such block,
a name in use; `panic`: no such heap); the crate's of both, from the `.out` file beside it; failures of ours where the
crate succeeded, as it is and like for like; the most bytes used, seconds, and what `check()` found.

    python tests/benchmarks/replay.py [-o json] [--size-classes fine] [--check-each] FILE...
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from slabd_server.core.errors import (
    InvalidArgument,
    InvalidHeap,
    InvariantBroken,
    NoMemory,
)
from slabd_server.core.heap import Heap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from slabd_server.core.sizes import SizeClasses

Outcome = Literal["ok", "err", "panic", "bad"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "err", "panic", "bad")
# For each operation: how many names come first, then the fewest and the most numbers.
FORMS = {"new": (0, 1, 2), "a": (1, 2, 2), "d": (1, 0, 0), "add": (0, 1, 1), "u": (0, 2, 2)}


DIGITS_MAX = 40  # more than 128 bits have
QUOTED_MAX = 60


class TraceError(Exception):
    """A trace is not in the format: the message says which line of which file, and why."""


class Operation(NamedTuple):
    """One line of a trace; `name` is the block's, where there is one."""

    line: int
    verb: str
    name: str
    numbers: tuple[int, ...]


class Answer(NamedTuple):
    """What an allocator answered to one operation; `used`, `total` and `available` are its books afterwards."""

    outcome: Outcome
    where: str
    total: int
    used: int
    available: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a replay met: `failures` for want of memory, and `refused` for being wrong in themselves.

    The last four are None without a `.out` file.

    A trace never frees what the crate failed to allocate. Ours serves most of these requests, and so holds ever more
    blocks than the crate did; `failures_where_the_crate_succeeded` counts what fails for that reason too. The figure
    `like_for_like` is of a second replay, in which such a block is freed at once: both hold the same blocks then.
    """

    file: str
    operations: int
    failures: int
    refused: int
    peak_used_bytes: int
    seconds: float
    check: str
    crate_failures: int | None
    crate_refused: int | None
    failures_where_the_crate_succeeded: int | None
    like_for_like: int | None


def read_trace(path: Path) -> Iterator[Operation]:
    """Yield the operations of a trace.

    Raises:
        TraceError: a line is not in the format, or comes before the first `new`.
    """
    started = False
    for number, words in _lines(path):
        operation = _operation(path, number, words)
        started = started or operation.verb == "new"
        if not started:
            raise TraceError(f"{path}:{number}: {operation.verb!r} comes before the first 'new'")
        yield operation


def read_answers(path: Path) -> Iterator[Answer]:
    """Yield the answers of a `.out` file.

    Raises:
        TraceError: a line is not in the format.
    """
    for number, words in _lines(path):
        try:
            outcome, where, total, used, available = words[:5]
            if outcome not in OUTCOMES:
                raise TraceError(f"{path}:{number}: no such result: {_quoted([outcome])}")
        except ValueError as error:
            raise TraceError(
                f"{path}:{number}: want RESULT OFFSET TOTAL USED AVAILABLE, got {_quoted(words)}"
            ) from error
        books = [_number(path, number, word, words) for word in (total, used, available)]
        yield Answer(outcome, where, *books)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.startswith("\ufeff"):
                    raise TraceError(f"{path}:{number}: begins with a byte order mark; save the file without")
                words = [word for word in re.split(r"[ \t\n]+", line) if word]
                if words and not words[0].startswith("#"):
                    yield number, words
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: {error}") from error


def _operation(path: Path, line: int, words: list[str]) -> Operation:
    verb, *rest = words
    if verb not in FORMS:
        raise TraceError(f"{path}:{line}: no such operation: {_quoted([verb])}; there are {', '.join(FORMS)}")
    names, fewest, most = FORMS[verb]
    if not fewest <= len(rest) - names <= most:
        raise TraceError(f"{path}:{line}: {verb!r} with {len(rest)} words behind it: {_quoted(words)}")
    numbers = tuple(_number(path, line, word, words) for word in rest[names:])
    return Operation(line, verb, "".join(rest[:names]), numbers)


def _number(path: Path, line: int, word: str, words: Sequence[str]) -> int:
    """Read a number as the format has it; int() alone takes `1_2`, `+5` and the digits of every script."""
    if not re.fullmatch(r"-?[0-9]+", word):
        raise TraceError(f"{path}:{line}: a number is missing in {_quoted(words)}: {_quoted([word])} is none")
    if len(word) > DIGITS_MAX:
        raise TraceError(f"{path}:{line}: a number of {len(word):,} digits in {_quoted(words)}; 64 bits have 20")
    return int(word)


def _quoted(words: Sequence[str]) -> str:
    """Quote what a line says, or its beginning."""
    text = " ".join(words)
    return repr(text if len(text) <= QUOTED_MAX else f"{text[:QUOTED_MAX]}...")


class Replayer:
    """A heap, the blocks a trace has named, and what each operation of the trace does to them."""

    def __init__(self, size_classes: SizeClasses = "pow2") -> None:
        self.heap: Heap | None = None
        self.blocks: dict[str, int] = {}
        self._size_classes: SizeClasses = size_classes
        self._verbs: dict[str, Callable[[Operation], str]] = {
            "new": self._new,
            "a": self._allocate,
            "d": self._free,
            "add": self._add,
            "u": self._usable,
        }

    def apply(self, operation: Operation) -> Answer:
        """Do what one line says, and answer in the terms of a `.out` file."""
        try:
            return self._answer("ok", self._verbs[operation.verb](operation))
        except NoMemory:
            return self._answer("err")
        except InvalidHeap:
            return self._answer("panic")
        except (InvalidArgument, KeyError):
            return self._answer("bad")

    def _answer(self, outcome: Outcome, where: str = "-") -> Answer:
        heap = self.heap
        if heap is None:
            return Answer(outcome, where, 0, 0, 0)
        return Answer(outcome, where, heap.total_bytes, heap.used_bytes, heap.available_bytes)

    def _new(self, operation: Operation) -> str:
        self.heap = None
        self.blocks = {}
        size, *skew = operation.numbers
        self.heap = Heap(size, base=sum(skew), size_classes=self._size_classes)
        return "0"

    def _allocate(self, operation: Operation) -> str:
        if operation.name in self.blocks:
            raise InvalidArgument(f"{operation.name!r} is allocated already")
        offset = self._heap().grant(*operation.numbers).offset
        self.blocks[operation.name] = offset
        return str(offset)

    def _free(self, operation: Operation) -> str:
        offset = self.blocks.pop(operation.name)
        self._heap().free(offset)
        return str(offset)

    def _add(self, operation: Operation) -> str:
        return str(self._heap().add_memory(*operation.numbers))

    def _usable(self, operation: Operation) -> str:
        return ",".join(map(str, self._heap().usable_size(*operation.numbers)))

    def check(self) -> None:
        """Raise `InvariantBroken` if the heap's books do not balance."""
        if self.heap is not None:
            self.heap.check()

    def _heap(self) -> Heap:
        if self.heap is None:
            raise InvalidArgument("the last 'new' was refused")
        return self.heap


@dataclass(kw_only=True)
class Run:
    """One pass over a trace."""

    outcomes: list[Outcome]
    peak_used_bytes: int = 0
    seconds: float = 0.0
    check: str = "ok"


def replay(path: Path, size_classes: SizeClasses = "pow2", *, check_each: bool = False) -> Summary:
    """Replay one trace, comparing with the `.out` file beside it if there is one.

    Raises:
        TraceError: one of the files is not in the format.
    """
    operations = list(read_trace(path))
    answers = _answers_beside(path, len(operations))
    run = _run(operations, Replayer(size_classes), check_each=check_each)
    like_for_like = None
    if answers is not None:
        like_for_like = _regressions(operations, _run(operations, Replayer(size_classes), answers), answers)
    return Summary(
        file=str(path),
        operations=len(operations),
        failures=run.outcomes.count("err"),
        refused=_refused(run.outcomes),
        peak_used_bytes=run.peak_used_bytes,
        seconds=run.seconds,
        check=run.check,
        crate_failures=None if answers is None else sum(answer.outcome == "err" for answer in answers),
        crate_refused=None if answers is None else _refused([answer.outcome for answer in answers]),
        failures_where_the_crate_succeeded=None if answers is None else _regressions(operations, run, answers),
        like_for_like=like_for_like,
    )


def _run(
    operations: Sequence[Operation], replayer: Replayer, answers: Sequence[Answer] = (), *, check_each: bool = False
) -> Run:
    """Replay; with `answers`, free at once what the crate failed to allocate."""
    run = Run(outcomes=[])
    try:
        for operation, theirs in zip_longest(operations, answers):
            if operation.verb == "new":
                replayer.check()
            begin = time.perf_counter()
            answer = replayer.apply(operation)
            run.seconds += time.perf_counter() - begin
            run.peak_used_bytes = max(run.peak_used_bytes, answer.used)
            run.outcomes.append(answer.outcome)
            if theirs and operation.verb == "a" and answer.outcome == "ok" != theirs.outcome:
                replayer.apply(Operation(operation.line, "d", operation.name, ()))
            if check_each:
                replayer.check()
        replayer.check()
    except InvariantBroken as broken:
        run.check = str(broken)
    return run


def _refused(outcomes: Sequence[Outcome]) -> int:
    return outcomes.count("bad") + outcomes.count("panic")


def _regressions(operations: Sequence[Operation], run: Run, answers: Sequence[Answer]) -> int:
    """Count what the crate did and we did not. That a block is not there to be freed has been counted before."""
    rows = zip(operations, run.outcomes, answers, strict=False)  # a run ends early where the books do not balance
    return sum(
        ours != "ok" == theirs.outcome and (operation.verb != "d" or ours != "bad") for operation, ours, theirs in rows
    )


def _answers_beside(path: Path, count: int) -> list[Answer] | None:
    beside = path.with_suffix(".out")
    if beside == path or not beside.exists():
        return None
    answers = list(read_answers(beside))
    if len(answers) != count:
        raise TraceError(f"{beside}: {len(answers)} answers to {count} operations")
    return answers


def _line(summary: Summary) -> str:
    numbers = {
        "operations": summary.operations,
        "failures": summary.failures,
        "refused": summary.refused,
        "crate failures": summary.crate_failures,
        "crate refused": summary.crate_refused,
        "failures where the crate succeeded": summary.failures_where_the_crate_succeeded,
        "like for like": summary.like_for_like,
        "peak used": summary.peak_used_bytes,
        "seconds": f"{summary.seconds:.3f}",
        "check": summary.check,
    }
    return f"{summary.file}: " + ", ".join(
        f"{name} {'-' if number is None else number}" for name, number in numbers.items()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay the files named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Replay allocation traces.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--size-classes", choices=("pow2", "fine"), default="pow2")
    parser.add_argument("--check-each", action="store_true", help="check() after every operation, not only at the end")
    options = parser.parse_args(arguments)
    summaries = []
    for path in options.files:
        try:
            summary = replay(path, options.size_classes, check_each=options.check_each)
        except TraceError as error:
            print(error, file=sys.stderr, flush=True)
            continue
        summaries.append(summary)
        if options.output == "table":
            print(_line(summary), flush=True)
    if options.output == "json":
        print(json.dumps([asdict(summary) for summary in summaries], indent=2))
    if len(summaries) < len(options.files):
        return 2
    return int(any(summary.check != "ok" for summary in summaries))


if __name__ == "__main__":
    sys.exit(main())
