"""The lane's byte layout: what is packed is unpacked, and nothing else is."""

from __future__ import annotations

import mmap
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slabd_proto.lane import (
    CALL_SITE_BYTES_MAX,
    CLASSES,
    ENDED,
    ENTRY_BYTES,
    HEADER_BYTES,
    LABEL_BYTES_MAX,
    MAGIC,
    PURPOSE_BYTES,
    PURPOSES,
    RING,
    SLOTS_MAX,
    VERSION,
    WORD_BYTES,
    Completion,
    LaneFormatError,
    LaneLayout,
    State,
    Submission,
    Word,
    closed_word,
    entry_at,
    open_word,
    pack_completion,
    pack_detail,
    pack_header,
    pack_purpose,
    pack_submission,
    shut_word,
    unpack_completion,
    unpack_detail,
    unpack_header,
    unpack_purpose,
    unpack_submission,
)

bytes_8 = st.integers(0, 2**8 - 1)
words_32 = st.integers(0, 2**32 - 1)
words_64 = st.integers(0, 2**64 - 1)
numbers = st.integers(1, 2**64 - 1)
submissions = st.builds(Submission, bytes_8, words_32, words_32, words_32, words_64, words_64)
completions = st.builds(
    Completion, bytes_8, st.integers(0, 2**64 - 1), words_32, words_32, words_32, words_64, words_64, words_64
)


# -- entries


@given(numbers, submissions)
def test_submissions_come_back(number: int, entry: Submission) -> None:
    """Every field of a submission survives, in exactly one entry's bytes."""
    data = pack_submission(number, entry)
    assert len(data) == ENTRY_BYTES
    assert unpack_submission(number, data) == entry


@given(numbers, completions)
def test_completions_come_back(number: int, entry: Completion) -> None:
    """Every field of a completion survives, in exactly one entry's bytes."""
    data = pack_completion(number, entry)
    assert len(data) == ENTRY_BYTES
    assert unpack_completion(number, data) == entry


@given(numbers, submissions, completions, st.integers(0, ENTRY_BYTES - 1), st.integers(1, 255))
def test_one_wrong_byte_is_noticed(
    number: int, submission: Submission, completion: Completion, at: int, change: int
) -> None:
    """Whichever byte of an entry is another, padding and checksum included, it is no entry."""
    for data, unpack in (
        (pack_submission(number, submission), unpack_submission),
        (pack_completion(number, completion), unpack_completion),
    ):
        assert unpack(number, data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]) is None


