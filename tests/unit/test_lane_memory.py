"""The daemon's view of the memory of lanes: allocated before it is written, copied before it is believed."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.descriptors import open_descriptors

from slabd_proto.lane import (
    ENDED,
    HEADER_BYTES,
    PURPOSES,
    RING,
    Answer,
    Completion,
    LaneLayout,
    Submission,
    Verb,
    Word,
    closed_word,
    entry_at,
    open_word,
    pack_submission,
    shut_word,
    unpack_header,
)
from slabd_server.lane_memory import GenerationTable, LaneSegment

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS = 100_000


@pytest.fixture
def table() -> Iterator[GenerationTable]:
    """A heap's table."""
    made = GenerationTable("test", SLOTS)
    yield made
    made.release()


@pytest.fixture
def segment() -> Iterator[LaneSegment]:
    """A session's lane."""
    made = LaneSegment.create("test", 1000, 12_345)
    yield made
    made.close()


def words_of(table: GenerationTable) -> memoryview:
    """Return what a client sees."""
    descriptor = table.read_only_fd()
    view = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)).cast("Q")
    os.close(descriptor)
    return view


def mapped(segment: LaneSegment) -> mmap.mmap:
    """Return the lane as its client maps it."""
    return mmap.mmap(segment.fd, os.fstat(segment.fd).st_size)


# -- generations


def test_gates_are_where_clients_see_them(table: GenerationTable) -> None:
    """Opened, shut and closed, each slot's word is its own."""
    words = words_of(table)
    table.open(5, 7)
    assert (words[4], words[5], words[6]) == (0, open_word(7), 0)
    table.shut(5, 7)
    assert words[5] == shut_word(7)
    table.close(5, 7)
    assert words[5] == closed_word(7)


def test_pages_exist_before_they_are_written(table: GenerationTable) -> None:
    """A table of many slots takes memory as they are granted, in pieces, and not for slots that nobody has."""
    assert table.resident_bytes() == 0
    table.open(0, 1)
    first = table.resident_bytes()
    assert 0 < first < SLOTS * 8
    table.open(1, 1)
    assert table.resident_bytes() == first
    table.open(SLOTS - 1, 1)
    assert table.resident_bytes() >= SLOTS * 8


def test_slots_beyond_the_table_have_no_gate(table: GenerationTable) -> None:
    """They are opened by asking."""
    for change in (table.open, table.shut, table.close):
        change(SLOTS, 1)
        change(2**31, 1)
    assert table.slots == SLOTS


