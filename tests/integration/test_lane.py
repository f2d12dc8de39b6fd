"""The lane between real clients and a real daemon: what costs no call, what survives whom, and who gets memory back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures.daemons import PATIENCE_SECONDS, DaemonProcess, eventually
from tests.fixtures.programs import program, run
from tests.fixtures.puppets import Puppet, PuppetError

import slabd
import slabd.aio
from slabd.ctl.__main__ import main as slabctl
from slabd.helpers import call_safely
from slabd_proto.v1 import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KIB = 1 << 10
MIB = 1 << 20
LEASED, CACHED, SHARED = admin_pb2.BLOCK_STATE_LEASED, admin_pb2.BLOCK_STATE_CACHED, admin_pb2.BLOCK_STATE_SHARED


def states(daemon: DaemonProcess) -> list[int]:
    """Return the states of all blocks, in order."""
    return sorted(lease.state for lease in daemon.leases())


def warm_up(pool: slabd.Pool, *sizes: int, count: int = 1) -> None:
    """Lease and release so many blocks of each size at once, until all of them come from the cache."""
    for size in sizes:
        for _ in range(8):
            for lease in [pool.lease(size) for _ in range(count)]:
                lease.release()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients wait for a daemon that gets no processor, and not ask by gRPC, where calls are counted."""
    monkeypatch.setattr("slabd.cache.MISS_SECONDS", PATIENCE_SECONDS)


def settled(pool: slabd.Pool) -> bool:
    """Take in all that the daemon has granted for later, and return whether nothing more is to come."""
    assert pool._cache is not None
    pool._cache.collect()
    return not pool._cache._asked


# -- calls that are not made


def test_a_steady_state_makes_no_calls(daemon: DaemonProcess) -> None:
    """Ten thousand leases, of sizes that were leased before, cost the daemon no gRPC call at all."""
    sizes = (64, 1000, 4096, 5000, 100_000)
    with slabd.connect(daemon.address) as pool:
        warm_up(pool, *sizes)
        before = daemon.calls()
        for turn in range(10_000):
            with pool.lease(sizes[turn % len(sizes)], label="steady") as lease:
                lease.view[:1] = b"x"
        assert daemon.calls() == before
        assert pool._cache is not None
        assert daemon.used == 0


def test_a_hit_wakes_nobody(daemon: DaemonProcess) -> None:
    """What is at hand is leased and released while the daemon is stopped."""
    with slabd.connect(daemon.address) as pool:
        warm_up(pool, 1000, count=4)
        daemon.stop()
        for _ in range(1000):
            with pool.lease(1000) as lease:
                lease.view[:] = bytes(1000)
        daemon.cont()
    assert daemon.used == 0


def test_misses_make_no_calls(daemon: DaemonProcess) -> None:
    """A lease that is not at hand is asked for over the lane: also with nothing kept, no gRPC call is made."""
    with slabd.connect(daemon.address, cache_bytes=0) as pool:
        before = daemon.calls()
        for _ in range(200):
            pool.lease(1000).release()
        assert daemon.calls() == before


def test_a_hand_off_makes_no_calls(daemon: DaemonProcess) -> None:
    """Sharing, opening and closing cost no gRPC call, on either side."""
    with slabd.connect(daemon.address) as maker, slabd.connect(daemon.address, read_only=True) as reader:
        warm_up(maker, 1000)
        before = daemon.calls()
        for turn in range(500):
            with maker.lease(1000) as lease:
                lease.view[:2] = turn.to_bytes(2, "little")
                handle = lease.share()
            with reader.open(handle) as ref:
                assert bytes(ref.view[:2]) == turn.to_bytes(2, "little")
        assert daemon.calls() == before
    eventually(lambda: daemon.used == 0)


