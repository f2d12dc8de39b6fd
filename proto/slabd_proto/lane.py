"""The byte layout of the lane: the memory that one session's client and the daemon share. Pure: bytes in, bytes out.

A lane is a memfd. All numbers are little-endian, every word is eight bytes long, aligned, and written by one side only:

    header        HEADER_BYTES: static words, and one line of 64 bytes for each word that changes
    submissions   RING entries of ENTRY_BYTES, client to daemon
    completions   RING entries of ENTRY_BYTES, daemon to client
    purposes      PURPOSES records of PURPOSE_BYTES: label and call site, written by the client
    usage         three columns, indexed by ledger slot, written by the client:
                      states   one byte each: FREE, IN_USE or CACHED
                      details  one word each: requested size and purpose, see `pack_detail`
                      since    one float64 each: when it was leased last, CLOCK_MONOTONIC in seconds

**Rings.** Entry number n (from 1) lies at (n - 1) mod RING. It carries n and a CRC-32 of its other bytes. The reader
expects n and stops at the first entry that does not verify: one that is stale (it carries n - RING), half-written or
damaged. So plain stores in any order are enough on any memory model. Each side publishes how many entries it has taken,
and the other writes no further than RING past that.

**Generations.** Beside the lanes every heap has one table, written by the daemon, read by all: a word for each ledger
slot. Its gate is open (`open_word`) while the block may be opened by a handle; shut (`shut_word`) when no promised open
is left, perhaps because the one who asks has just been counted; closed (`closed_word`) when the block is on its way to
be free, or free. Who opens a block wants an open gate before it posts that, and one that is not closed afterwards.

**Attention.** One word tells the client to look up. It is even in peace. It is odd while the daemon takes cached blocks
back, and another even number afterwards; ENDED, which is odd too, once the session can do nothing any more. A client
that takes a block out of its cache writes IN_USE first, reads this word second, and the block's generation third; the
daemon writes this word first, issues a barrier, and reads the states second. So one of them sees the other: Dekker's
algorithm, with membarrier(2) on the side that can wait. A second barrier separates the new generations of what was
taken from the even number that ends it.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

MAGIC: Final = int.from_bytes(b"SLABLANE", "little")
VERSION: Final = 2
WORD_BYTES: Final = 8
_PAGE_BYTES: Final = 4096

RING: Final = 1024
ENTRY_BYTES: Final = 64
CLASSES: Final = 96
PURPOSES: Final = 1024
PURPOSE_BYTES: Final = 512
LABEL_BYTES_MAX: Final = 128
CALL_SITE_BYTES_MAX: Final = 256
# One ledger slot takes 17 bytes of the usage columns and 8 of the generations. They are sparse: only pages that are
# touched exist. A slot beyond is leased and handed off over gRPC.
SLOTS_MAX: Final = 1 << 22

HEADER_BYTES: Final = _PAGE_BYTES


class Word(IntEnum):
    """Where the words of the header are, counted in words."""

    MAGIC = 0  # static, by the daemon
    VERSION = 1
    SLOTS = 2  # how many slots the usage columns have
    CACHE_BYTES = 3  # how much the client may keep cached
    SUBMISSIONS_TAKEN = 16  # by the daemon
    POLLING = 24  # by the daemon: 1 while it looks by itself, 0 when it has to be woken
    ATTENTION = 32  # by the daemon, see above
    COMPLETIONS_TAKEN = 48  # by the client
    DROPPED_BYTES = 56  # by the client: recalled blocks that it has found gone, in all and ever
    DROPPED_BLOCKS = 57
    CACHE_HITS = 58  # by the client: leases that took a block which was at hand, in all and ever
    CACHE_MISSES = 59  # by the client: leases for which the daemon was asked
    CLASS_SIZES = 64  # by the client, CLASSES words: the size of the blocks of a class
    CLASS_COUNTS = (
        192  # by the client, CLASSES words: how many of them are cached, those recalled and not yet dropped included
    )


ENDED: Final = (1 << 62) + 1


class State(IntEnum):
    """What a granted block is doing, in the states column."""

    FREE = 0
    IN_USE = 1
    CACHED = 2


class Verb(IntEnum):
    """What a client submits."""

    LEASE = 1
    RETURN = 2
    SHARE = 3
    OPEN = 4
    CLOSE = 5
    RESIZE = 6
    KEEP = 7


class Answer(IntEnum):
    """What the daemon completes: a LEASE with blocks, and a refusal when there are fewer than were asked for.

    And, unasked, a RETURN that wants its block BACK: it is granted anew, now that those are gone who had it open.
    """

    GRANTED = 1
    REFUSED = 2
    BACK = 3


class LaneFormatError(ValueError):
    """The memory is no lane, or of another version."""


class Submission(NamedTuple):
    """An entry of the submission ring. What the fields mean depends on `verb`.

    ======  ==============  ==========  ===================  =========
    verb    slot, gen.      quantity    a                    b
    ======  ==============  ==========  ===================  =========
    LEASE   -               blocks      size                 alignment
    RETURN  the block       1: BACK     size, if cached      alignment
    SHARE   the block       opens       TTL in us, 0: usual  size
    OPEN    the block       -           -                    -
    CLOSE   the block       -           -                    -
    RESIZE  the block       -           size                 -
    KEEP    the block       -           -                    -
    ======  ==============  ==========  ===================  =========
    """

    verb: int
    slot: int = 0
    generation: int = 0
    quantity: int = 0
    a: int = 0
    b: int = 0


class Completion(NamedTuple):
    """An entry of the completion ring: one granted block of the LEASE numbered `request`, or its refusal.

    With `left` above 0 there will be another for the same request. Requests of `min_size` to `size` bytes get a block
    of this size. Of a block that is BACK, `request` is the alignment.
    """

    answer: int
    request: int
    left: int = 0
    slot: int = 0
    generation: int = 0
    offset: int = 0
    size: int = 0
    min_size: int = 0


@dataclass(frozen=True, slots=True)
class LaneLayout:
    """Where everything is in a lane whose usage columns have `slots` slots. Offsets and sizes are in bytes."""

    slots: int

    @property
    def submissions(self) -> int:
        """The submission ring."""
        return HEADER_BYTES

    @property
    def completions(self) -> int:
        """The completion ring."""
        return self.submissions + RING * ENTRY_BYTES

    @property
    def purposes(self) -> int:
        """The purposes. Everything before is allocated when the lane is made; what follows when it is used."""
        return self.completions + RING * ENTRY_BYTES

    @property
    def states(self) -> int:
        """The column of states."""
        return self.purposes + PURPOSES * PURPOSE_BYTES

    @property
    def details(self) -> int:
        """The column of details."""
        return self.states + _whole_pages(self.slots)

    @property
    def since(self) -> int:
        """The column of times."""
        return self.details + _whole_pages(self.slots * WORD_BYTES)

    @property
    def total(self) -> int:
        """The size of the lane."""
        return self.since + _whole_pages(self.slots * WORD_BYTES)


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES


# verb u8 · pad · quantity u32 · number u64 · slot u32 · generation u32 · a u64 · b u64 · pad · crc32 u32
_SUBMISSION: Final = struct.Struct("<BxxxIQIIQQ20x")
# answer u8 · pad · left u32 · number u64 · slot u32 · generation u32 · offset u64 · size u64 · min_size u64 ·
# request u64 · pad u32 · crc32 u32
_COMPLETION: Final = struct.Struct("<BxxxIQIIQQQQ4x")
_CHECK: Final = struct.Struct("<I")
_BODY_BYTES: Final = ENTRY_BYTES - _CHECK.size


def pack_submission(number: int, entry: Submission) -> bytes:
    """Return the ENTRY_BYTES bytes of submission number `number`."""
    verb, slot, generation, quantity, a, b = entry
    body = _SUBMISSION.pack(verb, quantity, number, slot, generation, a, b)
    return body + _CHECK.pack(zlib.crc32(body))


def unpack_submission(number: int, data: bytes) -> Submission | None:
    """Read ENTRY_BYTES bytes; None unless they are submission number `number`, whole."""
    body = data[:_BODY_BYTES]
    verb, quantity, found, slot, generation, a, b = _SUBMISSION.unpack(body)
    if found != number or data[_BODY_BYTES:] != _CHECK.pack(zlib.crc32(body)):
        return None
    return Submission(verb, slot, generation, quantity, a, b)


def pack_completion(number: int, entry: Completion) -> bytes:
    """Return the ENTRY_BYTES bytes of completion number `number`."""
    answer, request, left, slot, generation, offset, size, min_size = entry
    body = _COMPLETION.pack(answer, left, number, slot, generation, offset, size, min_size, request)
    return body + _CHECK.pack(zlib.crc32(body))


def unpack_completion(number: int, data: bytes) -> Completion | None:
    """Read ENTRY_BYTES bytes; None unless they are completion number `number`, whole."""
    body = data[:_BODY_BYTES]
    answer, left, found, slot, generation, offset, size, min_size, request = _COMPLETION.unpack(body)
    if found != number or data[_BODY_BYTES:] != _CHECK.pack(zlib.crc32(body)):
        return None
    return Completion(answer, request, left, slot, generation, offset, size, min_size)


def entry_at(number: int) -> int:
    """Return where entry `number`, from 1, lies in its ring, in bytes."""
    return (number - 1) % RING * ENTRY_BYTES


_SHUT: Final = 1
_CLOSED: Final = 2


def open_word(generation: int) -> int:
    """Return a slot's word in the table of generations while its block may be opened."""
    return generation << 2


