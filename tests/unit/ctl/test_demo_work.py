"""The demo's books: every file ends with one outcome, whatever dies or changes on the way."""

from __future__ import annotations

import hashlib
import random

import pytest

from slabd.ctl.demo.files import Found
from slabd.ctl.demo.messages import Checked, Digests, Failure, Piece, Shared, Stamp
from slabd.ctl.demo.work import BATCH_ITEMS, Outcome, Work, stretches

MIB = 1 << 20
HEAP = 16 * MIB


def found(name: str, size: int) -> Found:
    """Return a file that does not exist."""
    return Found(name, Stamp(1, 2, size, 3, 4))


def digest_of(piece: Piece) -> bytes:
    """Return what stands for a piece's digest."""
    content = b"" if not piece.stamp.size else f"{piece.path} {piece.offset} {piece.length}".encode()
    return hashlib.sha256(content).digest()


def read(work: Work, most: int = BATCH_ITEMS) -> tuple[Piece, ...]:
    """Play the reader: read one batch, and return its pieces."""
    batch = work.take_read(most)
    if batch is None:
        return ()
    work.shared(Shared(batch.batch, {piece.id: b"%d" % piece.id for piece in batch.pieces}, {}, None))
    return batch.pieces


def check_all(work: Work, *, wrong: str = "") -> None:
    """Play the checker: check everything; the file named `wrong` has another digest."""
    while (todo := work.take_check()) is not None:
        batch, pieces = todo
        digests = {piece.id: digest_of(piece) if piece.path != wrong else b"?" for piece in pieces}
        work.checked(Checked(batch, digests, {}))


def digest_all(work: Work, pieces: dict[int, Piece]) -> None:
    """Play a worker: digest everything that is ready."""
    while (todo := work.take_digest()) is not None:
        work.digested(Digests(todo.batch, {piece: digest_of(pieces[piece]) for piece in todo.handles}))


def finish(work: Work, *, wrong: str = "") -> None:
    """Play everybody until nothing is left."""
    pieces: dict[int, Piece] = {}
    while batch := read(work):
        pieces.update((piece.id, piece) for piece in batch)
    digest_all(work, pieces)
    check_all(work, wrong=wrong)
    assert work.finished


def test_everything_matches() -> None:
    """Small, large, and larger than the heap."""
    work = Work([found("a", 1), found("b", HEAP), found("c", 3 * HEAP + 1)], HEAP)
    finish(work)
    assert len(work.outcome_of(Outcome.MATCHED)) == 3
    assert work.totals.bytes_through_heap == 4 * HEAP + 2


def test_a_wrong_digest_is_found() -> None:
    """And named, with both digests."""
    work = Work([found("good", 1), found("bad", 2)], HEAP)
    finish(work, wrong="bad")
    (file,) = work.outcome_of(Outcome.WRONG)
    assert (file.path, "through the heap" in file.reason, b"?".hex() in file.reason) == ("bad", True, True)
    assert [each.path for each in work.outcome_of(Outcome.MATCHED)] == ["good"]


def test_one_wrong_piece_makes_the_file_wrong() -> None:
    """The other pieces of the file are void."""
    work = Work([found("large", 2 * HEAP)], HEAP)
    finish(work, wrong="large")
    assert [file.outcome for file in work.files] == [Outcome.WRONG]
    assert work.files_done == 1


def test_an_empty_file_needs_no_block() -> None:
    """No block has 0 bytes, but the digest of nothing is compared all the same."""
    work = Work([found("empty", 0)], HEAP)
    assert work.take_read() is None
    check_all(work)
    assert work.finished
    assert work.totals.leases == 0
    assert len(work.outcome_of(Outcome.MATCHED)) == 1


