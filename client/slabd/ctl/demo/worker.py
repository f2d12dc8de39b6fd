"""A worker: opens handles, computes SHA-256 in place over read-only memory, closes. It never sees a file.

Runs as `python -m slabd.ctl.demo.worker`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import slabd
from slabd.ctl.demo import child
from slabd.ctl.demo.messages import Digest, Digests, Holding, Stale

if TYPE_CHECKING:
    from collections.abc import Mapping


def serve(pool: slabd.Pool, pipe: child.Pipe) -> None:
    """Digest batch after batch."""
    while True:
        match pipe.receive():
            case Digest(batch, handles, hold=True):
                hold(pool, pipe, batch, handles)
            case Digest(batch, handles):
                pipe.send(digest_batch(pool, batch, handles))
            case other:
                raise TypeError(f"a worker does not understand {other!r}")


def digest_batch(pool: slabd.Pool, batch: int, handles: Mapping[int, bytes]) -> Digests | Stale:
    """Digest each block where it lies."""
    try:
        blocks = pool.open_many(handles.values())
    except slabd.StaleHandle:
        # A worker that died had opened them, or one of them: then the others have been given back too.
        return Stale(batch)
    digests = {piece: hashlib.sha256(block.view).digest() for piece, block in zip(handles, blocks, strict=True)}
    pool.release_many(blocks)
    return Digests(batch, digests)


def hold(pool: slabd.Pool, pipe: child.Pipe, batch: int, handles: Mapping[int, bytes]) -> None:
    """Open the blocks, begin to read them, and stand still with all of them open: here this process will be killed."""
    blocks = pool.open_many(handles.values())
    half = hashlib.sha256(blocks[0].view[: len(blocks[0]) // 2]).digest()
    pipe.send(Holding(batch))
    pipe.receive()
    raise RuntimeError(f"a worker that holds is killed, not spoken to (it had come to {half.hex()})")


if __name__ == "__main__":
    child.main(serve, read_only=True)
