"""The heap's and the ledger's memory: real memfds, of tiny sizes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slabd_server import segments
from slabd_server.core.errors import LedgerFull, OutOfMemory
from slabd_server.core.store import RECORD_BYTES, MemoryStore
from slabd_server.errors import StartError
from slabd_server.headroom import Allowance, Headroom
from slabd_server.segments import HUGE_PAGE, SEALS, HeapSegment, LedgerSegment, SegmentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slabd_server.core.store import Store

SIZE = 1 << 20
NOBODY = 65534


def open_descriptors() -> set[str]:
    """List this process' descriptors by what they are open on."""
    # The descriptor that lists the others is gone by the time its entry is looked at.
    return {f"{path.name} {path.readlink()}" for path in [*Path("/proc/self/fd").iterdir()] if path.is_symlink()}


def mapping_facts(name: str) -> dict[str, str]:
    """Return what the kernel says of this process' mapping of a memfd."""
    facts: dict[str, str] = {}
    found = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            found = f"memfd:{name} " in line
        elif found:
            key, _, value = line.partition(":")
            facts[key] = value.strip()
    return facts


def as_nobody(action: Callable[[], str]) -> str:
    """Run `action` in a child that is an ordinary user of its own, and return what it returns."""
    if os.getuid():
        pytest.skip("only root can become somebody else")
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests' threads; the child uses no locks
        child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writer, action().encode())
        except BaseException as error:  # noqa: BLE001 -- nothing may return into pytest from here
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, encoding="utf-8") as answer:  # noqa: PTH123 -- a descriptor
        return answer.read()


def reopened(fd: int, flags: int) -> str:
    """Open a descriptor's file anew and say how that went."""
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", flags))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "opened"


def out_of_memory(*_: object) -> None:
    """Fail as the kernel does when memory is short."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def heap() -> Iterator[HeapSegment]:
    """A heap of 1 MiB."""
    with HeapSegment.create("test", SIZE) as segment:
        yield segment


# -- the heap


def test_every_page_is_allocated_before_anybody_uses_it(heap: HeapSegment) -> None:
    """A heap has memory behind every byte from the start."""
    assert heap.resident_bytes() == SIZE


def test_a_sparse_heap_has_no_memory_and_no_limit() -> None:
    """Without `populate` even a heap of a tebibyte takes no memory, for tests of the books."""
    with HeapSegment.create("sparse", 1 << 40, populate=False) as segment:
        assert (segment.size, segment.resident_bytes()) == (1 << 40, 0)


def test_clients_see_what_the_daemon_writes_and_the_reverse(heap: HeapSegment) -> None:
    """A mapping of either descriptor shows the same bytes as the daemon's view."""
    reader = heap.read_only_fd()
    with mmap.mmap(heap.fd, SIZE) as writable, mmap.mmap(reader, SIZE, prot=mmap.PROT_READ) as readable:
        os.close(reader)
        writable[4096:4101] = b"hello"
        heap.view[0:3] = b"hey"
        assert (readable[4096:4101], readable[0:3], bytes(heap.view[4096:4101])) == (b"hello", b"hey", b"hello")


