"""The client against a real daemon, each test over the sync and the asyncio face."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures.daemons import eventually

import slabd

if TYPE_CHECKING:
    from tests.fixtures.daemons import DaemonProcess
    from tests.fixtures.faces import Face

MIB = 1 << 20


async def test_lease_write_release(daemon: DaemonProcess, face: Face, pool: Any) -> None:
    """A block is written in place, seen by the daemon, and given back."""
    lease = await face.call(pool.lease, 1000, label="frame")
    lease.view[:5] = b"hello"
    assert (lease.size, lease.usable_size, len(lease.view)) == (1000, 1024, 1000)
    (info,) = daemon.leases()
    assert (info.label, info.block.offset, info.pid) == ("frame", lease.offset, os.getpid())
    assert info.call_site
    await face.call(lease.release)
    assert daemon.used == 0
    await face.call(lease.release)
    with pytest.raises(slabd.LeaseReleased):
        lease.view  # noqa: B018 - the access is what is tested


def test_the_call_site_is_the_users(daemon: DaemonProcess) -> None:
    """The daemon knows which line of the user's code leased a block."""
    with slabd.connect(daemon.address) as pool, pool.lease(64):
        (info,) = daemon.leases()
    assert "test_pool.py:" in info.call_site


async def test_batches_are_atomic(daemon: DaemonProcess, face: Face, pool: Any) -> None:
    """`lease_many` gives all blocks or none."""
    leases = await face.call(pool.lease_many, [64, 5000, MIB])
    assert [lease.size for lease in leases] == [64, 5000, MIB]
    before = daemon.used
    with pytest.raises(slabd.OutOfMemory):
        await face.call(pool.lease_many, [MIB, 15 * MIB])
    assert daemon.used == before
    await face.call(pool.release_many, leases)
    assert daemon.used == 0


async def test_share_and_open(daemon: DaemonProcess, face: Face, pool: Any) -> None:
    """A handle travels as pickle, bytes or text and opens a read-only view of the same bytes."""
    other = await face.connect(daemon.address)
    lease = await face.call(pool.lease, 5)
    lease.view[:] = b"hello"
    handle = await face.call(lease.share, 3)
    assert pickle.loads(pickle.dumps(handle)) == handle
    for form in (handle, bytes(handle), str(handle)):
        ref = await face.call(other.open, form)
        assert bytes(ref.view) == b"hello"
        assert ref.view.readonly
        await face.call(ref.close)
    with pytest.raises(slabd.StaleHandle):
        await face.call(other.open, handle)
    await face.call(lease.release)
    await face.call(other.close)


async def test_a_handle_lives_for_a_while(face: Face, pool: Any) -> None:
    """A time to live of nothing is refused, whichever way the handle is made."""
    lease = await face.call(pool.lease, 5)
    for ttl in (0, 8 * 24 * 3600):
        with pytest.raises(slabd.InvalidArgument):
            await face.call(lease.share, ttl=ttl)
    await face.call(lease.release)


async def test_transfer(daemon: DaemonProcess, face: Face, pool: Any) -> None:
    """A transferred lease is writable for its new owner and over for its old one."""
    other = await face.connect(daemon.address)
    lease = await face.call(pool.lease, 5)
    handle = await face.call(lease.transfer)
    with pytest.raises(slabd.LeaseReleased):
        lease.view[:] = b"hello"
    mine = await face.call(other.open, handle)
    mine.view[:] = b"world"
    assert isinstance(mine, slabd.Lease | slabd.aio.AsyncLease)
    await face.call(mine.release)
    assert daemon.used == 0
    await face.call(other.close)


async def test_release_with_exports_releases_nothing(daemon: DaemonProcess, face: Face, pool: Any) -> None:
    """While a slice or an array over the view exists, release raises BufferError and everything stays usable."""
    lease = await face.call(pool.lease, 100)
    view = lease.view
    for export in (view[:10], np.frombuffer(view, dtype=np.uint8), memoryview(view), view.cast("B", (10, 10))):
        with pytest.raises(BufferError):
            await face.call(lease.release)
        view[:2] = b"ok"
        assert daemon.used == 128
        del export
    await face.call(lease.release)
    with pytest.raises(ValueError, match="released"):
        view[:2] = b"no"
    assert daemon.used == 0


async def test_views_keep_what_is_dropped(daemon: DaemonProcess, face: Face, pool: Any) -> None:
    """A dropped lease is released by the garbage collector, and not while anything can touch its bytes."""
    view = (await face.call(pool.lease, 100)).view
    piece = view[10:20]
    array = np.frombuffer(piece, dtype=np.uint8)
    del view, piece
    gc.collect()
    assert daemon.used == 128
    array[:] = 7
    del array
    gc.collect()
    await asyncio.sleep(0)
    await face.until(lambda: daemon.used == 0)