@given(numbers, submissions, submissions, st.integers(1, ENTRY_BYTES - 1))
def test_half_an_entry_is_none(number: int, old: Submission, new: Submission, words: int) -> None:
    """What is written over another lap's entry, in whatever order of words, is an entry when all of it is there."""
    before, after = pack_submission(number, old), pack_submission(number + RING if number < 2**63 else 1, new)
    mixed = b"".join(
        (after if words >> index & 1 else before)[index * 8 : index * 8 + 8] for index in range(ENTRY_BYTES // 8)
    )
    for reader in (number, number + RING if number < 2**63 else 1):
        found = unpack_submission(reader, mixed)
        assert found is None or mixed in (before, after)


@given(numbers, submissions, completions)
def test_other_laps_and_empty_rings_are_not_read(number: int, submission: Submission, completion: Completion) -> None:
    """An entry is good for its own number only; a ring of zeros has none."""
    for other in (number - 1, number + 1, number - RING, number + RING):
        assert unpack_submission(other, pack_submission(number, submission)) is None
        assert unpack_completion(other, pack_completion(number, completion)) is None
    assert unpack_submission(number, bytes(ENTRY_BYTES)) is None
    assert unpack_completion(number, bytes(ENTRY_BYTES)) is None


def test_an_empty_ring_of_entry_zero_is_not_read_either() -> None:
    """Zeros do not verify as entry number 0, whose fields they would be: they lack the checksum."""
    assert zlib.crc32(bytes(ENTRY_BYTES - 4)) != 0
    assert unpack_submission(0, bytes(ENTRY_BYTES)) is None


def test_a_ring_goes_round() -> None:
    """Entries 1 to RING lie side by side, and the next lap takes their places in turn."""
    assert [entry_at(number) for number in range(1, RING + 1)] == list(range(0, RING * ENTRY_BYTES, ENTRY_BYTES))
    assert [entry_at(number + RING) for number in (1, 2, RING)] == [entry_at(number) for number in (1, 2, RING)]


# -- where everything is


@pytest.mark.parametrize("slots", [1, 511, 512, 513, 4096, 100_000, SLOTS_MAX])
def test_nothing_overlaps(slots: int) -> None:
    """Header, rings, purposes and columns follow each other, on pages of their own where somebody allocates them."""
    layout = LaneLayout(slots)
    parts = [
        (0, HEADER_BYTES),
        (layout.submissions, RING * ENTRY_BYTES),
        (layout.completions, RING * ENTRY_BYTES),
        (layout.purposes, PURPOSES * PURPOSE_BYTES),
        (layout.states, slots),
        (layout.details, slots * WORD_BYTES),
        (layout.since, slots * WORD_BYTES),
        (layout.total, 0),
    ]
    for (start, size), (following, _) in pairwise(parts):
        assert start + size <= following
        assert following % mmap.PAGESIZE == 0


def test_words_are_each_sides_own() -> None:
    """No two words are the same, all lie in the header, and what each side changes is on lines of its own."""
    places = {word.value for word in Word}
    places |= {Word.CLASS_SIZES + index for index in range(CLASSES)}
    places |= {Word.CLASS_COUNTS + index for index in range(CLASSES)}
    assert len(places) == len(Word) - 2 + 2 * CLASSES
    assert max(places) < HEADER_BYTES // WORD_BYTES
    line = 64 // WORD_BYTES
    daemons = {word // line for word in (Word.SUBMISSIONS_TAKEN, Word.POLLING, Word.ATTENTION)}
    clients = {word // line for word in (Word.COMPLETIONS_TAKEN, Word.DROPPED_BYTES, Word.DROPPED_BLOCKS)}
    classes = {(word + index) // line for word in (Word.CLASS_SIZES, Word.CLASS_COUNTS) for index in range(CLASSES)}
    assert not daemons & (clients | classes)
    assert len(daemons) == 3


def test_words_that_mean_something_by_their_bits() -> None:
    """ENDED reads as a recall that does not end; the words of a gate differ from each other and between generations."""
    assert ENDED % 2 == 1
    words = [make(generation) for generation in range(5) for make in (open_word, shut_word, closed_word)]
    assert len(set(words)) == 15
    assert open_word(2**32 - 1) < closed_word(2**32 - 1) < 2**64
    assert State(0) is State.FREE  # what a page that was never touched says
    assert closed_word(0) != 0 == open_word(0)  # generations begin at 1, so an untouched word opens nothing


# -- the header


@given(st.integers(1, SLOTS_MAX), words_64)
def test_headers_come_back(slots: int, cache_bytes: int) -> None:
    """A header says how large the columns are and how much may be cached, and every changing word begins as 0."""
    data = pack_header(LaneLayout(slots), cache_bytes)
    assert len(data) == HEADER_BYTES
    assert unpack_header(data) == (LaneLayout(slots), cache_bytes)
    words = memoryview(data).cast("Q")
    assert [index for index, word in enumerate(words) if word and index > Word.CACHE_BYTES] == []


@pytest.mark.parametrize("version", [0, VERSION + 1, 2**64 - 1])
def test_other_versions_are_refused(version: int) -> None:
    """A lane of another version is not used, and the message names both."""
    data = bytearray(pack_header(LaneLayout(64), 0))
    memoryview(data).cast("Q")[Word.VERSION] = version
    with pytest.raises(LaneFormatError, match=rf"{VERSION}.*{version}"):
        unpack_header(bytes(data))


def test_other_memory_is_refused() -> None:
    """What does not begin as a lane is none."""
    assert MAGIC.to_bytes(8, "little") == b"SLABLANE"
    with pytest.raises(LaneFormatError, match="no lane"):
        unpack_header(bytes(HEADER_BYTES))


# -- the usage table


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**16 - 1))
def test_details_come_back(size: int, purpose: int) -> None:
    """A word has room for a requested size below 256 TiB and a purpose."""
    word = pack_detail(size, purpose)
    assert 0 <= word < 2**64
    assert unpack_detail(word) == (size, purpose)


def test_every_purpose_has_a_number_in_a_detail() -> None:
    """The purposes there are fit in what a detail leaves for them."""
    assert unpack_detail(pack_detail(2**48 - 1, PURPOSES - 1)) == (2**48 - 1, PURPOSES - 1)


@given(st.text(max_size=30), st.text(max_size=60))
def test_purposes_come_back(label: str, call_site: str) -> None:
    """Label and call site of any alphabet survive; what cannot be encoded is replaced."""
    data = pack_purpose(label, call_site)
    assert len(data) <= PURPOSE_BYTES
    expected = tuple(text.encode(errors="replace").decode() for text in (label, call_site))
    assert unpack_purpose(data.ljust(PURPOSE_BYTES, b"\0")) == expected


@given(st.text("aß漢\ud800", min_size=80, max_size=300), st.text("aß漢", min_size=80, max_size=600))
def test_long_purposes_are_cut(label: str, call_site: str) -> None:
    """Texts that are too long lose their ends, wherever in a character that is, and the record has its place."""
    data = pack_purpose(label, call_site)
    assert len(data) < PURPOSE_BYTES
    found = unpack_purpose(data.ljust(PURPOSE_BYTES, b"\xff"))
    assert found is not None
    for text, whole, most in ((found[0], label, LABEL_BYTES_MAX), (found[1], call_site, CALL_SITE_BYTES_MAX)):
        assert text.encode()[: most - 4] == whole.encode(errors="replace")[: most - 4]


@given(st.binary(min_size=PURPOSE_BYTES, max_size=PURPOSE_BYTES))
def test_noise_is_no_purpose(data: bytes) -> None:
    """Random bytes are no purpose, or a whole one by a chance that is not taken here; they never raise."""
    found = unpack_purpose(data)
    assert found is None or data[:4] == bytes(4)


@given(st.text(min_size=1, max_size=20), st.integers(0, 27), st.integers(1, 255))
def test_a_damaged_purpose_is_none(label: str, at: int, change: int) -> None:
    """A record that is being written says nothing: any byte of it that is another is noticed."""
    data = bytearray(pack_purpose(label, "x" * 20).ljust(PURPOSE_BYTES, b"\0"))
    at = min(at, len(pack_purpose(label, "x" * 20)) - 1)
    data[at] ^= change
    assert unpack_purpose(bytes(data)) is None