@pytest.mark.parametrize("size", [64, 6 * MIB])
def test_blocks_of_any_size_hit(size: int) -> None:
    """A frame of 6 MiB is leased again as locally as a message of 64 bytes."""
    with DaemonProcess(heap_size="64MiB") as daemon, slabd.connect(daemon.address) as pool:
        warm_up(pool, size)
        assert pool._cache is not None
        before, misses = daemon.calls(), pool._cache.misses
        offsets = set()
        for _ in range(100):
            with pool.lease(size) as lease:
                lease.view[-1:] = b"x"
                offsets.add(lease.offset)
        assert (daemon.calls(), pool._cache.misses, len(offsets)) == (before, misses, 1)
        daemon.check()


def test_any_kind_of_integer_hits(daemon: DaemonProcess) -> None:
    """Sizes and alignments as numpy has them are as good as ints; what is no integer is refused on a hit as well."""
    with slabd.connect(daemon.address) as pool:
        warm_up(pool, 1000)
        pool.lease(500, alignment=4096).release()
        for size in (np.int64(1000), np.uint16(1000)):
            with pool.lease(size) as lease:  # type: ignore[arg-type]
                assert (len(lease.view), type(lease.size)) == (1000, int)
        with pool.lease(500, alignment=np.int32(4096)) as lease:  # type: ignore[arg-type]
            assert lease.offset % 4096 == 0
        for wrong in (True, 1000.0, "1000", None):
            with pytest.raises(slabd.SlabdError):
                pool.lease(wrong)  # type: ignore[arg-type]
        for options in ({"alignment": 4096.0}, {"label": 5}, {"label": "x" * 200}, {"timeout": -1}):
            with pytest.raises(slabd.SlabdError):
                pool.lease(500, **options)
        eventually(lambda: daemon.used == 0)


# -- without


def test_without_a_lane(daemon: DaemonProcess) -> None:
    """With `lane=False` each lease is a call, and nothing is kept."""
    with slabd.connect(daemon.address, lane=False) as pool:
        before = daemon.calls()
        for _ in range(5):
            pool.lease(1000).release()
        after = daemon.calls()
        assert (after["Lease"] - before["Lease"], after["Release"] - before["Release"]) == (5, 5)
        assert not daemon.leases()


def test_without_a_cache(daemon: DaemonProcess) -> None:
    """With `cache_bytes=0` what is released is free, also after many blocks at once and of many sizes."""
    with slabd.connect(daemon.address, cache_bytes=0) as pool:
        warm_up(pool, 64, 5000, MIB, count=3)
        eventually(lambda: (daemon.leases(), daemon.cached) == ([], 0))


def test_a_cache_within_its_bounds(daemon: DaemonProcess) -> None:
    """However many sizes are leased, no more is kept than was allowed."""
    with slabd.connect(daemon.address, cache_bytes=200_000) as pool:
        warm_up(pool, 64, 1000, 5000, 20_000, 60_000, 150_000, count=5)
        assert 0 < daemon.cached <= 200_000
        assert sum(lease.block.size for lease in daemon.leases()) <= 200_000


def test_a_read_only_pool_opens_without_asking(daemon: DaemonProcess) -> None:
    """A read-only client opens over the lane, leases nothing, and ends nobody's session by trying."""
    with slabd.connect(daemon.address) as pool, slabd.connect(daemon.address, read_only=True) as reader:
        lease = pool.lease(5)
        lease.view[:] = b"hello"
        before = daemon.calls()
        with reader.open(lease.share()) as ref:
            assert (bytes(ref.view), ref.view.readonly) == (b"hello", True)
        assert daemon.calls() == before
        for _ in range(2):
            with pytest.raises(slabd.ReadOnly):
                reader.lease(64)
        with reader.open(lease.share()) as ref:
            assert bytes(ref.view) == b"hello"
        lease.release()


# -- who holds what


