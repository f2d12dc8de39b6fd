"""The reader: a block for each piece, filled by readinto() on the block's own memory, shared, and let go.

It releases its lease as soon as the handle is made, so that the block lives by the handle alone: it returns when the
one worker that was promised it has closed it or has died. Runs as `python -m slabd.ctl.demo.reader`.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import slabd
from slabd.ctl.demo import child
from slabd.ctl.demo.files import stamp_of
from slabd.ctl.demo.messages import HANDLE_SECONDS, Failure, Piece, Read, Shared

if TYPE_CHECKING:
    from collections.abc import Sequence

# Workers empty the heap as fast as they can digest: one that has not moved for so long is stuck.
_PATIENCE_SECONDS: Final = 60.0
_LABEL_BYTES: Final = 128
_THREADS: Final = 2
# A path that has become a pipe or a device meanwhile must not block the open.
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def serve(pool: slabd.Pool, pipe: child.Pipe) -> None:
    """Read batch after batch, two at a time: one thread reads files while the other is on the line to the daemon."""
    with ThreadPoolExecutor(_THREADS) as threads:
        while True:
            match pipe.receive():
                case Read(batch, pieces):
                    threads.submit(_answer, pool, pipe, batch, pieces)
                case other:
                    raise TypeError(f"the reader does not understand {other!r}")


def _answer(pool: slabd.Pool, pipe: child.Pipe, batch: int, pieces: Sequence[Piece]) -> None:
    try:
        pipe.send(read_batch(pool, batch, pieces))
    except BaseException:  # noqa: BLE001  # whatever it is: in a thread it would go unseen, and the parent wait for ever
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def read_batch(pool: slabd.Pool, batch: int, pieces: Sequence[Piece]) -> Shared:
    """Read pieces into blocks, and share those that could be read."""
    leases, waited = _lease(pool, pieces)
    failures: dict[int, Failure] = {}
    for piece, lease in zip(pieces, leases, strict=True):
        if (failure := fill(piece, lease.view)) is not None:
            failures[piece.id] = failure
    good = [(piece, lease) for piece, lease in zip(pieces, leases, strict=True) if piece.id not in failures]
    handles = pool.share_many([lease for _, lease in good], ttl=HANDLE_SECONDS)
    pool.release_many(leases)
    named = {piece.id: bytes(handle) for (piece, _), handle in zip(good, handles, strict=True)}
    return Shared(batch, named, failures, waited)


def fill(piece: Piece, view: memoryview) -> Failure | None:
    """Read a piece straight into a block's memory; a failure when it cannot be read or is not what it was."""
    try:
        descriptor = os.open(piece.path, _FLAGS)
    except OSError as error:
        return Failure(error.strerror or str(error))
    try:
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if stamp_of(os.fstat(descriptor)) != piece.stamp:
                return Failure("changed since it was found", changed=True)
            file.seek(piece.offset)
            done = 0
            while done < piece.length:
                count = file.readinto(view[done:])
                if not count:
                    return Failure("became shorter while it was read", changed=True)
                done += count
            # Whoever wrote to it meanwhile has moved its times, or its size.
            if stamp_of(os.fstat(descriptor)) != piece.stamp:
                return Failure("changed while it was read", changed=True)
    except OSError as error:
        return Failure(error.strerror or str(error))
    return None


def _lease(pool: slabd.Pool, pieces: Sequence[Piece]) -> tuple[list[slabd.Lease], float | None]:
    """Lease a block for each piece; when the heap is full, wait, and say how long."""
    sizes = [piece.length for piece in pieces]
    label = _label(pieces)
    try:
        return pool.lease_many(sizes, label=label, timeout=0), None
    except slabd.TooLarge:
        raise
    except slabd.OutOfMemory:
        began = time.perf_counter()
        leases = pool.lease_many(sizes, label=label, timeout=_PATIENCE_SECONDS)
        return leases, time.perf_counter() - began


def _label(pieces: Sequence[Piece]) -> str:
    """Return what operators see beside the blocks: the first file's name."""
    more = f" and {len(pieces) - 1} more" if len(pieces) > 1 else ""
    name = os.path.basename(pieces[0].path).encode(errors="replace")[: _LABEL_BYTES - len(more)]  # noqa: PTH119  # text in, text out
    return name.decode(errors="ignore") + more


if __name__ == "__main__":
    child.main(serve, read_only=False)
