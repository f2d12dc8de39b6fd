"""The memory that outlives a request: the heaps that clients map, and the ledgers that only the daemon maps.

Each is a memfd: no name anywhere, gone with its last descriptor. Promises:

- A heap never changes its size (F_SEAL_SHRINK, F_SEAL_GROW, and F_SEAL_SEAL so that nobody adds others) and every page
  of it is allocated before the first client sees it. So no access to a mapping of it raises SIGBUS, whatever a client
  does; running out of memory is a `SegmentError` at start, with the numbers.
- A ledger grows as a whole or not at all, and a write to it never runs out of memory.

What "read only" means. The descriptor for read-only clients is an own open file description, O_RDONLY: it cannot be
mapped writable, nor can a mapping of it be made so by mprotect. Opening /proc/self/fd/N anew for writing asks the
permissions of the memfd itself, 0400, so other users are refused. Two kinds of process are not held: root, and
processes of the daemon's own user, which own the memfd, may fchmod it, and could as well ptrace the daemon. Whoever
must not write runs as another user.

Must not know of sessions, blocks or sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from slabd_server.core.errors import LedgerFull, OutOfMemory
from slabd_server.core.store import RECORD_BYTES
from slabd_server.errors import StartError
from slabd_server.headroom import Allowance, headroom
from slabd_server.units import GIB, MIB, readable_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from slabd_server.headroom import Headroom

HugePages = Literal["off", "transparent", "2MiB"]

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
HUGE_PAGE: Final = 2 * MIB

# Since Linux 6.3: no execute bit, ever. Machines with vm.memfd_noexec=2 refuse memfds without it.
_MFD_NOEXEC_SEAL: Final = 0x08
# Since Linux 5.14. Neither name is in Python 3.11.
_MADV_POPULATE_WRITE: Final = 23
# fallocate and madvise are taken in steps: a signal undoes the current step only, and other threads get a turn.
_STEP: Final = GIB
_HUGE_POOL: Final = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_SHMEM_ENABLED: Final = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_PAGE_BACKINGS: Final[dict[HugePages, str]] = {
    "off": f"{mmap.PAGESIZE >> 10}KiB pages",
    "transparent": "transparent huge pages",
    "2MiB": "2MiB huge pages",
}
_NO_MEMORY: Final = frozenset({errno.ENOSPC, errno.ENOMEM})


class SegmentError(StartError):
    """A heap or a ledger cannot be had: its memory, its huge pages or its mapping."""


class HeapSegment:
    """A heap's memory, mapped by the daemon. Invariant: `size` bytes, all allocated, until `close`."""

    def __init__(self, name: str, fd: int, mapping: mmap.mmap, *, prefault: bool, huge_pages: HugePages) -> None:
        self.name = name
        self.size = len(mapping)
        self.prefault = prefault
        self.huge_pages: HugePages = huge_pages
        self._fd = fd
        self._mapping = mapping
        self._view = memoryview(mapping)
        self._allowance = Allowance()

    @classmethod
    def create(
        cls, name: str, size: int, *, prefault: bool = False, huge_pages: HugePages = "off", populate: bool = True
    ) -> Self:
        """Allocate, map and seal a heap of `size` bytes, a multiple of the page it is made of.

        `prefault` fills in the daemon's page table too and clears every page, so that no first touch has to.
        Transparent huge pages are only made by touching, so they imply it. Without `populate` no page is allocated:
        for tests of huge sparse heaps, never for clients.

        Raises:
            SegmentError: it does not fit, or the machine does not have such pages; nothing remains.
        """
        label = f"heap {name} of {readable_size(size)}"
        _require_pages(label, size, huge_pages)
        if populate:
            _require_room(label, size, huge_pages)
        with contextlib.ExitStack() as undo, _explained(label, huge_pages):
            fd = make_memfd(f"slabd-heap-{name}", huge=huge_pages == "2MiB")
            undo.callback(os.close, fd)
            os.ftruncate(fd, size)
            mapping = undo.enter_context(mmap.mmap(fd, size))
            mapping.madvise(mmap.MADV_DONTDUMP)  # a core dump of the daemon is not to carry the clients' bytes
            prefault |= huge_pages == "transparent"
            if populate:
                _populate(fd, mapping, prefault=prefault, huge_pages=huge_pages)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            segment = cls(name, fd, mapping, prefault=prefault, huge_pages=huge_pages)
            undo.pop_all()
        return segment

    @property
    def fd(self) -> int:
        """The descriptor for clients that may write. It stays the segment's: pass it on, do not close it."""
        return self._fd

    @property
    def view(self) -> memoryview:
        """The whole heap, writable. Take slices of it, and release each when done; leave the view itself alone."""
        return self._view

    @property
    def page_backing(self) -> str:
        """The pages the heap is made of, in words."""
        return _PAGE_BACKINGS[self.huge_pages]

    # -- core.memory.Memory

    def afford(self, offset: int, size: int) -> None:  # noqa: ARG002 -- what is missing is known by its size only
        """Ask the limits whether these pages could be had."""
        room = headroom()
        if self._missing(size) > room.available_bytes:
            raise _none_left(size, room)

    def commit(self, offset: int, size: int) -> None:
        """Allocate pages that may have been given back; see `core.memory`. Any thread may call it.

        Allocating past a limit would not fail but call the OOM killer, so the limits are asked first.
        """
        if (room := self._allowance.take(self._missing(size))) is not None:
            raise _none_left(size, room)
        try:
            os.posix_fallocate(self._fd, offset, size)
        except OSError as error:
            if error.errno not in _NO_MEMORY:
                raise
            raise OutOfMemory(
                f"the system has no memory for {size} bytes that were given back to it: {error.strerror}"
            ) from None

    def give_back(self, offset: int, size: int) -> None:
        """Punch a hole: madvise(2), MADV_REMOVE."""
        self._mapping.madvise(mmap.MADV_REMOVE, offset, size)

    def clear(self, offset: int, size: int) -> None:
        """Write zeros. Any thread may call it, and the others go on meanwhile: memset(3) is called without the GIL."""
        if size:
            first = ctypes.c_char.from_buffer(self._view, offset)  # which keeps the mapping, as long as it is there
            ctypes.memset(ctypes.addressof(first), 0, size)

    def _missing(self, size: int) -> int:
        """Return how many of so many bytes may have to be allocated.

        Which pages are missing cannot be asked (lseek takes those that were never written for holes), how many can.
        """
        return min(size, self.size - self.resident_bytes())

    def read_only_fd(self) -> int:
        """Open a new descriptor for a client that may only read; the caller closes it."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def resident_bytes(self) -> int:
        """Return how many bytes have memory behind them, in RAM or swapped out."""
        return (
            os.fstat(self._fd).st_blocks * 512
        )  # st_blocks counts units of 512 bytes whatever the file system: stat(2)

    def close(self) -> None:
        """Give the heap up; idempotent. Views that are still out stay valid, and keep the memory, until released."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        self._view.release()
        # With slices still out it cannot be closed yet: it is unmapped when the last of them goes.
        with contextlib.suppress(BufferError):
            self._mapping.close()
        del self._mapping

    def __repr__(self) -> str:
        state = f"fd {self._fd}" if self._fd >= 0 else "closed"
        return f"<HeapSegment {self.name} {readable_size(self.size)} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class LedgerSegment:
    """A ledger's records in a memfd: the `Store` of `slabd_server.core.store`.

    Invariant: every page up to `capacity` is allocated. No view of the mapping is ever handed out, so that it can be
    moved when it grows. The memfd keeps its records over a restart if somebody keeps its descriptor: see `adopt`.
    """

    def __init__(self, name: str, fd: int, mapping: mmap.mmap) -> None:
        self.name = name
        self._fd = fd
        self._mapping = mapping

    @classmethod
    def create(cls, name: str, capacity: int = 1024) -> Self:
        """Make a ledger of at least `capacity` records, all zero.

        Raises:
            SegmentError: there is no memory for it; nothing remains.
        """
        size = _ledger_bytes(max(capacity, 1))
        label = f"ledger of heap {name}, {readable_size(size)}"
        _require_room(label, size, "off")
        with contextlib.ExitStack() as undo, _explained(label):
            fd = make_memfd(f"slabd-ledger-{name}")
            undo.callback(os.close, fd)
            os.posix_fallocate(fd, 0, size)
            segment = cls(name, fd, mmap.mmap(fd, size))
            undo.pop_all()
        return segment

    @classmethod
    def adopt(cls, name: str, fd: int) -> Self:
        """Map the ledger that an earlier daemon left behind `fd`, records and all; `fd` is the segment's from then on.

        Raises:
            SegmentError: it cannot be mapped; `fd` stays the caller's.
        """
        with _explained(f"ledger of heap {name}"):
            return cls(name, fd, mmap.mmap(fd, os.fstat(fd).st_size))

    @property
    def fd(self) -> int:
        """The descriptor to keep over a restart; never for a client."""
        return self._fd

    @property
    def capacity(self) -> int:
        """How many records there is room for."""
        return len(self._mapping) // RECORD_BYTES

    def grow(self, capacity: int) -> None:
        """Make room for at least `capacity` records; afterwards no write can run out of memory.

        Raises:
            LedgerFull: there is no memory for it; nothing has changed.
        """
        old, new = len(self._mapping), _ledger_bytes(capacity)
        if new <= old:
            return
        room = headroom()
        if new - old > room.available_bytes:
            raise LedgerFull(
                f"the ledger of heap {self.name} cannot grow to {readable_size(new)}: "
                f"{readable_size(room.available_bytes)} are available ({room.limit})"
            )
        try:
            os.posix_fallocate(self._fd, 0, new)
            self._mapping.resize(new)
        except (OSError, ValueError) as error:
            os.ftruncate(self._fd, old)
            raise LedgerFull(
                f"the ledger of heap {self.name} cannot grow from {readable_size(old)} to {readable_size(new)}: {error}"
            ) from error

    def read(self, index: int) -> bytes:
        """Return the record at `index`, below `capacity`."""
        start = index * RECORD_BYTES
        return self._mapping[start : start + RECORD_BYTES]

    def write(self, index: int, record: bytes) -> None:
        """Replace the record at `index`, below `capacity`, by `record` of RECORD_BYTES bytes. Never fails."""
        start = index * RECORD_BYTES
        self._mapping[start : start + RECORD_BYTES] = record

    def resident_bytes(self) -> int:
        """Return how many bytes have memory behind them, in RAM or swapped out."""
        return os.fstat(self._fd).st_blocks * 512

    def close(self) -> None:
        """Give the ledger up; idempotent."""
        if self._fd >= 0:
            self._mapping.close()
            os.close(self._fd)
            self._fd = -1

    def __repr__(self) -> str:
        state = f"{self.capacity} records, fd {self._fd}" if self._fd >= 0 else "closed"
        return f"<LedgerSegment {self.name} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def make_memfd(name: str, *, huge: bool = False) -> int:
    """Make an empty memfd that may be sealed, and that only the descriptor returned can write to."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if huge:
        flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
    try:
        fd = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create(name, flags)
    os.fchmod(fd, 0o400)
    return fd


def _none_left(size: int, room: Headroom) -> OutOfMemory:
    return OutOfMemory(
        f"the system has no memory for {size} bytes that were given back to it: "
        f"{room.available_bytes} are available ({room.limit})"
    )


def _populate(fd: int, mapping: mmap.mmap, *, prefault: bool, huge_pages: HugePages) -> None:
    """Put memory behind every byte of a heap."""
    if huge_pages == "transparent":
        # With "advise" only a fault through an advised mapping makes huge pages: fallocate first would make small ones.
        mapping.madvise(mmap.MADV_HUGEPAGE)
        _fault_in(mapping)
    _allocate(fd, len(mapping))
    if prefault and huge_pages != "transparent":
        _fault_in(mapping)


def _allocate(fd: int, size: int) -> None:
    for offset in range(0, size, _STEP):
        os.posix_fallocate(fd, offset, min(_STEP, size - offset))


def _fault_in(mapping: mmap.mmap) -> None:
    """Have a page table entry and a cleared page behind every byte, without changing one."""
    for offset in range(0, len(mapping), _STEP):
        length = min(_STEP, len(mapping) - offset)
        try:
            mapping.madvise(_MADV_POPULATE_WRITE, offset, length)
        except OSError as error:
            if error.errno != errno.EINVAL:  # before Linux 5.14
                raise
            _touch(mapping, offset, length)


def _touch(mapping: mmap.mmap, offset: int, length: int) -> None:
    for page in range(offset, offset + length, mmap.PAGESIZE):
        mapping[page] = mapping[page]


def _ledger_bytes(capacity: int) -> int:
    return -(-capacity * RECORD_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE


@contextlib.contextmanager
def _explained(label: str, huge_pages: HugePages = "off") -> Iterator[None]:
    """Turn what the kernel refuses into a SegmentError about `label`."""
    try:
        yield
    except (OSError, ValueError, OverflowError) as error:
        if not isinstance(error, OSError) or error.errno not in _NO_MEMORY:
            raise SegmentError(f"{label} cannot be made: {error}") from error
        if huge_pages == "2MiB":
            raise SegmentError(f"{label} does not fit: others took the 2 MiB pages that were free") from error
        room = headroom()
        raise SegmentError(
            f"{label} does not fit: {error.strerror}, although {readable_size(room.available_bytes)} seem to be "
            f"available ({room.limit}); see vm.overcommit_memory and ulimit -v"
        ) from error


def _require_pages(label: str, size: int, huge_pages: HugePages) -> None:
    """Refuse sizes that are no multiple of the page, and huge pages that the machine does not offer."""
    page = HUGE_PAGE if huge_pages == "2MiB" else mmap.PAGESIZE
    if size <= 0 or size % page:
        raise SegmentError(f"{label} ({size} bytes) is not made of whole pages of {readable_size(page)}")
    if huge_pages == "transparent":
        _require_transparent_pages(label)


def _require_transparent_pages(label: str) -> None:
    try:
        choices = _SHMEM_ENABLED.read_text(encoding="ascii")
    except OSError:
        raise SegmentError(f"{label} asks for transparent huge pages; this kernel has none") from None
    setting = choices.partition("[")[2].partition("]")[0]
    if setting in {"never", "deny"}:
        raise SegmentError(
            f"{label} asks for transparent huge pages, which this machine does not give to shared memory: "
            f"{_SHMEM_ENABLED} is {setting!r}. As root: echo advise > {_SHMEM_ENABLED}"
        )


def _require_room(label: str, size: int, huge_pages: HugePages) -> None:
    """Refuse what does not fit while asking is still harmless: allocating would call the OOM killer."""
    if huge_pages == "2MiB":
        _require_huge_pages(label, size)
        return
    room = headroom()
    if size > room.available_bytes:
        raise SegmentError(
            f"{label} does not fit: {readable_size(room.available_bytes)} are available ({room.limit}); "
            "choose a smaller size or free memory"
        )


def _require_huge_pages(label: str, size: int) -> None:
    wanted = size // HUGE_PAGE
    try:
        counts = {
            name: int((_HUGE_POOL / name).read_text(encoding="ascii"))
            for name in (
                "nr_hugepages",
                "free_hugepages",
                "resv_hugepages",
                "nr_overcommit_hugepages",
                "surplus_hugepages",
            )
        }
    except (OSError, ValueError):
        raise SegmentError(f"{label} asks for 2 MiB pages; this machine has none") from None
    free = counts["free_hugepages"] - counts["resv_hugepages"]
    spare = max(0, counts["nr_overcommit_hugepages"] - counts["surplus_hugepages"])
    if wanted > free + spare:
        raise SegmentError(
            f"{label} asks for {wanted} pages of 2 MiB: {free} of {counts['nr_hugepages']} are free, "
            f"{spare} may be added on demand. As root: sysctl vm.nr_hugepages={counts['nr_hugepages'] - free + wanted}"
        )
