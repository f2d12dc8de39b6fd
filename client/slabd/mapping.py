"""The heap in this process's memory, and the anchors that stand for its blocks.

An *anchor* is a ctypes array over one block. Every view of the block, every slice of a view and every numpy array over
it keeps the anchor alive, and the anchor keeps the mapping alive. So "may anybody here still touch this block?" has one
answer: is its anchor dead?

Users get a memoryview. All views derived from it share one managed buffer, and CPython counts them:

    exports(view) = (references to the managed buffer - those of an untouched view)
                  + (references to the anchor         - those of an untouched view)

The second term sees those who dig the anchor out and let the view go, as `numpy.ndarray(buffer=view)` does. Direct
consumers of the buffer protocol (a `readinto` under way, a PickleBuffer) are not in these counts; `view.release()`
itself raises for them. The two "untouched" numbers differ between Python versions, so they are measured at import.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import weakref
    from typing import TypeAlias

    Anchor: TypeAlias = "ctypes.Array[ctypes.c_ubyte]"

_EXPORTS_OFFSET: Final = object.__basicsize__ + ctypes.sizeof(ctypes.c_ssize_t)
# What `view_count` says of a block that has a root and one view, and what getrefcount(root.obj) says if nobody else has
# the anchor.
ROOT_AND_VIEW: Final = 2
ANCHOR_ALONE: Final = 2
# Since Linux 5.14; Python 3.11 has no name for it: madvise(2).
_MADV_POPULATE_WRITE: Final = 23
_libc: Final = ctypes.CDLL(None)
# ctypes makes a type for each length, in 8 us, and forgets it with its last array; blocks come in few sizes.
_TYPES_KEPT: Final = 512


class Mapping:
    """A heap's memfd, mapped. Its descriptor is not needed any more; without its anchors, nor is the mapping."""

    def __init__(self, fd: int, size: int, *, writable: bool) -> None:
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        self._memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=protection)
        self.writable = writable
        self._address = 0 if writable else _address_of(self._memory)

    def __len__(self) -> int:
        return len(self._memory)

    @property
    def closed(self) -> bool:
        """Whether the mapping is gone."""
        return self._memory.closed

    def anchor(self, offset: int, size: int) -> Anchor:
        """Return a new anchor over [offset, offset + size).

        Raises:
            ValueError: that is not inside the mapping, or the mapping is closed.
        """
        if offset < 0 or size < 1 or offset + size > len(self._memory):
            raise ValueError(f"[{offset}, {offset + size}) is not inside a mapping of {len(self._memory)} bytes")
        if self.writable:
            return _array_type(size).from_buffer(self._memory, offset)
        # from_buffer refuses read-only memory, and from_address keeps nothing alive: the attribute does.
        anchor: Any = _array_type(size).from_address(self._address + offset)
        anchor.mapping = self
        return anchor  # type: ignore[no-any-return]  # the attribute above needed Any

    def populate(self, offset: int, size: int) -> None:
        """Have the pages of a range in this process's page table before they are touched, without changing a byte.

        It releases the GIL. A kernel before Linux 5.14 does not know how, and then the first touch does it as always.
        """
        first = offset // mmap.PAGESIZE * mmap.PAGESIZE
        if self.writable and not self.closed and (base := self._base()):
            _libc.madvise(ctypes.c_void_p(base + first), ctypes.c_size_t(offset + size - first), _MADV_POPULATE_WRITE)

    def _base(self) -> int:
        if not self._address:
            self._address = _address_of(self._memory)
        return self._address

    def close(self) -> None:
        """Unmap. The caller knows that no anchor is left; for a writable mapping the kernel of it, mmap, checks.

        Raises:
            BufferError: anchors are left.
        """
        self._memory.close()


def view_of(anchor: Anchor, size: int, *, writable: bool) -> memoryview:
    """Return the view of an anchor's first `size` bytes, of format "B"."""
    view = memoryview(anchor).cast("B")[:size]
    return view if writable else view.toreadonly()


def root_of(anchor: Any) -> memoryview:
    """Return a writable view of all of an anchor's bytes, of format "B". Slices of it are views of the same buffer."""
    return memoryview(anchor).cast("B")


def exports(view: memoryview) -> int:
    """Return how many other objects use the memory of a view made by `view_of`, or sliced from a root."""
    with _counting:
        return _references(view) - _UNTOUCHED


def view_count(root: memoryview) -> ctypes.c_ssize_t:
    """Return a live counter of the views over a root's buffer that are not released, the root included.

    It is `exports` of CPython's _PyManagedBufferObject (Include/cpython/memoryobject.h), behind the object's header and
    an int. References to the buffer would also count views that are released and still in somebody's variable. The
    counter is good as long as the root is.
    """
    return ctypes.c_ssize_t.from_address(id(gc.get_referents(root)[0]) + _EXPORTS_OFFSET)


def users_of_root(root: memoryview, count: ctypes.c_ssize_t) -> int:
    """Return how many use a block's memory beside its root and one view, which an interrupt may have released."""
    with _counting:
        return max(0, count.value - ROOT_AND_VIEW) + sys.getrefcount(root.obj) - ANCHOR_ALONE


def _counts_views() -> bool:
    """Try `view_count` on memory of our own. Without a GIL nobody could count, nor rely on what comes between calls."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    root = root_of(_array_type(8).from_buffer(bytearray(8)))
    count = view_count(root)
    found = [count.value]
    view = root[:4]
    found.append(count.value)
    part = view[1:2]
    found.append(count.value)
    view.release()
    found.append(count.value)
    part.release()
    return [*found, count.value] == [1, 2, 3, 2, 1] and sys.getrefcount(root.obj) == ANCHOR_ALONE


def is_alive(watcher: weakref.ref[Any]) -> bool:
    """Return whether a watched anchor is alive, without being counted as one of its users."""
    with _counting:
        return watcher() is not None


def _references(view: memoryview) -> int:
    # A memoryview's one referent is its managed buffer; gc is the only road to it.
    return sys.getrefcount(gc.get_referents(view)[0]) + sys.getrefcount(view.obj)


@lru_cache(maxsize=_TYPES_KEPT)
def _array_type(size: int) -> type[Anchor]:
    return ctypes.c_ubyte * size


class _PyBuffer(ctypes.Structure):
    """Py_buffer: https://docs.python.org/3/c-api/buffer.html#c.Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _address_of(memory: mmap.mmap) -> int:
    """Return where a mapping starts. It stays there until it is closed, so the buffer is given back at once."""
    buffer = _PyBuffer()
    simple = 0
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(memory), ctypes.byref(buffer), simple)
    address = int(buffer.buf)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


# Two threads that count at the same time would count each other's references.
_counting = threading.RLock()


def _reset_in_child() -> None:
    global _counting  # noqa: PLW0603  # another thread may have held it at the moment of the fork
    _counting = threading.RLock()


os.register_at_fork(after_in_child=_reset_in_child)
_UNTOUCHED: Final = _references(view_of(_array_type(8).from_buffer(bytearray(8)), 4, writable=False))
COUNTS_VIEWS: Final = _counts_views()
"""Whether `view_count` works here: then blocks can be used again with the same root."""