def shut_word(generation: int) -> int:
    """Return a slot's word while no promised open of its block is left."""
    return generation << 2 | _SHUT


def closed_word(generation: int) -> int:
    """Return a slot's word once its block is on its way to be free, or free."""
    return generation << 2 | _CLOSED


def may_stay(found: int, generation: int) -> bool:
    """Whether a slot's word, read after an open was posted, says that the open has succeeded."""
    return found & ~_SHUT == generation << 2


_SIZE_BITS: Final = 48
_SIZE_MASK: Final = (1 << _SIZE_BITS) - 1


def pack_detail(requested_size: int, purpose: int) -> int:
    """Return the word of the details column for a lease; never 0. `purpose` is an index into the purposes."""
    return purpose << _SIZE_BITS | requested_size


def unpack_detail(word: int) -> tuple[int, int]:
    """Return the requested size and the purpose that a word of the details column tells."""
    return word & _SIZE_MASK, word >> _SIZE_BITS


# label length u16 · call site length u16 · crc32 u32 of the texts
_PURPOSE: Final = struct.Struct("<HHI")


def pack_purpose(label: str, call_site: str) -> bytes:
    """Return the record of a purpose, shorter than PURPOSE_BYTES. Texts that are too long lose their ends."""
    first = label.encode(errors="replace")[:LABEL_BYTES_MAX]
    second = call_site.encode(errors="replace")[:CALL_SITE_BYTES_MAX]
    return _PURPOSE.pack(len(first), len(second), zlib.crc32(first + second)) + first + second