@pytest.mark.parametrize("size", [0, 1, HEAP, HEAP + 1, 5 * HEAP // 2])
def test_pieces_cover_a_file_exactly(size: int) -> None:
    """Without gaps and overlaps, and each fits the heap."""
    pieces = stretches(size, HEAP)
    assert [offset for offset, _ in pieces] == [sum(length for _, length in pieces[:at]) for at in range(len(pieces))]
    assert sum(length for _, length in pieces) == size
    assert all(length <= HEAP for _, length in pieces)
    assert (len(pieces) == 1) == (size <= HEAP)


def test_a_batch_takes_a_part_of_the_heap_only() -> None:
    """So that several are under way at once; a file larger than that is a batch of its own."""
    work = Work([found(str(at), MIB // 2) for at in range(5)] + [found("large", HEAP)], HEAP)
    sizes = [len(batch.pieces) for batch in iter(work.take_read, None)]
    assert sizes == [2, 2, 1, 1]


def test_a_batch_has_a_limited_number_of_pieces() -> None:
    """However small they are."""
    work = Work([found(str(at), 1) for at in range(BATCH_ITEMS + 1)], HEAP)
    assert [len(read(work, 10)), len(read(work)), len(read(work))] == [10, BATCH_ITEMS - 9, 0]


def test_the_batch_to_hold_is_always_the_same() -> None:
    """Whichever of the reader's threads was first."""
    work = Work([found(str(at), 1) for at in range(9)], HEAP)
    few, most, more = work.take_read(1), work.take_read(4), work.take_read(4)
    for batch in (more, few, most):
        assert batch is not None
        work.shared(Shared(batch.batch, {piece.id: b"" for piece in batch.pieces}, {}, None))
    held = work.take_digest(hold=True)
    assert held is not None
    assert most is not None
    assert set(held.handles) == {piece.id for piece in most.pieces}


def test_what_a_dead_worker_had_not_opened_goes_to_another() -> None:
    """The handles still stand."""
    work = Work([found("a", 1)], HEAP)
    read(work)
    first = work.take_digest()
    assert first is not None
    work.lost(first.batch)
    second = work.take_digest()
    assert second is not None
    assert second.handles == first.handles
    assert work.totals.read_again == 0


def test_what_a_dead_worker_had_opened_is_read_again() -> None:
    """Its handles are stale."""
    work = Work([found("a", 1), found("b", 1)], HEAP)
    read(work)
    first = work.take_digest()
    assert first is not None
    work.lost(first.batch)
    second = work.take_digest()
    assert second is not None
    work.stale(second.batch)
    assert work.totals.read_again == 2
    finish(work)
    assert len(work.outcome_of(Outcome.MATCHED)) == 2


def test_handles_that_are_stale_for_ever_are_wrong() -> None:
    """It does not go on for ever."""
    work = Work([found("a", 1)], HEAP)
    while read(work):
        digest = work.take_digest()
        assert digest is not None
        work.stale(digest.batch)
    assert [file.reason for file in work.outcome_of(Outcome.WRONG)] == ["its handle was stale 5 times"]


def test_what_a_dead_reader_or_checker_had_in_hand_is_done_by_the_next() -> None:
    """In the same order."""
    work = Work([found("a", 1), found("b", 1), found("c", 1)], HEAP)
    batch = work.take_read(2)
    check = work.take_check()
    assert batch is not None
    assert check is not None
    work.lost(batch.batch)
    work.lost(check[0])
    assert [piece.path for piece in read(work)] == ["a", "b", "c"]
    again = work.take_check()
    assert again is not None
    assert again[1] == check[1]


def test_a_file_that_changed_is_planned_anew() -> None:
    """Both sides have to agree about the new one; answers about the old one are ignored."""
    work = Work([found("a", 1)], HEAP)
    batch = work.take_read()
    old_check = work.take_check()
    assert batch is not None
    assert old_check is not None
    failure = Failure("changed while it was read", changed=True)
    work.shared(Shared(batch.batch, {}, {batch.pieces[0].id: failure}, None))
    (file,) = work.take_changed()
    assert work.take_changed() == []
    work.plan_again(file, Stamp(1, 2, 7, 8, 9))
    work.checked(Checked(old_check[0], {old_check[1][0].id: b"old"}, {}))
    finish(work)
    assert [(file.outcome, file.stamp.size) for file in work.files] == [(Outcome.MATCHED, 7)]


def test_a_file_that_never_stops_changing_is_skipped() -> None:
    """With the reason."""
    work = Work([found("log", 1)], HEAP)
    while (batch := work.take_read()) is not None:
        failures = {piece.id: Failure("changed while it was read", changed=True) for piece in batch.pieces}
        work.shared(Shared(batch.batch, {}, failures, None))
        for file in work.take_changed():
            work.plan_again(file, file.stamp)
    assert [file.reason for file in work.outcome_of(Outcome.SKIPPED)] == ["changed while it was read, 5 times in a row"]
    check_all(work)
    assert work.finished


def test_blocks_of_void_pieces_are_still_given_back() -> None:
    """A file is skipped while some of its pieces are ready: a worker opens and closes them all the same."""
    work = Work([found("large", 2 * HEAP)], HEAP)
    pieces = {piece.id: piece for piece in read(work)}
    work.skip(work.files[0], "gone")
    assert (work.files_done, work.quiet) == (1, False)
    digest_all(work, pieces)
    assert work.take_read() is None
    assert work.take_check() is None
    assert work.finished
    assert work.totals.bytes_through_heap == 0


class Chaos:
    """Plays everybody, badly: answers are lost, handles stale, files unreadable or changing."""

    def __init__(self, seed: int, work: Work) -> None:
        self.rng = random.Random(seed)
        self.work = work
        self.pieces: dict[int, Piece] = {}

    def step(self) -> None:
        """Let one of them do something."""
        self.rng.choice((self.read, self.digest, self.check))()
        for file in self.work.take_changed():
            self.work.plan_again(file, file.stamp)

    def read(self) -> None:
        """Read a batch, or die."""
        if (batch := self.work.take_read(self.rng.randint(1, 9))) is None:
            return
        self.pieces.update((piece.id, piece) for piece in batch.pieces)
        if self.rng.random() < 0.2:
            self.work.lost(batch.batch)
            return
        bad = {each.id: Failure("no", changed=self.rng.random() < 0.5) for each in batch.pieces if self.unlucky()}
        handles = {piece.id: b"" for piece in batch.pieces if piece.id not in bad}
        self.work.shared(Shared(batch.batch, handles, bad, self.rng.choice([None, 0.1])))

    def digest(self) -> None:
        """Digest a batch, or find it stale, or die."""
        if (batch := self.work.take_digest()) is None:
            return
        if self.unlucky():
            self.work.lost(batch.batch)
        elif self.unlucky():
            self.work.stale(batch.batch)
        else:
            self.work.digested(Digests(batch.batch, {each: digest_of(self.pieces[each]) for each in batch.handles}))

    def check(self) -> None:
        """Check a batch, or die."""
        if (todo := self.work.take_check()) is None:
            return
        batch, pieces = todo
        if self.unlucky():
            self.work.lost(batch)
        else:
            self.work.checked(Checked(batch, {piece.id: digest_of(piece) for piece in pieces}, {}))

    def unlucky(self) -> bool:
        """Say yes once in ten times."""
        return self.rng.random() < 0.1


@pytest.mark.parametrize("seed", range(20))
def test_with_deaths_at_random_every_file_ends_once(seed: int) -> None:
    """Whatever is lost, stale, unreadable or changing, and in whatever order."""
    sizes = random.Random(seed)
    work = Work([found(str(at), sizes.choice([0, 1, 5000, 2 * MIB, 40 * MIB])) for at in range(50)], HEAP)
    chaos = Chaos(seed, work)
    for _ in range(100_000):
        if work.finished:
            break
        chaos.step()
    assert work.finished
    assert work.files_done == len(work.files) == sum(len(work.outcome_of(outcome)) for outcome in Outcome)
    assert all("stale" in file.reason for file in work.outcome_of(Outcome.WRONG))