def test_without_memory_there_are_no_gates_from_there_on(
    table: GenerationTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there stays; the daemon does not die of writing to a page that cannot be had."""
    table.open(0, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full)
    table.open(SLOTS - 1, 3)
    reached = table.slots
    assert 0 < reached < SLOTS - 1
    table.open(0, 2)
    table.close(SLOTS - 1, 3)
    assert words_of(table)[0] == open_word(2)


def test_clients_can_only_read_it(table: GenerationTable) -> None:
    """The descriptor that clients get cannot be mapped writable, nor made so, nor cut."""
    descriptor = table.read_only_fd()
    with pytest.raises(OSError, match="denied"):
        mmap.mmap(descriptor, 4096)
    with pytest.raises(OSError):  # noqa: PT011 - whichever error the kernel has for it
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def test_a_heaps_table_is_as_large_as_it_can_need() -> None:
    """A slot for each of the smallest blocks there is room for, and some for sessions and opens."""
    table = GenerationTable.create("small", 1 << 20)
    assert table.slots > (1 << 20) // 64
    watched = [table.watched]
    table.watchers += 1
    watched.append(table.watched)
    assert watched == [False, True]
    table.release()
    table.release()


# -- a lane


def test_a_lane_says_what_it_is(segment: LaneSegment) -> None:
    """Its header has its layout and how much may be cached, and its size is sealed."""
    layout, cache_bytes = unpack_header(os.pread(segment.fd, HEADER_BYTES, 0))
    assert (layout, cache_bytes) == (LaneLayout(1000), 12_345)
    assert os.fstat(segment.fd).st_size == layout.total
    for size in (0, layout.total + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, size)
    seals = fcntl.fcntl(segment.fd, fcntl.F_GET_SEALS)
    assert seals & fcntl.F_SEAL_SEAL


def test_submissions_are_taken_one_by_one(segment: LaneSegment) -> None:
    """Each is there until it is taken, and its place is given back with it."""
    memory, layout = mapped(segment), LaneLayout(1000)
    assert (segment.next_submission(), segment.taken) == (None, 0)
    for number in (1, 2):
        start = layout.submissions + entry_at(number)
        memory[start : start + 64] = pack_submission(number, Submission(Verb.CLOSE, number))
    assert segment.next_submission() == segment.next_submission() == Submission(Verb.CLOSE, 1)
    segment.took()
    assert (segment.next_submission(), segment.taken) == (Submission(Verb.CLOSE, 2), 1)
    segment.took()
    words = memoryview(memory)[:HEADER_BYTES].cast("Q")
    assert (segment.next_submission(), words[Word.SUBMISSIONS_TAKEN]) == (None, 2)


@pytest.mark.parametrize("lie", [2**64 - 1, 2**63, RING + 1])
def test_room_is_never_more_than_there_is(segment: LaneSegment, lie: int) -> None:
    """A client that says it has taken more than it was given gets no more than a ring, and nothing is overwritten."""
    words = memoryview(mapped(segment))[:HEADER_BYTES].cast("Q")
    assert segment.room == RING
    for number in range(10):
        segment.complete(Completion(Answer.REFUSED, number))
    assert segment.room == RING - 10
    words[Word.COMPLETIONS_TAKEN] = 4
    assert segment.room == RING - 6
    words[Word.COMPLETIONS_TAKEN] = lie
    assert 0 <= segment.room <= RING


@pytest.mark.parametrize("lie", [0, 1, 2**64 - 1])
def test_attention_is_the_daemons(segment: LaneSegment, lie: int) -> None:
    """Whatever a client writes there, a recall is odd and its end is even, and the end of a session stays."""
    words = memoryview(mapped(segment))[:HEADER_BYTES].cast("Q")
    seen = []
    for change in (segment.begin_recall, segment.end_recall) * 2:
        words[Word.ATTENTION] = lie
        change()
        seen.append(words[Word.ATTENTION])
    assert seen == [1, 2, 3, 4]
    segment.dismiss()
    assert words[Word.ATTENTION] == ENDED


def test_what_is_cached_is_added_up(segment: LaneSegment) -> None:
    """Sizes times counts of all classes, less what was recalled and not dropped yet; never below nothing."""
    words = memoryview(mapped(segment))[:HEADER_BYTES].cast("Q")
    assert segment.cached() == (0, 0)
    words[Word.CLASS_SIZES], words[Word.CLASS_COUNTS] = 100, 3
    words[Word.CLASS_SIZES + 95], words[Word.CLASS_COUNTS + 95] = 1000, 2
    assert segment.cached() == (2300, 5)
    segment.note_recalled(100)
    segment.note_recalled(1000)
    assert segment.cached() == (1200, 3)
    words[Word.DROPPED_BYTES], words[Word.DROPPED_BLOCKS] = 1100, 2
    assert segment.cached() == (2300, 5)
    words[Word.CLASS_COUNTS] = words[Word.CLASS_COUNTS + 95] = 0
    for _ in range(9):
        segment.note_recalled(10**6)
    assert segment.cached() == (0, 0)


def test_usage_is_read_where_there_is_some(segment: LaneSegment) -> None:
    """A slot that was never written, or that there is not, says nothing; nor does a purpose that there is not."""
    assert segment.usage(5) == (0, 0, 0, 0.0)
    assert segment.usage(1000) == (0, 0, 0, 0.0)
    assert segment.usage(2**40) == (0, 0, 0, 0.0)
    for index in (0, 1, PURPOSES, 2**16):
        assert segment.purpose(index) == ("", "")
    assert len(segment.states(10**9)) == 1000


def test_reading_takes_no_memory(segment: LaneSegment) -> None:
    """What a client has not written stays a hole, however often the daemon looks at it."""
    before = os.fstat(segment.fd).st_blocks
    for slot in range(0, 1000, 50):
        segment.usage(slot)
    segment.states(1000)
    segment.purpose(7)
    segment.cached()
    assert os.fstat(segment.fd).st_blocks == before


def test_without_memory_nothing_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that cannot be made leaves no descriptor."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    before = open_descriptors()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="no space"):
        LaneSegment.create("test", 1000, 0)
    assert open_descriptors() == before


def test_a_closed_lane_is_closed(segment: LaneSegment) -> None:
    """Closing again does nothing."""
    number = segment.fd
    segment.close()
    segment.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)