@pytest.mark.parametrize("size", [0, SIZE // 2, SIZE * 2])
def test_nobody_can_resize_a_heap(heap: HeapSegment, size: int) -> None:
    """The seals refuse to shrink the heap, which would kill its users by SIGBUS, and to grow it."""
    with pytest.raises(PermissionError):
        os.ftruncate(heap.fd, size)
    assert os.fstat(heap.fd).st_size == SIZE


def test_nobody_can_add_seals(heap: HeapSegment) -> None:
    """A client cannot seal the heap against writing, which would stop all others."""
    assert fcntl.fcntl(heap.fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    with pytest.raises(PermissionError):
        fcntl.fcntl(heap.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_heap_has_no_name_and_no_child_inherits_it(heap: HeapSegment) -> None:
    """The file has no directory entry, no descriptor survives exec, and only the owner's user may open it."""
    reader = heap.read_only_fd()
    assert os.fstat(heap.fd).st_nlink == 0
    assert (os.get_inheritable(heap.fd), os.get_inheritable(reader)) == (False, False)
    assert os.fstat(heap.fd).st_mode & 0o777 == 0o400
    os.close(reader)


def test_a_read_only_descriptor_cannot_be_mapped_writable(heap: HeapSegment) -> None:
    """Neither mmap nor write nor a later mprotect gets around O_RDONLY."""
    reader = heap.read_only_fd()
    with pytest.raises(PermissionError):
        mmap.mmap(reader, SIZE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(reader, b"x")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mprotect.argtypes = [*libc.mprotect.argtypes, ctypes.c_int]
    address = libc.mmap(None, SIZE, mmap.PROT_READ, mmap.MAP_SHARED, reader, 0)
    assert libc.mprotect(address, SIZE, mmap.PROT_READ | mmap.PROT_WRITE) == -1
    assert ctypes.get_errno() == errno.EACCES
    assert libc.munmap(address, SIZE) == 0
    os.close(reader)


def test_another_user_cannot_open_a_read_only_descriptor_for_writing(heap: HeapSegment) -> None:
    """Opening /proc/self/fd/N anew asks the memfd's permissions, which no other user has."""
    reader = heap.read_only_fd()
    assert as_nobody(lambda: reopened(reader, os.O_RDWR)) == "EACCES"
    assert as_nobody(lambda: reopened(reader, os.O_RDONLY)) == "EACCES"
    os.close(reader)


def test_the_daemons_own_user_is_not_held() -> None:
    """What the module's docstring admits: who owns the memfd is refused at first, and can help themselves."""

    def try_it() -> str:
        with HeapSegment.create("own", SIZE) as heap:
            reader = heap.read_only_fd()
            refused = reopened(reader, os.O_RDWR)
            os.fchmod(reader, 0o600)
            return f"{refused}, after fchmod {reopened(reader, os.O_RDWR)}"

    assert as_nobody(try_it) == "EACCES, after fchmod opened"


@pytest.mark.parametrize("populate_write", [segments._MADV_POPULATE_WRITE, 9999])  # 9999: as before Linux 5.14
def test_prefault_fills_the_page_table(monkeypatch: pytest.MonkeyPatch, populate_write: int) -> None:
    """With `prefault` every page of the daemon's mapping is present at once, by madvise or by touching."""
    monkeypatch.setattr(segments, "_MADV_POPULATE_WRITE", populate_write)
    with HeapSegment.create("warm", SIZE, prefault=True) as warm, HeapSegment.create("cold", SIZE) as cold:
        assert (warm.prefault, cold.prefault) == (True, False)
        assert mapping_facts("slabd-heap-warm")["Rss"] == f"{SIZE >> 10} kB"
        assert mapping_facts("slabd-heap-cold")["Rss"] == "0 kB"


def test_a_core_dump_leaves_the_heap_out(heap: HeapSegment) -> None:
    """The mapping is marked MADV_DONTDUMP: clients' bytes are not the daemon's to dump."""
    assert heap.size == SIZE
    assert "dd" in mapping_facts("slabd-heap-test")["VmFlags"].split()


def test_closing_waits_for_views_that_are_out() -> None:
    """A slice that is out when the segment closes stays valid; the memory goes with the last slice."""
    before = open_descriptors()
    segment = HeapSegment.create("late", SIZE)
    late = segment.view[10:15]
    segment.close()
    segment.close()
    late[:] = b"still"
    assert bytes(late) == b"still"
    assert mapping_facts("slabd-heap-late")
    late.release()
    assert not mapping_facts("slabd-heap-late")
    assert open_descriptors() == before


def test_a_heap_that_does_not_fit_is_refused_with_the_numbers() -> None:
    """The error says what was asked for, what is available and what says so; nothing is allocated."""
    before = open_descriptors()
    with pytest.raises(SegmentError, match=r"heap big of 64 TiB does not fit: [\d.]+ [KMGT]iB are available \(.+\)"):
        HeapSegment.create("big", 1 << 46)
    assert open_descriptors() == before


def test_memory_that_runs_out_while_allocating_is_an_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should fallocate fail after all, the memfd and its mapping are gone again."""
    before = open_descriptors()
    monkeypatch.setattr(os, "posix_fallocate", out_of_memory)
    with pytest.raises(SegmentError, match=r"heap full of 1 MiB does not fit: No space left .* seem to be available"):
        HeapSegment.create("full", SIZE)
    assert not mapping_facts("slabd-heap-full")
    assert open_descriptors() == before


@pytest.mark.parametrize("size", [-4096, 0, 1, 4097])
def test_a_heap_is_made_of_whole_pages(size: int) -> None:
    """Sizes that are no multiple of a page are refused."""
    with pytest.raises(SegmentError, match=f"{size} bytes.* is not made of whole pages of 4 KiB"):
        HeapSegment.create("odd", size)


def test_a_segment_error_is_a_start_error() -> None:
    """`slabd serve` ends with the status for "could not start"."""
    assert issubclass(SegmentError, StartError)


def test_a_segment_shows_what_it_is(heap: HeapSegment) -> None:
    """The repr has name, size and descriptor, or says that it is closed."""
    assert repr(heap) == f"<HeapSegment test 1 MiB fd {heap.fd}>"
    heap.close()
    assert repr(heap) == "<HeapSegment test 1 MiB closed>"


# -- huge pages


def test_pages_of_2_mib_are_refused_with_how_to_reserve_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says how many are free of how many, and what to set."""
    counts = {"nr": 10, "free": 4, "resv": 3, "nr_overcommit": 2, "surplus": 1}
    for name, count in counts.items():
        (tmp_path / f"{name}_hugepages").write_text(f"{count}\n", encoding="ascii")
    monkeypatch.setattr(segments, "_HUGE_POOL", tmp_path)
    expected = r"asks for 3 pages of 2 MiB: 1 of 10 are free, 1 may be added .* sysctl vm.nr_hugepages=12$"
    with pytest.raises(SegmentError, match=expected):
        HeapSegment.create("huge", 3 * HUGE_PAGE, huge_pages="2MiB")


def test_a_machine_without_pages_of_2_mib_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No pool of 2 MiB pages at all is an error of its own."""
    monkeypatch.setattr(segments, "_HUGE_POOL", tmp_path)
    with pytest.raises(SegmentError, match="this machine has none"):
        HeapSegment.create("huge", HUGE_PAGE, huge_pages="2MiB")


def test_a_heap_of_2_mib_pages_is_made_of_whole_ones() -> None:
    """1 MiB is no multiple of 2 MiB."""
    with pytest.raises(SegmentError, match="is not made of whole pages of 2 MiB"):
        HeapSegment.create("huge", SIZE, huge_pages="2MiB")


def test_a_heap_of_2_mib_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine has such pages, the heap is made of them; where it lost them meanwhile, that is an error."""
    free = segments._HUGE_POOL / "free_hugepages"
    if free.exists() and int(free.read_text(encoding="ascii")):
        with HeapSegment.create("huge", HUGE_PAGE, huge_pages="2MiB") as segment:
            assert (segment.resident_bytes(), segment.page_backing) == (HUGE_PAGE, "2MiB huge pages")
            assert mapping_facts("slabd-heap-huge")["KernelPageSize"] == "2048 kB"
        return
    monkeypatch.setattr(segments, "_require_huge_pages", lambda *_: None)
    before = open_descriptors()
    with pytest.raises(SegmentError, match="others took the 2 MiB pages"):
        HeapSegment.create("huge", HUGE_PAGE, huge_pages="2MiB")
    assert open_descriptors() == before


@pytest.mark.parametrize("setting", ["never", "deny"])
def test_transparent_huge_pages_that_are_off_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str
) -> None:
    """The error says which file to write what into."""
    choices = "always within_size advise never deny force".replace(setting, f"[{setting}]")
    (tmp_path / "shmem_enabled").write_text(f"{choices}\n", encoding="ascii")
    monkeypatch.setattr(segments, "_SHMEM_ENABLED", tmp_path / "shmem_enabled")
    with pytest.raises(SegmentError, match=f"is '{setting}'. As root: echo advise > {tmp_path}/shmem_enabled"):
        HeapSegment.create("thp", 2 * HUGE_PAGE, huge_pages="transparent")


def test_a_kernel_without_transparent_huge_pages_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing setting is an error of its own."""
    monkeypatch.setattr(segments, "_SHMEM_ENABLED", tmp_path / "none")
    with pytest.raises(SegmentError, match="this kernel has none"):
        HeapSegment.create("thp", 2 * HUGE_PAGE, huge_pages="transparent")


def test_a_heap_of_transparent_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heap is advised, touched and allocated; where the machine permits it, its pages are huge."""
    setting = segments._SHMEM_ENABLED
    allowed = setting.exists() and not re.search(r"\[(never|deny)\]", setting.read_text(encoding="ascii"))
    monkeypatch.setattr(segments, "_require_transparent_pages", lambda _: None)
    with HeapSegment.create("thp", 4 * HUGE_PAGE, huge_pages="transparent") as segment:
        facts = mapping_facts("slabd-heap-thp")
        assert (segment.resident_bytes(), segment.page_backing) == (4 * HUGE_PAGE, "transparent huge pages")
        assert segment.prefault
        assert "hg" in facts["VmFlags"].split()
        assert facts["Rss"] == f"{4 * HUGE_PAGE >> 10} kB"
        if allowed:
            assert facts["ShmemPmdMapped"] != "0 kB"


# -- the ledger


@pytest.fixture
def ledger() -> Iterator[LedgerSegment]:
    """A ledger of one page."""
    with LedgerSegment.create("test", capacity=1) as segment:
        yield segment


def record(number: int) -> bytes:
    """Return a record that is unlike all others."""
    return number.to_bytes(8, "little") * (RECORD_BYTES // 8)


def test_a_new_ledger_is_all_zero_and_allocated(ledger: LedgerSegment) -> None:
    """It has the page's worth of records, with memory behind them."""
    assert ledger.capacity == mmap.PAGESIZE // RECORD_BYTES
    assert {ledger.read(index) for index in range(ledger.capacity)} == {bytes(RECORD_BYTES)}
    assert ledger.resident_bytes() == mmap.PAGESIZE


def test_growing_keeps_the_records_and_allocates_the_new_ones(ledger: LedgerSegment) -> None:
    """Records survive the move of the mapping; new ones are zero and have memory behind them."""
    ledger.write(ledger.capacity - 1, record(7))
    last = ledger.capacity - 1
    ledger.grow(100_000)
    assert ledger.capacity >= 100_000
    assert (ledger.read(last), ledger.read(last + 1)) == (record(7), bytes(RECORD_BYTES))
    assert ledger.resident_bytes() == ledger.capacity * RECORD_BYTES


def test_growing_to_less_changes_nothing(ledger: LedgerSegment) -> None:
    """A ledger never shrinks."""
    before = ledger.capacity
    ledger.grow(0)
    ledger.grow(before)
    assert ledger.capacity == before


def test_growing_past_the_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch, ledger: LedgerSegment) -> None:
    """When the kernel has no memory, the ledger is as it was, to the byte."""
    ledger.write(0, record(1))
    before = (ledger.capacity, os.fstat(ledger.fd).st_size, ledger.resident_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", out_of_memory)
        with pytest.raises(LedgerFull, match=r"ledger of heap test cannot grow from 4 KiB to .*: .*No space left"):
            ledger.grow(1000)
    assert (ledger.capacity, os.fstat(ledger.fd).st_size, ledger.resident_bytes()) == before
    ledger.grow(1000)
    assert ledger.read(0) == record(1)


def test_a_mapping_that_cannot_move_gives_the_memory_back(ledger: LedgerSegment) -> None:
    """Growth that fails after the allocation takes the allocation back too."""
    before = (ledger.capacity, os.fstat(ledger.fd).st_size, ledger.resident_bytes())
    real = ledger._mapping

    class Stuck:
        def __len__(self) -> int:
            return len(real)

        def resize(self, _: int) -> None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    ledger._mapping = Stuck()  # type: ignore[assignment]
    with pytest.raises(LedgerFull, match="Cannot allocate memory"):
        ledger.grow(1000)
    ledger._mapping = real
    assert (ledger.capacity, os.fstat(ledger.fd).st_size, ledger.resident_bytes()) == before


def test_growth_asks_for_headroom_before_the_oom_killer_does(
    monkeypatch: pytest.MonkeyPatch, ledger: LedgerSegment
) -> None:
    """A ledger that would exceed the limit is refused with the numbers, before anything is allocated."""
    monkeypatch.setattr(segments, "headroom", lambda: Headroom(4096, "memory.max is 1 GiB"))
    with pytest.raises(LedgerFull, match=r"4 KiB are available \(memory.max is 1 GiB\)"):
        ledger.grow(1000)
    with pytest.raises(SegmentError, match=r"ledger of heap other, 64 KiB does not fit"):
        LedgerSegment.create("other", 1024)


def test_pages_are_taken_again_only_within_the_headroom() -> None:
    """What was given back is refused before the OOM killer is called, counting only the pages that are missing."""
    page = mmap.PAGESIZE
    with HeapSegment.create("test", 64 * page) as segment:
        segment.give_back(8 * page, 8 * page)
        segment.give_back(40 * page, 8 * page)
        segment._allowance = Allowance(lambda: Headroom(15 * page, "memory.max is 1 GiB"))
        with pytest.raises(OutOfMemory, match=r"61440 are available \(memory.max is 1 GiB\)"):
            segment.commit(0, 64 * page)
        assert segment.resident_bytes() == 48 * page
        segment.commit(8 * page, 8 * page)
        segment.commit(0, 64 * page)
        assert segment.resident_bytes() == 64 * page


def test_a_ledger_outlives_its_segment_behind_its_descriptor() -> None:
    """Who adopts the descriptor finds the records, and can go on."""
    first = LedgerSegment.create("kept", 100)
    first.write(99, record(99))
    kept = os.dup(first.fd)
    first.close()
    first.close()
    with LedgerSegment.adopt("kept", kept) as second:
        assert second.read(99) == record(99)
        second.grow(10_000)
        second.write(9_999, record(1))
        assert second.read(9_999) == record(1)


def test_what_is_no_ledger_cannot_be_adopted() -> None:
    """An empty memfd is refused, and stays its owner's."""
    fd = os.memfd_create("empty")
    with pytest.raises(SegmentError, match="ledger of heap odd cannot be made"):
        LedgerSegment.adopt("odd", fd)
    os.close(fd)


def test_no_child_inherits_a_ledger_and_nobody_else_opens_it(ledger: LedgerSegment) -> None:
    """The ledger is the daemon's alone."""
    assert not os.get_inheritable(ledger.fd)
    assert as_nobody(lambda: reopened(ledger.fd, os.O_RDONLY)) == "EACCES"


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("grow"), st.integers(0, 500)),
            st.tuples(st.just("write"), st.integers(0, 63)),
            st.tuples(st.just("read"), st.integers(0, 63)),
        ),
        max_size=30,
    )
)
def test_a_ledger_segment_is_a_store(steps: list[tuple[str, int]]) -> None:
    """It behaves as the store in ordinary memory does, whatever is done to both."""
    with LedgerSegment.create("model", 64) as ledger:
        stores: tuple[Store, Store] = (ledger, MemoryStore(64))
        for number, (step, argument) in enumerate(steps):
            for store in stores:
                if step == "grow":
                    store.grow(argument)
                    assert store.capacity >= argument
                elif step == "write":
                    store.write(argument, record(number))
            assert stores[0].read(argument % 64) == stores[1].read(argument % 64)
