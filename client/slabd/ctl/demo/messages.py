"""What the parent and its children say to each other. Plain frozen records; nothing here does I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

# How long a handle lives that nobody opens: those of a reader that died before it could tell of them.
HANDLE_SECONDS: Final = 60.0

PieceId: TypeAlias = int
BatchId: TypeAlias = int


class Stamp(NamedTuple):
    """What a file looked like; two equal stamps mean that it has not changed in between."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class Piece(NamedTuple):
    """A stretch of a file that goes into one block: the whole file, unless it is larger than the heap."""

    id: PieceId
    path: str
    offset: int
    length: int
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a piece could not be read; `changed` when the file is not what its stamp says."""

    reason: str
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """To a child: connect, and say Ready."""

    address: str
    name: str


@dataclass(frozen=True, slots=True)
class Ready:
    """From a child: it is connected."""


@dataclass(frozen=True, slots=True)
class Read:
    """To the reader: lease blocks for these pieces and read them."""

    batch: BatchId
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Shared:
    """From the reader: handles of what it could read, and how many seconds it waited for room, None if it did not."""

    batch: BatchId
    handles: dict[PieceId, bytes]
    failures: dict[PieceId, Failure]
    waited: float | None


@dataclass(frozen=True, slots=True)
class Digest:
    """To a worker: digest these blocks. With `hold`, open them, say Holding, and stand still."""

    batch: BatchId
    handles: dict[PieceId, bytes]
    hold: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    """From a worker told to hold: it has every block of the batch open, and has begun to read."""

    batch: BatchId


@dataclass(frozen=True, slots=True)
class Digests:
    """From a worker: SHA-256 of each piece; its blocks are released."""

    batch: BatchId
    digests: dict[PieceId, bytes]


@dataclass(frozen=True, slots=True)
class Stale:
    """From a worker: the batch could not be opened, because somebody had opened it before."""

    batch: BatchId


@dataclass(frozen=True, slots=True)
class Checked:
    """From the checker: SHA-256 of each piece, straight from its file."""

    batch: BatchId
    digests: dict[PieceId, bytes]
    failures: dict[PieceId, Failure]


ToChild: TypeAlias = Start | Read | Digest
FromChild: TypeAlias = Ready | Shared | Holding | Digests | Stale | Checked