def test_cached_bytes_are_available(daemon: DaemonProcess) -> None:
    """What lies in a cache is not used, is available, and is listed as cached; the books balance."""
    with slabd.connect(daemon.address) as pool:
        warm_up(pool, 100_000, count=4)
        stats = daemon.stats()
        assert (stats.used_bytes, stats.available_bytes) == (0, 16 * MIB)
        assert 0 < stats.states.cached <= 4 * MIB
        (session,) = daemon.sessions()
        assert (session.cached_bytes, session.used_bytes, session.leases) == (stats.states.cached, 0, 0)
        daemon.check()


def test_a_scrape_asks_the_lanes(daemon: DaemonProcess) -> None:
    """What is cached, by state and by class, and how often that was of use, is as new as the scrape itself."""

    def sample(name: str) -> float:
        (value,) = re.findall(rf"^{re.escape(name)} (.*)$", daemon.scrape(), re.MULTILINE)
        return float(value)

    with slabd.connect(daemon.address) as pool:
        warm_up(pool, 1000, count=3)
        assert sample('slabd_heap_state_bytes{heap="default",state="cached"}') >= 3 * 1024
        assert sample('slabd_class_cached_blocks{heap="default",size_class="1024"}') >= 3
        assert sample('slabd_cache_misses_total{heap="default"}') > 0
        before = sample('slabd_cache_hits_total{heap="default"}')
        for _ in range(500):
            pool.lease(1000).release()
    eventually(lambda: sample('slabd_cache_hits_total{heap="default"}') >= before + 500)
    assert sample('slabd_heap_state_bytes{heap="default",state="cached"}') == 0


