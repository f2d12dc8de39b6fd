"""What the standard library has: named segments, made one by one or by a manager; and the floors, a list and memcpy."""

from __future__ import annotations

import mmap
import multiprocessing
import os
from contextlib import closing, contextmanager
from multiprocessing.managers import SharedMemoryManager, dispatch  # type: ignore[attr-defined]
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, Any

from slabd.ctl.bench.catalogue import CLIENT_BYTES
from slabd.ctl.bench.rounds import Work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd.ctl.bench.messages import Place


@contextmanager
def untouched(_place: Place, size: int) -> Iterator[Work]:
    """Make a segment, look at it, unlink it."""

    def do() -> None:
        segment = SharedMemory(create=True, size=size)
        segment.buf  # noqa: B018  # to have it is the point
        segment.close()
        segment.unlink()

    yield Work(do)


def client(place: Place, _clients: int) -> Any:
    """Do the same as one of many clients."""
    return untouched(place, CLIENT_BYTES)


@contextmanager
def written(_place: Place, size: int) -> Iterator[Work]:
    """Make a segment, fill it with one copy, unlink it."""
    data = b"x" * size

    def do() -> None:
        segment = SharedMemory(create=True, size=size)
        _view(segment)[:size] = data
        segment.close()
        segment.unlink()

    yield Work(do)


@contextmanager
def managed(_place: Place, size: int) -> Iterator[Work]:
    """Make a segment through a manager, look at it, have the manager's process unlink it."""
    # Never by fork: this process has gRPC's threads.
    with SharedMemoryManager(ctx=multiprocessing.get_context("spawn")) as manager:

        def do() -> None:
            segment = manager.SharedMemory(size)
            segment.buf  # noqa: B018  # to have it is the point
            segment.close()
            _release(manager, segment.name)

        yield Work(do)


def _release(manager: Any, name: str) -> None:
    """Have the manager unlink one segment: its own call, for which it has no public method but its end."""
    with manager._Client(manager._address, authkey=manager._authkey) as connection:  # noqa: SLF001
        dispatch(connection, None, "release_segment", (name,))


@contextmanager
def list_pool(_place: Place, size: int) -> Iterator[Work]:
    """Take a free place from a list, make a view of it, let go of the view, put the place back."""
    with mmap.mmap(-1, size) as memory, memoryview(memory) as whole:
        free = [0]

        def do() -> None:
            at = free.pop()
            whole[at : at + size].release()
            free.append(at)

        yield Work(do)


@contextmanager
def warm_copy(_place: Place, size: int) -> Iterator[Work]:
    """Copy into the same memory again and again."""
    data = b"x" * size
    with mmap.mmap(-1, size) as memory, memoryview(memory) as view:

        def do() -> None:
            view[:] = data

        yield Work(do)


@contextmanager
def cold_copy(_place: Place, size: int) -> Iterator[Work]:
    """Copy into memory that exists, through a mapping of it that is new: what every client pays once for a page."""
    data = b"x" * size
    descriptor = os.memfd_create("slabd-bench")
    try:
        os.posix_fallocate(descriptor, 0, size)

        def do() -> None:
            with closing(mmap.mmap(descriptor, size)) as memory:
                memory[:] = data

        yield Work(do)
    finally:
        os.close(descriptor)


def _view(segment: SharedMemory) -> memoryview:
    view = segment.buf
    assert view is not None  # noqa: S101  # it is open; typeshed has it optional
    return view
