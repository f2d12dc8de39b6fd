"""slabd itself, through its public Python API alone: what a lease costs is what a user's program would pay."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import slabd
from slabd.ctl.bench.catalogue import CLIENT_BYTES
from slabd.ctl.bench.rounds import Work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd.ctl.bench.messages import Place

SMALL: Final = 64
_LEASED_AT_ONCE: Final = 1000


@contextmanager
def untouched(place: Place, size: int) -> Iterator[Work]:
    """Lease, look at the view, release."""
    with slabd.connect(place.address, name="bench") as pool:

        def do() -> None:
            lease = pool.lease(size)
            lease.view  # noqa: B018  # to have it is the point
            lease.release()

        yield Work(do)


def client(place: Place, _clients: int) -> Any:
    """Do the same as one of many clients."""
    return untouched(place, CLIENT_BYTES)


@contextmanager
def written(place: Place, size: int) -> Iterator[Work]:
    """Lease, fill with one copy, release."""
    data = b"x" * size
    with slabd.connect(place.address, name="bench") as pool:

        def do() -> None:
            with pool.lease(size) as lease:
                lease.view[:] = data

        yield Work(do)


@contextmanager
def missed(place: Place, _blocks: int) -> Iterator[Work]:
    """Lease and release a block while nothing may be kept."""
    with slabd.connect(place.address, name="bench", cache_bytes=0) as pool:

        def do() -> None:
            pool.lease(SMALL).release()

        yield Work(do)


@contextmanager
def over_grpc(place: Place, blocks: int) -> Iterator[Work]:
    """Lease and release one block, or several at once, over gRPC, whatever a pool would prefer."""
    with slabd.connect(place.address, name="bench", lane=False) as pool:
        sizes = [SMALL] * blocks

        def one() -> None:
            pool.lease(SMALL).release()

        def batch() -> None:
            pool.release_many(pool.lease_many(sizes))

        yield Work(one if blocks == 1 else batch)


@contextmanager
def among_live(place: Place, live: int) -> Iterator[Work]:
    """Hold so many blocks; then lease more and keep them until the turn is over."""
    with slabd.connect(place.address, name="bench") as pool:
        held: list[slabd.Lease] = []
        while len(held) < live:
            held += pool.lease_many([SMALL] * min(_LEASED_AT_ONCE, live - len(held)))
        kept: list[slabd.Lease] = []

        def settle() -> None:
            pool.release_many(kept)
            kept.clear()

        yield Work(lambda: kept.append(pool.lease(SMALL)), settle)