def test_who_holds_what_without_being_told(daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """`slabctl leases` shows label, requested size and line of code of blocks that the daemon was never told about."""
    with slabd.connect(daemon.address) as pool:
        warm_up(pool, 1000, count=3)
        before = daemon.calls()
        first, second = pool.lease(900, label="camera 1"), pool.lease(1000, label="camera 2", call_site="rig.py:7")
        assert daemon.calls() == before
        listed = {lease.block.offset: lease for lease in daemon.leases()}
        one, two = listed[first.offset], listed[second.offset]
        assert (one.state, one.label, one.block.requested_size) == (LEASED, "camera 1", 900)
        assert "test_lane.py:" in one.call_site
        assert (two.state, two.label, two.block.requested_size, two.call_site) == (LEASED, "camera 2", 1000, "rig.py:7")
        assert {lease.state for offset, lease in listed.items() if offset not in (first.offset, second.offset)} <= {
            CACHED
        }
        assert slabctl(["--address", daemon.address, "leases"]) == 0
        out = capsys.readouterr().out
        for word in ("camera 1", "camera 2", "rig.py:7", "cached"):
            assert word in out
        handle = second.share()
        (shared,) = [lease for lease in daemon.leases() if lease.state == SHARED]
        assert (shared.label, shared.pending_opens) == ("camera 2", 1)
        first.release()
        assert [lease.label for lease in daemon.leases() if lease.state == LEASED] == []
        pool.open(handle).release()
        second.release()


def test_a_lease_is_as_old_as_the_lease_and_not_as_the_block(daemon: DaemonProcess) -> None:
    """The age of a lease is counted from when it was taken, though the daemon granted its block long before."""
    with slabd.connect(daemon.address) as pool:
        warm_up(pool, 1000)
        granted = {lease.block.ref.slot: lease.age.ToTimedelta() for lease in daemon.leases()}
        time.sleep(0.2)
        before = time.monotonic()
        with pool.lease(1000):
            (leased,) = [lease for lease in daemon.leases() if lease.state == LEASED]
        most = time.monotonic() - before
        assert leased.block.ref.slot in granted
        assert leased.age.ToTimedelta().total_seconds() <= most


def test_an_idle_cache_decays(daemon: DaemonProcess) -> None:
    """What nobody uses for a while goes back by itself; what is in use stays."""
    with slabd.connect(daemon.address) as pool:
        kept = pool.lease(3000)
        warm_up(pool, 100_000, 1000, count=4)
        assert daemon.cached
        eventually(lambda: len(daemon.leases()) == 1, "the cache is empty")
        assert daemon.used == kept.usable_size
        kept.release()
    eventually(lambda: daemon.used == 0)


# -- memory back


@dataclass
class Crowd:
    """A daemon most of whose heap can be in the caches of eight clients."""

    daemon: DaemonProcess
    clients: list[Puppet]

    def fill(self) -> None:
        """Have every client keep as much as it may."""
        for client in self.clients:
            client.do("fill_cache", 300 * KIB, 4 * KIB, 20 * KIB, 40 * KIB, 90 * KIB)
        assert self.daemon.cached > 2 * MIB
        assert all(session.cached_bytes for session in self.daemon.sessions())
        assert self.daemon.used == 0

    def go_on(self) -> None:
        """Have every client lease, use and release."""
        for client in self.clients:
            number = client.do("lease", 90 * KIB)
            client.do("fill", number, 7)
            client.do("release", number)
        assert self.daemon.used == 0
        self.daemon.check()


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    """Eight clients in processes of their own."""
    with DaemonProcess() as daemon:
        # So that most of the heap is cached in the end, and nobody takes from the others meanwhile.
        clients = [Puppet(daemon.address, cache_bytes=5 * MIB // 4) for _ in range(8)]
        for client in clients:
            client.do("never_decay")
        yield Crowd(daemon, clients)
        for client in clients:
            client.close()


def test_a_ninth_gets_what_eight_have_cached(crowd: Crowd) -> None:
    """Eight full caches do not keep a ninth client from leasing the whole heap, at once and without waiting."""
    crowd.fill()
    for lane in (True, False):
        with slabd.connect(crowd.daemon.address, lane=lane) as ninth, ninth.lease(16 * MIB, timeout=0) as lease:
            assert crowd.daemon.used == 16 * MIB
            lease.view[::4096] = bytes(4096)
            with pytest.raises(PuppetError, match="OutOfMemory"):
                crowd.clients[0].do("lease", 90 * KIB)
        crowd.go_on()
        crowd.fill()


def test_stopped_clients_keep_nothing(crowd: Crowd) -> None:
    """The same when none of the eight runs: what they cached is taken back without asking them."""
    crowd.fill()
    for client in crowd.clients:
        client.stop()
    with slabd.connect(crowd.daemon.address) as ninth, ninth.lease(16 * MIB, timeout=0) as lease:
        lease.view[::4096] = bytes(4096)
        for client in crowd.clients:
            client.cont()
        with pytest.raises(PuppetError, match="OutOfMemory"):
            crowd.clients[0].do("lease", 90 * KIB)
        crowd.daemon.check()
    crowd.go_on()


def test_a_ninth_waits_its_turn_among_the_busy(crowd: Crowd) -> None:
    """While eight lease and release without end, out of their caches, a ninth that waits gets nearly everything."""
    crowd.fill()
    for client in crowd.clients:
        client.do("churn", 40 * KIB)
        client.do("churn", 90 * KIB)
    with slabd.connect(crowd.daemon.address) as ninth:
        for _ in range(10):
            leases = ninth.lease_many([256 * KIB] * 40, timeout=PATIENCE_SECONDS)
            ninth.release_many(leases)
    for client in crowd.clients:
        assert client.do("calm") == []
    crowd.go_on()


def test_waiting_takes_back_what_is_cached_meanwhile(crowd: Crowd) -> None:
    """Who waits for a block that is in use gets it when it is released, also when it goes into a cache first."""
    crowd.fill()
    holder = crowd.clients[0]
    number = holder.do("lease", 90 * KIB)
    with slabd.connect(crowd.daemon.address) as ninth:
        thread = threading.Thread(target=lambda: ninth.lease(16 * MIB, timeout=PATIENCE_SECONDS).release())
        thread.start()
        eventually(lambda: crowd.daemon.stats().waiters == 1)
        holder.do("release", number)
        thread.join()
    crowd.go_on()


def test_draining_ends_though_caches_are_full(crowd: Crowd) -> None:
    """Draining waits for the last lease and for no cache: not even for one whose client is stopped."""
    crowd.fill()
    crowd.clients[0].stop()
    answer = crowd.daemon.admin.Drain(
        admin_pb2.DrainRequest(timeout=_duration(PATIENCE_SECONDS)), timeout=2 * PATIENCE_SECONDS
    )
    assert (answer.draining, answer.leases, crowd.daemon.leases()) == (True, 0, [])
    crowd.clients[0].cont()
    with pytest.raises(PuppetError, match="Draining"):
        crowd.clients[0].do("lease", 90 * KIB)
    crowd.daemon.admin.Drain(admin_pb2.DrainRequest(resume=True), timeout=PATIENCE_SECONDS)
    crowd.go_on()


def _duration(seconds: float) -> Any:
    return admin_pb2.DrainRequest().timeout.__class__(seconds=int(seconds))


def test_a_daemon_stops_though_caches_are_full() -> None:
    """SIGTERM ends a daemon as soon as nothing is in use, whatever its clients have cached."""
    with DaemonProcess("--drain-seconds", "3600") as daemon, slabd.connect(daemon.address) as pool:
        warm_up(pool, 1000, 100_000, count=4)
        assert daemon.cached
        assert daemon.terminate() == 0


# -- deaths


SHARE_AND_DIE = """
    pool = slabd.connect(sys.argv[1])
    for _ in range(3):
        for lease in [pool.lease(1000) for _ in range(4)]:
            lease.release()
    print("ready", flush=True)
    sys.stdin.readline()
    lease = pool.lease(1000)
    lease.view[:6] = b"legacy"
    handle = lease.share()
    os.write(1, str(handle).encode() + b"\\n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("read", ["before the death is noticed", "after"])
def test_killed_right_after_sharing(daemon: DaemonProcess, tmp_path: Path, read: str) -> None:
    """A client that posts SHARE and is killed, while the daemon sleeps, has shared: its consumer opens the block."""
    with slabd.connect(daemon.address) as pool, program(daemon, tmp_path, SHARE_AND_DIE) as victim:
        assert victim.stdout is not None
        assert victim.stdin is not None
        assert victim.stdout.readline() == "ready\n"
        eventually(daemon.sessions)
        daemon.stop()
        victim.stdin.write("go\n")
        victim.stdin.flush()
        handle = victim.stdout.readline().strip()
        assert victim.wait(PATIENCE_SECONDS) == -9
        if read == "after":
            daemon.cont()
            eventually(lambda: len(daemon.sessions()) == 1)
        ref = pool.open(handle)
        assert bytes(ref.view[:6]) == b"legacy"
        daemon.cont()
        eventually(lambda: len(daemon.sessions()) == 1)
        (block,) = daemon.leases()
        assert (block.state, block.pending_opens, list(block.opened_by)) == (SHARED, 0, [pool.session_id])
        assert bytes(ref.view[:6]) == b"legacy"
        ref.release()
        eventually(lambda: not daemon.leases())
    daemon.check()


def test_killed_with_a_full_cache(daemon: DaemonProcess, puppet: Callable[..., Puppet]) -> None:
    """What a killed client had in use, in its cache and on its way is free again."""
    victim = puppet()
    victim.do("fill_cache", MIB, 1000, 100_000)
    victim.do("lease", 1000)
    victim.do("share", victim.do("lease", 1000), 1, 0.5)
    victim.kill()
    eventually(lambda: not daemon.leases())
    daemon.check()


def test_an_ended_session_leases_no_more(daemon: DaemonProcess) -> None:
    """After an operator has ended a session, its cache gives nothing any more, and what is in use stays readable."""
    pool = slabd.connect(daemon.address)
    warm_up(pool, 1000, count=4)
    lease = pool.lease(1000)
    lease.view[:5] = b"hello"
    assert slabctl(["--address", daemon.address, "evict", str(pool.session_id)]) == 0
    for _ in range(2):
        with pytest.raises(slabd.SessionEnded):
            pool.lease(1000)
    with pytest.raises(slabd.SlabdError):
        lease.share()
    assert bytes(lease.view[:5]) == b"hello"
    lease.release()
    pool.close()
    eventually(lambda: not daemon.leases())


def test_what_an_ended_session_had_cached_is_not_available(daemon: DaemonProcess) -> None:
    """Blocks of a session in quarantine cannot be recalled, so they are used, whatever its client had said of them."""
    pool = slabd.connect(daemon.address)
    warm_up(pool, 500 * KIB, count=4)
    with slabd.connect(daemon.address, lane=False) as other, other.lease(8 * MIB):
        before = daemon.stats()
        assert before.states.cached
        daemon.evict(pool.session_id)
        after = daemon.stats()
        assert after.states.quarantined == before.states.cached
        assert (after.states.cached, after.used_bytes) == (0, 8 * MIB + before.states.cached)
    pool.close()


def test_a_miss_fails_when_the_daemon_is_dead(daemon: DaemonProcess) -> None:
    """When the daemon has been killed, what is at hand is still leased, and a miss says that nobody is there."""
    pool = slabd.connect(daemon.address)
    warm_up(pool, 1000)
    lease = pool.lease(1000)
    lease.view[:5] = b"hello"
    daemon.kill()
    for _ in range(3):
        with pytest.raises(slabd.DaemonUnavailable):
            pool.lease(5 * MIB)
    assert bytes(lease.view[:5]) == b"hello"
    lease.release()
    pool.close()


def test_what_a_slow_daemon_grants_too_late_is_not_lost(daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that was given up over the lane, and then granted there too, leaves nothing in use."""
    monkeypatch.setattr("slabd.cache.MISS_SECONDS", 1.0)
    with slabd.connect(daemon.address) as pool:
        pool.lease(100).release()
        daemon.stats()
        daemon.stop()
        waiting = threading.Thread(target=lambda: pool.lease(200_000).release())
        waiting.start()
        time.sleep(1.5)  # longer than a client waits for an answer over the lane
        daemon.cont()
        waiting.join()
        eventually(lambda: daemon.used == 0)
    daemon.check()


def test_a_script_that_just_ends(daemon: DaemonProcess, tmp_path: Path) -> None:
    """A script that ends with a cache, a lease and a handle of its own ends quietly and leaves nothing."""
    out = run(
        daemon,
        tmp_path,
        """
        pool = slabd.connect(sys.argv[1])
        leases = [pool.lease(1000) for _ in range(10)]
        for lease in leases[:5]:
            lease.release()
        handle = leases[5].share(ttl=0.5)
        view = leases[6].view
        print("done")
        """,
    )
    assert out == "done"
    eventually(lambda: not daemon.leases())


# -- leases of one block, one after the other


def test_a_refused_transfer_leaves_a_shared_block_shared(daemon: DaemonProcess) -> None:
    """A block that was shared, and could not be transferred then, is not leased again when it is dropped."""
    with slabd.connect(daemon.address) as pool, slabd.connect(daemon.address) as reader:
        warm_up(pool, 1000, count=4)
        leases = [pool.lease(1000) for _ in range(4)]
        lease = leases.pop()
        lease.view[:3] = b"old"
        handle = lease.share()
        with pytest.raises(slabd.InvalidArgument, match="promised"):
            lease.transfer()
        del lease
        gc.collect()
        time.sleep(0.1)  # for the housekeeping to do it wrong
        leases += [pool.lease(1000) for _ in range(8)]
        for each in leases:
            each.view[:3] = b"new"
        with reader.open(handle) as ref:
            assert bytes(ref.view[:3]) == b"old"
        pool.release_many(leases)


@pytest.mark.parametrize("verb", ["release_many", "transfer", "share_many", "exit with an exception"])
def test_what_comes_too_late_for_its_lease_touches_no_other(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A lease that ends in another thread just before one's own call does not end, or share, the block's next lease."""
    with slabd.connect(daemon.address) as pool:
        warm_up(pool, 1000, count=4)
        eventually(lambda: settled(pool))
        lease = pool.lease(1000)
        other: list[slabd.Lease] = []

        def meanwhile(work: Callable[[], object]) -> object:
            lease.release()
            other.append(pool.lease(1000))
            return call_safely(work)

        monkeypatch.setattr("slabd.helpers.call_safely", meanwhile)
        with contextlib.suppress(slabd.LeaseReleased, ZeroDivisionError):
            if verb == "release_many":
                pool.release_many([lease])
            elif verb == "transfer":
                lease.transfer()
            elif verb == "share_many":
                pool.share_many([lease])
            else:
                with lease:
                    raise ZeroDivisionError
        monkeypatch.undo()
        (next_lease,) = other
        assert next_lease.offset == lease.offset
        next_lease.view[:2] = b"ok"
        assert not next_lease.released
        (found,) = [each for each in daemon.leases() if each.block.offset == next_lease.offset]
        assert (found.state, found.pending_opens) == (LEASED, 0)
        next_lease.release()


async def test_a_transfer_whose_answer_is_lost_is_not_leased_again(daemon: DaemonProcess) -> None:
    """It may be its next owner's by now: whoever leases here next has another block."""
    async with await slabd.aio.connect(daemon.address) as pool:
        for lease in [await pool.lease(100_000) for _ in range(3)]:
            await lease.release()
        given = await pool.lease(100_000)
        offset = given.offset
        task = asyncio.create_task(given.transfer(ttl=600))
        await asyncio.sleep(0)
        while not any(lease.pending_opens for lease in daemon.leases()):
            await asyncio.sleep(0)
            # The daemon has to do it before the loop hears of its answer: nothing else runs here meanwhile.
            time.sleep(0.01)  # noqa: ASYNC251
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert offset not in [(await pool.lease(100_000)).offset for _ in range(8)]


# -- many at once


def test_threads_lease_and_share_at_once(daemon: DaemonProcess) -> None:
    """Eight threads lease, fill, share, open and release on two pools: each block is its lease's, and all come back."""
    wrong: list[object] = []

    def work(number: int, mine: slabd.Pool, other: slabd.Pool) -> None:
        try:
            for count in range(300):
                wrong.extend(_play(number, count, mine, other))
        except BaseException as error:  # noqa: BLE001 - the test shows it
            wrong.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with slabd.connect(daemon.address) as one, slabd.connect(daemon.address) as two:
            threads = [
                threading.Thread(target=work, args=(number, *((one, two) if number % 2 else (two, one))))
                for number in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == []
            eventually(lambda: daemon.used == 0)
            daemon.check()
            assert len(daemon.sessions()) == 2
    finally:
        sys.setswitchinterval(before)
    eventually(lambda: not daemon.leases())


def _play(number: int, count: int, mine: slabd.Pool, other: slabd.Pool) -> list[object]:
    """Lease, fill and perhaps hand on a block, and release it or leave that to the collector; return what is wrong."""
    mark = (number << 16 | count).to_bytes(4, "little")
    lease = mine.lease((64, 700, 3000, 9000, 70_000)[(number + count) % 5], label=f"thread {number}")
    lease.view[:4] = lease.view[-4:] = mark
    refs: list[Any] = []
    if count % 3 == 0:
        handle = lease.share(opens=2)
        refs = [other.open(handle), mine.open(handle)]
        if count % 2:
            lease.release()
    blocks = refs if lease.released else [lease, *refs]
    wrong = [block for block in blocks if (bytes(block.view[:4]), bytes(block.view[-4:])) != (mark, mark)]
    for ref in refs:
        ref.release()
    if count % 7:
        lease.release()
    return wrong