async def test_arrays_own_their_memory(daemon: DaemonProcess, face: Face, pool: Any) -> None:
    """A numpy array in the heap gives its block back when its last reference is gone."""
    array = await face.call(pool.empty, (100, 100), "float32")
    array[:] = 1.5
    part = array[10:, ::2]
    del array
    gc.collect()
    assert daemon.used == 40_960
    assert part.sum() == 90 * 50 * 1.5
    del part
    gc.collect()
    await face.until(lambda: daemon.used == 0)


async def test_a_full_heap_raises_and_says_who(face: Face, pool: Any) -> None:
    """Out of memory is a MemoryError that names the holder, with its label."""
    lease = await face.call(pool.lease, 16 * MIB, label="everything")
    with pytest.raises(MemoryError, match=rf"held by .*pid {os.getpid()}.*'everything'"):
        await face.call(pool.lease, 1)
    with pytest.raises(slabd.LeaseTimeout) as caught:
        await face.call(pool.lease, 1, timeout=0.5)
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(slabd.TooLarge):
        await face.call(pool.lease, 17 * MIB, timeout=60)
    await face.call(lease.release)


async def test_waiting_is_first_come_first_served(daemon: DaemonProcess, face: Face, pool: Any) -> None:
    """Those who wait are served in their order, a large request before the small one behind it."""
    others = [await face.connect(daemon.address) for _ in range(3)]
    holder = await face.call(pool.lease, 16 * MIB)
    order: list[int] = []

    async def wait(number: int, size: int) -> Any:
        lease = await face.call(others[number].lease, size, timeout=60)
        order.append(number)
        return lease

    tasks = []
    for number, size in enumerate((16 * MIB, 64, 64)):
        tasks.append(asyncio.create_task(wait(number, size)))
        await face.until(partial(_waiters_are, daemon, number + 1))
    await face.call(holder.release)
    first = await tasks[0]
    assert order == [0]
    await face.call(first.release)
    await asyncio.gather(*tasks[1:])
    for other in others:
        await face.call(other.close)


async def test_waiting_for_ever_ends_with_the_memory(face: Face, pool: Any) -> None:
    """`timeout=None` waits until there is room."""
    holder = await face.call(pool.lease, 16 * MIB)
    waiting = asyncio.create_task(face.call(pool.lease, 64, timeout=None))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await face.call(holder.release)
    await face.call((await waiting).release)


async def test_read_only(daemon: DaemonProcess, face: Face, pool: Any) -> None:
    """A read-only pool opens and reads; it cannot lease, and its memory cannot be written at all."""
    reader = await face.connect(daemon.address, read_only=True)
    lease = await face.call(pool.lease, 5)
    lease.view[:] = b"hello"
    ref = await face.call(reader.open, await face.call(lease.share))
    assert bytes(ref.view) == b"hello"
    with pytest.raises(TypeError):
        ref.view[0] = 1
    with pytest.raises(slabd.ReadOnly) as caught:
        await face.call(reader.lease, 1)
    assert isinstance(caught.value, PermissionError)
    await face.call(ref.close)
    await face.call(reader.close)
    await face.call(lease.release)


async def test_read_and_write_copies(face: Face, pool: Any) -> None:
    """`write` and `read` copy in and out, within the block's bounds."""
    lease = await face.call(pool.lease, 100)
    assert await face.call(lease.write, b"hello", 10) == 5
    assert await face.call(lease.read, 10, 5) == b"hello"
    with pytest.raises(slabd.OutOfRange):
        await face.call(lease.write, bytes(200))
    with pytest.raises(slabd.OutOfRange):
        await face.call(lease.read, 0, 1000)
    await face.call(lease.release)


@pytest.mark.parametrize("size", [0, -1, 2**70, 1.5, "1", None, True])
async def test_bad_sizes(face: Face, pool: Any, size: Any) -> None:
    """What is no size is a ValueError or a MemoryError, and nothing is leased."""
    with pytest.raises((ValueError, TypeError, MemoryError)) as caught:
        await face.call(pool.lease, size)
    assert isinstance(caught.value, slabd.SlabdError)
    assert (await face.call(pool.stats)).used_bytes == 0


@pytest.mark.parametrize("alignment", [0, 3, -8, 2**63 + 1, 1.0])
async def test_bad_alignments(face: Face, pool: Any, alignment: Any) -> None:
    """What is no alignment is refused."""
    with pytest.raises(slabd.SlabdError):
        await face.call(pool.lease, 64, alignment=alignment)
    assert (await face.call(pool.stats)).used_bytes == 0


@pytest.mark.parametrize("handle", [b"", b"x" * 48, "nonsense", "ä", bytes(48)])
async def test_bad_handles(face: Face, pool: Any, handle: Any) -> None:
    """What is no handle is refused before anybody is asked."""
    with pytest.raises(slabd.InvalidHandle):
        await face.call(pool.open, handle)


async def test_alignment_is_honoured(face: Face, pool: Any) -> None:
    """The offset is a multiple of the alignment, also above a page."""
    for alignment in (1, 64, 4096, 8192, MIB):
        lease = await face.call(pool.lease, 100, alignment=alignment)
        assert lease.offset % alignment == 0
        await face.call(lease.release)


