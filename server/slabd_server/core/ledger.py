"""The ledger: one record per granted block, hold and session, in a store of its own.

It owns the slots: which are taken, which are free, how often each was re-issued. It knows nothing of what the records
mean to each other; `books` keeps them consistent. It is the truth a restarted daemon starts from, so:

1. A record is written whole, with a CRC-32 of its other bytes; `read` refuses one that does not verify.
2. A slot's generation never falls. It is 0 for a slot never used, and rises by one whenever the slot is taken, so a
   BlockRef names one grant for ever. A slot whose generation is exhausted is retired.
3. A freed slot keeps a tombstone: its generation, and the session and sequence number of the operation that freed it.
4. taken + len(free) + retired == high_water <= store.capacity, and every record from high_water on is zero.
5. What was written last is kept at hand, read: a block on its way through a hand-off is looked at a dozen times. The
   store is written each time; `records` and `check` read it.
6. `reserve(n)` is the only method that can run out of memory: after it, n calls of `add` cannot fail.
"""

from __future__ import annotations

import enum
import struct
import zlib
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from slabd_server.core.errors import InvariantBroken, LedgerFull
from slabd_server.core.records import NO_SESSION, SessionId, SlotId
from slabd_server.core.store import RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd_server.core.store import Store

# kind u8 · flags u8 · pending u16 · generation u32 · a u64 · b u64 · c u64 · session u64 · sequence u64 · time f64 ·
# extra u32 · crc32 u32
_RECORD: Final = struct.Struct("<BBHIQQQQQdII")
_GENERATION_MAX: Final = 2**32 - 1
_RECENT: Final = 2048
_ZERO: Final = bytes(RECORD_BYTES)


class Kind(enum.IntEnum):
    """What a slot is used for."""

    FREE = 0
    BLOCK = 1
    HOLD = 2
    SESSION = 3


_KINDS: Final = tuple(Kind)


class Flag(enum.IntEnum):
    """What else is true of a record: bits of `flags`, which is a plain int (an IntFlag costs a microsecond a look)."""

    NONE = 0
    TRANSFER = 1  # BLOCK: the pending open takes the lease over
    READ_ONLY = 2  # SESSION: may open only
    ATTACHED = 4  # SESSION: has the heap mapped and is watched through the kernel
    SHARED = 8  # BLOCK: there has been a handle of it
    LANE = 16  # BLOCK: granted over the lane, so its owner may keep it in its cache


class Record(NamedTuple):
    """A record. What the fields mean depends on `kind`.

    ========  ==============  ===========  ==========  ==============  ==============  ================  ==========
    kind      pending         a            b           c               session         time              extra
    ========  ==============  ===========  ==========  ==============  ==============  ================  ==========
    BLOCK     pending opens   offset       size        requested size  owner, or 0     granted at        0
    HOLD      0               block's slot times open  0               holder          opened at         0
    SESSION   0               secret, low  secret, hi  pid, or 0       the session     opened at         uid + 1
    ========  ==============  ===========  ==========  ==============  ==============  ================  ==========
    """

    kind: Kind
    flags: int
    pending: int
    generation: int
    a: int
    b: int
    c: int
    session: SessionId
    sequence: int
    time: float
    extra: int = 0


def pack_record(record: Record) -> bytes:
    """Return the RECORD_BYTES bytes of a record, checksum included."""
    packed = _RECORD.pack(*record, 0)
    return packed[:-4] + zlib.crc32(packed[:-4]).to_bytes(4, "little")


def unpack_record(data: bytes) -> Record:
    """Read a record's bytes; an all-zero one is a free slot of generation 0.

    Raises:
        InvariantBroken: the checksum does not match, or the kind is unknown.
    """
    if data == _ZERO:
        return Record(Kind.FREE, 0, 0, 0, 0, 0, 0, NO_SESSION, 0, 0.0)
    kind, *fields, checksum = _RECORD.unpack(data)
    if checksum != zlib.crc32(data[:-4]):
        raise InvariantBroken(f"ledger record {data.hex()} has a checksum of {zlib.crc32(data[:-4]):#010x}")
    if kind >= len(_KINDS):
        raise InvariantBroken(f"ledger record {data.hex()} is of an unknown kind, {kind}")
    return Record(_KINDS[kind], *fields)