def unpack_purpose(data: bytes) -> tuple[str, str] | None:
    """Return the label and the call site of a record of PURPOSE_BYTES; None unless it is whole."""
    first, second, check = _PURPOSE.unpack_from(data)
    texts = data[_PURPOSE.size : _PURPOSE.size + first + second]
    if first > LABEL_BYTES_MAX or second > CALL_SITE_BYTES_MAX or zlib.crc32(texts) != check:
        return None
    return texts[:first].decode(errors="replace"), texts[first:].decode(errors="replace")


def pack_header(layout: LaneLayout, cache_bytes: int) -> bytes:
    """Return the first HEADER_BYTES of a new lane."""
    words = [0] * (HEADER_BYTES // WORD_BYTES)
    words[Word.MAGIC], words[Word.VERSION] = MAGIC, VERSION
    words[Word.SLOTS], words[Word.CACHE_BYTES] = layout.slots, cache_bytes
    return struct.pack(f"<{len(words)}Q", *words)


def unpack_header(data: bytes) -> tuple[LaneLayout, int]:
    """Return the layout of the lane that begins with these HEADER_BYTES, and how much may be cached.

    Raises:
        LaneFormatError: it is no lane, or of another version.
    """
    if len(data) != HEADER_BYTES:
        raise LaneFormatError(f"no lane: its header has {len(data)} bytes, not {HEADER_BYTES}")
    words = struct.unpack(f"<{HEADER_BYTES // WORD_BYTES}Q", data)
    if words[Word.MAGIC] != MAGIC:
        raise LaneFormatError(f"no lane: it begins with {data[:8]!r}")
    if words[Word.VERSION] != VERSION:
        raise LaneFormatError(f"this side speaks version {VERSION} of the lane, the other {words[Word.VERSION]}")
    return LaneLayout(words[Word.SLOTS]), words[Word.CACHE_BYTES]


# membarrier(2) is in no library that Python knows. The daemon issues GLOBAL_EXPEDITED barriers, clients register for
# them: include/uapi/linux/membarrier.h, since Linux 4.16.
MEMBARRIER_NUMBERS: Final = {"x86_64": 324, "aarch64": 283, "riscv64": 283}
MEMBARRIER_GLOBAL_EXPEDITED: Final = 1 << 1
MEMBARRIER_REGISTER_GLOBAL_EXPEDITED: Final = 1 << 2