async def test_usable_size(face: Face, pool: Any) -> None:
    """The pool says beforehand what a request would get."""
    usable = await face.call(pool.usable_size, 100)
    assert tuple(usable) == (100, 128)


async def test_a_closed_pool_refuses(daemon: DaemonProcess, face: Face) -> None:
    """After close nothing works, nothing is held, and closing again is no error."""
    pool = await face.connect(daemon.address)
    lease = await face.call(pool.lease, 64)
    view = lease.view
    await face.call(pool.close)
    await face.call(pool.close)
    assert daemon.used == 0
    assert not daemon.sessions()
    with pytest.raises(slabd.PoolClosed):
        await face.call(pool.lease, 64)
    with pytest.raises(ValueError, match="released"):
        view[0] = 1


async def test_closing_with_exports_closes_nothing(daemon: DaemonProcess, face: Face) -> None:
    """A pool whose memory is still used by an array does not close, like a mapping that is exported."""
    pool = await face.connect(daemon.address)
    array = await face.call(pool.empty, 10)
    with pytest.raises(BufferError):
        await face.call(pool.close)
    array[:] = 1
    assert daemon.used
    del array
    await face.call(pool.close)


async def test_the_daemon_dies(daemon: DaemonProcess, face: Face) -> None:
    """When the daemon is killed, calls raise a ConnectionError and what is mapped stays readable."""
    pool = await face.connect(daemon.address)
    lease = await face.call(pool.lease, 5)
    lease.view[:] = b"hello"
    daemon.kill()
    with pytest.raises(slabd.DaemonUnavailable) as caught:
        await face.call(pool.lease, 64)
    assert isinstance(caught.value, ConnectionError)
    assert bytes(lease.view) == b"hello"
    await face.call(pool.close)


async def test_a_stopped_daemon_is_waited_for(daemon: DaemonProcess, face: Face, pool: Any) -> None:
    """A daemon that is stopped for a moment costs a moment and nothing else."""
    daemon.stop()
    waiting = asyncio.create_task(face.call(pool.lease, 64))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    daemon.cont()
    await face.call((await waiting).release)


async def test_no_daemon(face: Face, tmp_path: object) -> None:
    """Without a daemon the error names the socket and says what to do."""
    with pytest.raises(slabd.DaemonUnavailable, match=r"attach\.sock.*slabd serve") as caught:
        await face.connect(str(tmp_path))
    assert isinstance(caught.value, ConnectionError)


async def test_many_at_once(daemon: DaemonProcess, face: Face, pool: Any) -> None:
    """Many tasks or threads on one pool get different blocks, and nothing is lost."""

    async def work(number: int) -> None:
        for _ in range(10):
            lease = await face.call(pool.lease, 256)
            lease.view[:] = bytes([number]) * 256
            await asyncio.sleep(0)
            assert set(bytes(lease.view)) == {number}
            await face.call(lease.release)

    await asyncio.gather(*(work(number) for number in range(20)))
    assert daemon.used == 0


async def test_cancelled_waiting_leaves_the_queue(daemon: DaemonProcess) -> None:
    """A cancelled lease leaves the queue at once; one cancelled as it was granted leaks nothing."""
    async with slabd.aio.connect(daemon.address) as pool:
        holder = await pool.lease(16 * MIB)
        waiting = asyncio.create_task(_take(pool))
        await asyncio.to_thread(eventually, lambda: daemon.stats().waiters == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(eventually, lambda: daemon.stats().waiters == 0)
        await holder.release()
        for delay in range(60):
            racing = asyncio.create_task(_take(pool))
            await asyncio.sleep(delay * 2e-4)
            racing.cancel()
            try:
                lease = await racing
            except asyncio.CancelledError:
                continue
            await lease.release()
        await asyncio.to_thread(eventually, lambda: daemon.used == 0)


def _waiters_are(daemon: DaemonProcess, number: int) -> bool:
    return daemon.stats().waiters == number


async def _take(pool: slabd.aio.AsyncPool) -> slabd.aio.AsyncLease:
    return await pool.lease(64, timeout=60)


def test_a_forked_child_leases_for_itself(daemon: DaemonProcess, puppet: Any) -> None:
    """A forked child has a session of its own, also when another thread of its parent waits in a call."""
    parent = puppet()
    assert parent.do("fork_and_use", 64) == "ok"
    parent.do("lease", 15 * MIB)
    assert parent.do("fork_while_waiting", 16 * MIB, 600.0) == str(15 * MIB)
    eventually(lambda: _waiters_are(daemon, 1))  # the parent's thread went on waiting after the fork


def test_interpreter_exit_leaves_nothing(daemon: DaemonProcess) -> None:
    """A script that ends without closing anything ends quietly, and everything it held is free."""
    code = f"import slabd; pool = slabd.connect({daemon.address!r}); lease = pool.lease(100); view = lease.view"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    eventually(lambda: daemon.used == 0)