class Ledger:
    """The slots of one heap and the records in them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recent: dict[int, Record] = {}
        self._free = array("I")
        self._high_water = 0
        self._retired = 0
        self._taken = 0

    def __repr__(self) -> str:
        return f"<Ledger {self._taken} taken, {len(self._free)} free, capacity {self._store.capacity}>"

    def __len__(self) -> int:
        return self._taken

    @property
    def high_water(self) -> int:
        """One more than the highest slot ever taken."""
        return self._high_water

    def reserve(self, slots: int) -> None:
        """Make sure that the next `slots` calls of `add` cannot fail.

        Raises:
            LedgerFull: there is no memory for the records; nothing has changed.
        """
        missing = self._high_water + slots - len(self._free) - self._store.capacity
        if missing > 0:
            # Doubling would hold memory that a large ledger may never need: grow by an eighth.
            self._store.grow(self._store.capacity + max(missing, self._store.capacity // 8, 1024))

    def add(self, record: Record) -> tuple[SlotId, Record]:
        """Take a slot; return it, and the record as written, with the slot's next generation. Call `reserve` first."""
        if self._free:
            slot = self._free.pop()
            generation = self._read(slot).generation + 1
        else:
            slot, generation = self._high_water, 1
            self._high_water += 1
        self._taken += 1
        written = record._replace(generation=generation)
        self._write(slot, written)
        return SlotId(slot), written

    def get(self, slot: int) -> Record:
        """Return the record at `slot`; a free one for a slot that was never taken."""
        if not 0 <= slot < self._high_water:
            return unpack_record(_ZERO)
        return self._read(slot)

    def _read(self, slot: int) -> Record:
        return self._recent.get(slot) or unpack_record(self._store.read(slot))

    def _write(self, slot: int, record: Record) -> None:
        self._store.write(slot, pack_record(record))
        if len(self._recent) >= _RECENT:
            self._recent.clear()
        self._recent[slot] = record

    def update(self, slot: SlotId, record: Record) -> Record:
        """Replace a taken slot's record by one of the same kind and generation, and return it."""
        self._write(slot, record)
        return record

    def reissue(self, slot: SlotId, record: Record) -> Record:
        """Write the record of the next block in a taken slot over that of the last, which is gone.

        Raises:
            LedgerFull: this slot cannot be taken once more; nothing has changed.
        """
        generation = self.get(slot).generation
        if generation >= _GENERATION_MAX:
            raise LedgerFull(f"slot {slot} was re-issued {generation} times, which is all there is")
        written = record._replace(generation=generation + 1)
        self._write(slot, written)
        return written

    def drop(self, slot: SlotId, generation: int, *, session: SessionId, sequence: int) -> None:
        """Free a taken slot of this generation, leaving the tombstone of the operation that did it."""
        tombstone = Record(Kind.FREE, 0, 0, generation, 0, 0, 0, session, sequence, 0.0)
        self._write(slot, tombstone)
        self._taken -= 1
        if generation >= _GENERATION_MAX:
            self._retired += 1
        else:
            self._free.append(slot)

    def records(self) -> Iterator[tuple[SlotId, Record]]:
        """Walk over every taken slot and its record, in the order of slots."""
        for slot in range(self._high_water):
            record = unpack_record(self._store.read(slot))
            if record.kind is not Kind.FREE:
                yield SlotId(slot), record

    def check(self) -> None:
        """Raise InvariantBroken when a rule of the module's docstring does not hold. Linear in the slots."""
        if self._high_water > self._store.capacity:
            raise InvariantBroken(f"{self._high_water} slots used of a store with {self._store.capacity}")
        if self._taken + len(self._free) + self._retired != self._high_water:
            raise InvariantBroken(
                f"{self._taken} taken + {len(self._free)} free + {self._retired} retired slots != {self._high_water}"
            )
        taken = sum(1 for _ in self.records())
        if taken != self._taken:
            raise InvariantBroken(f"{taken} records are taken, the ledger counts {self._taken}")
        self._check_free()
        for slot in range(self._high_water, self._store.capacity):
            if self._store.read(slot) != _ZERO:
                raise InvariantBroken(f"slot {slot} was never taken but has been written")

    def _check_free(self) -> None:
        if len(set(self._free)) != len(self._free):
            raise InvariantBroken("a slot is free twice")
        for slot in self._free:
            if slot >= self._high_water:
                raise InvariantBroken(f"slot {slot} is on the free list, but only {self._high_water} were ever taken")
            record = unpack_record(self._store.read(slot))
            if record.kind is not Kind.FREE:
                raise InvariantBroken(f"slot {slot} is on the free list and taken")
            if record.generation >= _GENERATION_MAX:
                raise InvariantBroken(
                    f"slot {slot} is on the free list, but its generation {record.generation} is last"
                )
