"""The client's cache, over a lane whose other end the test moves."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures.hand_daemon import SLOTS, HandDaemon

import slabd
from slabd import cache as cache_module
from slabd import lane as lane_module
from slabd.handle import Handle
from slabd.holding import BlockName, Holding, Term
from slabd_proto.lane import ENDED, RING, State, Submission, Verb, Word, unpack_detail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


@pytest.fixture
def daemon() -> Iterator[HandDaemon]:
    """A daemon by hand, with a client's cache on it."""
    made = HandDaemon()
    yield made
    made.close()


def posts(daemon: HandDaemon, verb: Verb) -> list[Submission]:
    """Return what the daemon has read of a kind."""
    return [post for post in daemon.posts if post.verb == verb]


def unwritten(daemon: HandDaemon) -> bool:
    """Whether something that was committed waits for room in the ring."""
    return daemon.lane.has_unwritten


def warm(daemon: HandDaemon, size: int, count: int) -> None:
    """Have so many blocks of a size at hand, or more."""
    for _ in range(8):
        daemon.release(*[daemon.lease(size) for _ in range(count)])
    daemon.read()
    daemon.posts.clear()


# -- hits


def test_a_hit_asks_nobody(daemon: HandDaemon) -> None:
    """What was released is leased again, the last one first, and nothing is posted."""
    warm(daemon, 100, 2)
    first, second = daemon.lease(100), daemon.lease(100)
    daemon.release(second, first)
    assert daemon.lease(100) is first
    assert daemon.lease(120) is second
    assert daemon.read() == []


def test_a_view_is_as_long_as_was_asked_for(daemon: HandDaemon) -> None:
    """The same block serves leases of several sizes, each with a view of its own size over the same bytes."""
    warm(daemon, 100, 1)
    one = daemon.lease(100)
    one.view[:] = b"x" * 100
    old = one.view
    daemon.release(one)
    with pytest.raises(ValueError, match="released"):
        old[:1] = b"y"
    two = daemon.lease(70)
    assert (two, len(two.view), bytes(two.view)) == (one, 70, b"x" * 70)


def test_classes_are_by_block_and_alignment(daemon: HandDaemon) -> None:
    """Sizes that get the same block share a stack; another alignment has one of its own."""
    for size in (100, 65, 128, 70):
        daemon.release(daemon.lease(size))
    daemon.release(daemon.lease(100, alignment=4096), daemon.lease(200))
    assert len(daemon.cache._classes) == 3
    kept = daemon.lease(80, alignment=4096)
    assert kept.kind is not None
    assert kept.kind.alignment == 4096


@pytest.mark.parametrize("wrong", [True, 1.0, "1", None, 0, -1, 2**64])
def test_what_is_no_size_is_refused(daemon: HandDaemon, wrong: Any) -> None:
    """Also when a block is at hand that would fit, and nothing is taken."""
    warm(daemon, 64, 1)
    warm(daemon, 1, 1)
    with pytest.raises(slabd.SlabdError):
        daemon.lease(wrong)
    daemon.balances()


@pytest.mark.parametrize("wrong", [True, 4096.0, "1", None, 0, 3])
def test_what_is_no_alignment_is_refused(daemon: HandDaemon, wrong: Any) -> None:
    """Also when a block is at hand under a number that is equal to it."""
    daemon.release(daemon.lease(64, alignment=4096), daemon.lease(64))
    with pytest.raises(slabd.SlabdError):
        daemon.lease(64, alignment=wrong)
    daemon.balances()


@pytest.mark.parametrize("size", [np.int64(100), np.uint8(100), np.int32(100)])
def test_numpy_integers_are_integers(daemon: HandDaemon, size: Any) -> None:
    """They hit, and the lease's size is an int."""
    warm(daemon, 100, 1)
    holding = daemon.lease(size)
    assert (holding.size, type(holding.size)) == (100, int)
    assert daemon.read() == []


@pytest.mark.parametrize("label", [5, None, "x" * 200])
def test_a_bad_label_takes_nothing(daemon: HandDaemon, label: Any) -> None:
    """A lease whose label is refused leaves the block that was at hand to the next one."""
    warm(daemon, 100, 1)
    with pytest.raises(slabd.SlabdError):
        daemon.lease(100, label=label)
    daemon.keep_house()
    daemon.balances()
    daemon.lease(100)
    assert posts(daemon, Verb.LEASE) == []


# -- misses


def test_batches_grow_with_demand(daemon: HandDaemon) -> None:
    """Each miss asks for twice as many, up to a bound, so that many leases cost few wake-ups."""
    held = [daemon.lease(100) for _ in range(500)]
    asked = [post.quantity for post in posts(daemon, Verb.LEASE)]
    assert asked == sorted(asked)
    assert asked[0] == 1
    assert max(asked) <= 64
    assert len(asked) < 20
    assert len({each.slot for each in held}) == 500
    daemon.balances(in_use=500)


def test_the_budget_is_kept() -> None:
    """However many sizes are leased in bulk, what is at hand stays within the limit."""
    daemon = HandDaemon(cache_bytes=100_000)
    for size in (100, 1000, 5000, 20_000, 60_000, 100):
        daemon.release(*[daemon.lease(size) for _ in range(20)])
        assert daemon.cache.cached_bytes <= 100_000
        daemon.balances()
    daemon.close()


@pytest.mark.parametrize("limit", [0, 1, 4096])
def test_a_limit_of_the_pools_own(limit: int) -> None:
    """A pool may allow less than the daemon does; 0 keeps nothing."""
    daemon = HandDaemon(limit=limit)
    for _ in range(3):
        daemon.release(*[daemon.lease(1000) for _ in range(6)])
    daemon.cache.tick()
    assert daemon.cache.cached_bytes <= limit
    daemon.balances()
    daemon.close()


def test_a_refusal_is_left_to_grpc(daemon: HandDaemon) -> None:
    """What the daemon refuses over the lane is asked for by gRPC, and the lane goes on afterwards."""
    daemon.refuses = True
    assert daemon.cache.get(100, 1, "", None, None) is None
    assert daemon.cache.get(100, 1, "", None, None) is None
    daemon.refuses = False
    assert daemon.lease(100).size == 100
    daemon.balances(in_use=1)


def test_silence_is_left_to_grpc(daemon: HandDaemon) -> None:
    """When the daemon hangs up or does not answer, the miss ends; what it grants later is not lost."""
    daemon.silent = True
    assert daemon.cache.get(100, 1, "", None, None) is None
    daemon.silent = False
    daemon.read()
    daemon.cache.tick()
    assert len(daemon.owned) == 1
    daemon.balances()
    assert daemon.lease(100).slot in daemon.owned
    assert len(posts(daemon, Verb.LEASE)) == 1


def test_a_full_ring_is_left_to_grpc(daemon: HandDaemon) -> None:
    """While the daemon reads nothing and the ring is full, a lease goes by gRPC; releases wait in the outbox."""
    held = [daemon.lease(64) for _ in range(100)]
    while daemon.lane.try_post(Submission(Verb.CLOSE)):
        pass
    daemon.silent = True
    assert daemon.cache.get(5000, 1, "", None, None) is None
    held[0].shared = True
    daemon.release(held[0])
    assert unwritten(daemon)
    daemon.read(1)
    daemon.lane.flush()
    assert not unwritten(daemon)
    assert daemon.returned() == [held[0].slot]


def test_async_misses_wait_for_the_bell(daemon: HandDaemon) -> None:
    """Tasks that miss at once each get a block of their own."""

    async def main() -> list[Holding | None]:
        bell = daemon.cache.bell()

        async def serve(_seconds: float) -> bool:
            await asyncio.sleep(0)
            daemon.read()
            return True

        bell.wait = serve  # type: ignore[method-assign, assignment]
        return await asyncio.gather(
            *(daemon.cache.get_async(size, 1, "", None, None) for size in (100, 100, 5000, 100))
        )

    found = [each for each in asyncio.run(main()) if each is not None]
    assert len({each.slot for each in found}) == 4
    daemon.balances(in_use=4)


# -- the usage table


def test_the_usage_table_says_who_uses_what(daemon: HandDaemon) -> None:
    """State, size, label, call site and time of a lease are in the table as long as it lasts."""
    warm(daemon, 100, 1)
    holding = daemon.lease(90, label="frame", call_site="camera.py:7")
    state, size, purpose, since = daemon.segment.usage(holding.slot)
    assert (state, size) == (State.IN_USE, 90)
    assert daemon.segment.purpose(purpose) == ("frame", "camera.py:7")
    assert since > 0
    daemon.release(holding)
    assert daemon.state(holding.slot) is State.CACHED
    again = daemon.lease(100, label="other")
    _, size, purpose, _ = daemon.segment.usage(again.slot)
    assert (size, daemon.segment.purpose(purpose)) == (100, ("other", ""))
    daemon.release(again)
    again = daemon.lease(100)
    assert daemon.segment.usage(again.slot)[2] == 0


def test_the_call_site_is_that_of_the_frame(daemon: HandDaemon) -> None:
    """Two lines that lease the same block by turns are told apart, and so are two labels at one line."""
    warm(daemon, 100, 1)
    seen = set()
    for turn in range(4):
        frame = inspect.currentframe()
        if turn % 2:
            holding = daemon.cache.take(100, 1, f"label {turn // 2}", frame, None)
        else:
            holding = daemon.cache.take(100, 1, f"label {turn // 2}", frame, None)
        assert holding is not None
        label, site = daemon.segment.purpose(daemon.segment.usage(holding.slot)[2])
        assert site.startswith(f"{__file__}:"[-200:])
        seen.add((label, site))
        daemon.release(holding)
    assert len(seen) == 4


def test_the_words_of_a_class_say_what_is_at_hand(daemon: HandDaemon) -> None:
    """The daemon reads from the header how many blocks of which size could be recalled."""
    warm(daemon, 100, 3)
    held = daemon.lease(100)
    assert daemon.segment.cached() == (daemon.cache.cached_bytes, daemon.cache.cached_bytes // 128)
    daemon.release(held)
    daemon.release(daemon.lease(5000), daemon.lease(300))
    assert daemon.segment.cached()[0] == daemon.cache.cached_bytes


# -- releasing


def test_what_has_no_place_goes_back() -> None:
    """More blocks than may be kept are returned when they are released."""
    daemon = HandDaemon(cache_bytes=128 * 100)
    held = [daemon.lease(100) for _ in range(300)]
    daemon.release(*held)
    assert len(daemon.returned()) >= 200
    assert daemon.cache.cached_bytes <= 128 * 100
    daemon.balances()
    daemon.close()


def test_a_shared_block_is_not_kept(daemon: HandDaemon) -> None:
    """A block of which there is a handle goes back to the daemon, however it ends, and whatever was tried before."""
    warm(daemon, 100, 4)
    released, dropped, restored = (daemon.lease(100) for _ in range(3))
    for holding in (released, dropped, restored):
        assert daemon.cache.share(Term(holding, holding.cycle), 1, None)
    slots = [holding.slot for holding in (released, dropped, restored)]
    daemon.release(released)
    restored.let_go()
    restored.restore()
    del dropped, restored, holding
    daemon.keep_house()
    assert sorted(daemon.returned()) == sorted(slots)
    daemon.balances()


@pytest.mark.parametrize("user", [lambda view: view[1:], np.asarray, memoryview, lambda view: view.obj])
def test_a_block_in_use_is_not_released(daemon: HandDaemon, user: Callable[[memoryview], Any]) -> None:
    """While anything uses the view, release raises, nothing has changed, and it succeeds afterwards."""
    warm(daemon, 100, 1)
    holding = daemon.lease(100)
    using = user(holding.view)
    cycle = holding.cycle
    with pytest.raises(BufferError, match="in use"):
        daemon.cache.give(holding, cycle)
    assert holding.cycle == cycle
    holding.view[:2] = b"ok"
    assert daemon.state(holding.slot) is State.IN_USE
    del using
    daemon.release(holding)
    assert daemon.state(holding.slot) is State.CACHED


def test_a_lease_ends_once(daemon: HandDaemon) -> None:
    """Releasing a lease again does nothing to the next lease of the same block."""
    warm(daemon, 100, 1)
    holding = daemon.lease(100)
    first = holding.cycle
    daemon.release(holding)
    assert daemon.lease(100) is holding
    assert daemon.cache.give(holding, first)
    holding.view[:2] = b"ok"
    daemon.balances(in_use=1)


def test_two_threads_release_one_lease(daemon: HandDaemon) -> None:
    """Of two who release at once one does: the block is at hand once."""
    warm(daemon, 100, 1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            holding = daemon.lease(100)
            cycle, start = holding.cycle, threading.Barrier(2)

            def release(holding: Holding = holding, cycle: int = cycle, start: threading.Barrier = start) -> None:
                start.wait()
                daemon.cache.give(holding, cycle)

            threads = [threading.Thread(target=release) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [each for kind in daemon.cache._classes for each in kind.stack].count(holding) <= 1
            daemon.balances()
    finally:
        sys.setswitchinterval(before)


def test_dropped_leases_come_back(daemon: HandDaemon) -> None:
    """A lease that nobody releases returns to the cache when its last view is gone, and not before."""
    warm(daemon, 100, 2)
    holding = daemon.lease(100)
    slot, part = holding.slot, holding.view[10:20]
    del holding
    daemon.keep_house()
    assert daemon.state(slot) is State.IN_USE
    part[:1] = b"x"
    del part
    daemon.keep_house()
    assert daemon.state(slot) is State.CACHED
    daemon.balances()


def test_a_slice_made_at_the_last_moment_keeps_the_block(daemon: HandDaemon) -> None:
    """A slice that another thread makes while the lease is released keeps its bytes until it is gone."""
    warm(daemon, 100, 1)
    holding = daemon.lease(100)
    slot, view, roots, parts = holding.slot, holding.view, [holding.root], []

    class Sly:
        """Stands for the view: as it is released, somebody makes a slice of the root."""

        def release(self) -> None:
            root = roots.pop()
            assert root is not None
            parts.append(root[:5])
            view.release()

    holding.live_view = Sly()  # type: ignore[assignment]
    assert daemon.cache.give(holding, holding.cycle)
    assert slot not in [each.slot for kind in daemon.cache._classes for each in kind.stack]
    del holding
    daemon.keep_house()
    assert daemon.state(slot) is not State.CACHED
    parts.clear()
    daemon.keep_house()
    daemon.balances()


# -- recalled, idle, ended


def test_recalled_blocks_are_dropped(daemon: HandDaemon) -> None:
    """What the daemon has taken back is not leased, not returned, and accounted for."""
    warm(daemon, 100, 4)
    used = daemon.lease(100)
    gone = daemon.recall()
    assert used.slot not in gone
    assert len(gone) >= 3
    fresh = daemon.lease(100)
    assert daemon.owned[fresh.slot] == fresh.name.generation
    assert (daemon.word(Word.DROPPED_BLOCKS), daemon.word(Word.DROPPED_BYTES)) == (len(gone), 128 * len(gone))
    daemon.release(fresh, used)
    assert posts(daemon, Verb.RETURN) == []
    daemon.balances()


def test_a_block_recalled_as_it_is_taken_is_not_used(daemon: HandDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds a recall under way waits for its end, and then looks whether the block is still his."""
    warm(daemon, 100, 2)
    daemon.attention(1)
    kept = next(iter(daemon.cache._classes)).stack[0].slot

    def recall_ends(_seconds: float) -> None:
        for slot in [slot for slot in daemon.owned if slot != kept]:
            daemon.free(slot)
        daemon.attention(2)

    monkeypatch.setattr("slabd.cache.time.sleep", recall_ends)
    holding = daemon.lease(100)
    assert holding.slot == kept
    assert daemon.owned[kept] == holding.name.generation


def test_a_recall_that_does_not_end(daemon: HandDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that dies in the middle of a recall is given up after a while: leases are asked for by gRPC then."""
    warm(daemon, 100, 2)
    daemon.attention(1)
    monkeypatch.setattr(cache_module, "_RECALL_SECONDS", 0.01)
    assert daemon.cache.take(100, 1, "", None, None) is None
    assert daemon.cache.get(100, 1, "", None, None) is None


def test_an_ended_session_has_no_cache(daemon: HandDaemon) -> None:
    """After the daemon's word nothing is leased, kept or opened over the lane any more."""
    warm(daemon, 100, 2)
    holding = daemon.lease(100)
    daemon.attention(ENDED)
    assert daemon.cache.take(100, 1, "", None, None) is None
    assert daemon.cache.get(100, 1, "", None, None) is None
    assert not daemon.cache.give(holding, holding.cycle)


def test_a_stale_block_does_not_mark_its_slots_next_one(daemon: HandDaemon) -> None:
    """A recalled block whose slot was granted again, to another class, leaves the new block's state alone."""
    warm(daemon, 100, 1)
    (slot,) = daemon.recall()
    daemon.release(daemon.lease(5000), daemon.lease(5000))
    warm(daemon, 5000, 2)
    assert slot in [each.slot for kind in daemon.cache._classes if kind.high > 4096 for each in kind.stack]
    held = daemon.lease(100)  # finds the stale one first
    assert held.slot != slot
    assert daemon.state(slot) is State.CACHED


def test_an_answer_that_is_out_of_date_does_not_mark_its_slots_next_block(daemon: HandDaemon) -> None:
    """A block that was recalled before it was noticed is forgotten, and its slot's next one stays in use."""
    assert daemon.cache.ask(100, 1)
    daemon.read()
    (slot,) = daemon.owned
    daemon.free(slot)
    holding = daemon.lease_by_grpc(100)
    assert holding.slot == slot
    daemon.cache.collect()
    assert daemon.state(slot) is State.IN_USE
    assert daemon.recall() == []
    assert (daemon.word(Word.DROPPED_BLOCKS), daemon.word(Word.DROPPED_BYTES)) == (1, 128)
    assert len(daemon.holdings) == 1
    daemon.balances(in_use=1)


def test_an_answer_gets_out_of_date_while_it_is_taken_in(daemon: HandDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's block that came by gRPC is not marked as cached in the middle of it."""
    assert daemon.cache.ask(100, 1)
    daemon.read()
    (slot,) = daemon.owned
    got: list[Holding] = []
    reach = daemon.lane.reach

    def recalled_now(reached: int) -> bool:
        monkeypatch.undo()
        daemon.free(slot)
        other = threading.Thread(target=lambda: got.append(daemon.lease_by_grpc(100)))
        other.start()
        other.join(0.2)  # in vain, if it waits for its turn
        others.append(other)
        return reach(reached)

    others: list[threading.Thread] = []
    monkeypatch.setattr(daemon.lane, "reach", recalled_now)
    daemon.cache.collect()
    others[0].join()
    assert got[0].slot == slot
    daemon.lane.flush()
    daemon.read()
    # What may not be kept is not recalled either, whatever its state.
    assert daemon.state(slot) is State.IN_USE or not posts(daemon, Verb.KEEP)
    daemon.balances(in_use=1)


def test_who_leases_inside_the_garbage_collector_does_not_wait_for_who_collects(
    daemon: HandDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer that leases by gRPC, in a thread that is posting, and a thread that collects and wants to post."""
    assert daemon.cache.ask(200, 1)
    daemon.read()
    (slot,) = daemon.owned
    daemon.free(slot)
    collecting, posting = threading.Event(), threading.Event()
    reach, write = daemon.cache._note_dropped, daemon.lane._write_outbox
    got: list[Holding] = []

    def dropped(size: int) -> None:
        collecting.set()
        assert posting.wait(60)
        reach(size)

    def collected_garbage() -> bool:
        if not posting.is_set():
            assert collecting.wait(60)
            posting.set()
            got.append(daemon.lease_by_grpc(100))
        return write()

    monkeypatch.setattr(daemon.cache, "_note_dropped", dropped)
    monkeypatch.setattr(daemon.lane, "_write_outbox", collected_garbage)
    threads = [threading.Thread(target=each, daemon=True) for each in (daemon.cache.collect, daemon.lane.flush)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert got[0].kind is None


def test_a_block_of_a_slot_that_the_lane_does_not_have_goes_back(daemon: HandDaemon) -> None:
    """It came by gRPC, and its death ends nothing else."""
    holding = Holding(daemon.holdings, BlockName(SLOTS, 1), 0, 64, 64, owned=True, cache=daemon.cache)
    daemon.cache.adopted(holding)
    daemon.cache.keep(holding, 1)
    del holding
    daemon.keep_house()
    assert daemon.returned() == [SLOTS]


@pytest.mark.parametrize("meanwhile", ["trimmed", "released"])
def test_a_fork_while_another_thread_gives_back_what_was_cached(
    daemon: HandDaemon, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """The block that gets a new number just then is given back all the same."""
    warm(daemon, 100, 2)
    daemon.cache.about_to_fork()
    last = daemon.holdings.next_serial()

    def switched() -> int:
        monkeypatch.undo()
        if meanwhile == "trimmed":
            daemon.cache.tick(0.0)
        else:
            claimed: list[Any] = []
            while (holding := daemon.cache.take(100, 1, "", None, None)) is not None:
                holding.end_cycle(holding.cycle)
                holding.let_go()
                daemon.holdings.claim_let_go([holding], claimed)
            for block in filter(None, claimed):
                daemon.cache.take_back(block)
        return daemon.holdings.next_serial()

    monkeypatch.setattr(daemon.holdings, "next_serial", switched)
    daemon.cache.has_forked(last)
    daemon.keep_house()
    daemon.cache.tick(0.0)
    daemon.lane.flush()
    daemon.read()
    assert daemon.owned == {}


@pytest.mark.parametrize("where", ["here", "in a forked child"])
def test_many_quiet_deaths_wake_the_housekeeping_but_not_in_a_forked_child(
    daemon: HandDaemon, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """There, the lock of what wakes may have been anybody's at the fork."""
    if where == "in a forked child":
        monkeypatch.setattr(daemon.holdings, "_process", -1)
    before = daemon.wakes
    for slot in range(1, 200):
        holding = Holding(daemon.holdings, BlockName(slot, 1), 0, 64, 64, owned=True)
        holding.let_go()
        holding.quietly_gone()
    assert (daemon.wakes > before) is (where == "here")


def test_deaths_that_nobody_waited_for_are_not_cleared_away_with_the_others(daemon: HandDaemon) -> None:
    """One thread closes blocks, another looks after the dead, a third drops some: each of these is claimed."""
    over = threading.Event()
    claimed: list[Any] = []
    dropped = 0
    failed: list[BaseException] = []

    def close() -> None:
        while not over.is_set():
            holding = Holding(daemon.holdings, BlockName(5, 1), 0, 64, 64, owned=False)
            holding.let_go()
            daemon.holdings.claim([holding.serial], [])
            holding.quietly_gone()

    def keep_house() -> None:
        try:
            while not over.is_set():
                daemon.holdings.claim_dead(claimed)
        except BaseException as error:  # noqa: BLE001  # for the test
            failed.append(error)

    interval = sys.getswitchinterval()
    threads = [threading.Thread(target=each) for each in (close, keep_house)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        while dropped < 5000:
            Holding(daemon.holdings, BlockName(7, 1), 0, 64, 64, owned=False)
            dropped += 1
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    daemon.holdings.claim_dead(claimed)
    assert failed == []
    assert sum(block is not None and block.name.slot == 7 for block in claimed) == dropped


def test_what_is_idle_goes_back(daemon: HandDaemon) -> None:
    """A tick returns what was not used for so long, the oldest first, and leaves what is in use."""
    warm(daemon, 100, 4)
    used = daemon.lease(100)
    assert daemon.cache.tick(1000.0)
    assert daemon.returned() == []
    assert not daemon.cache.tick(0.0)
    returned = daemon.returned()
    assert used.slot not in returned
    assert len(returned) >= 3
    assert daemon.segment.cached() == (0, 0)
    daemon.release(used)
    daemon.balances()


def test_a_tick_mends_miscounts(daemon: HandDaemon) -> None:
    """What threads have miscounted in the header is right after a tick."""
    warm(daemon, 100, 3)
    daemon.lane.words[Word.CLASS_COUNTS] = 77
    daemon.cache.tick()
    assert daemon.segment.cached()[0] == daemon.cache.cached_bytes


def test_idle_decay_does_not_open_a_closed_cache() -> None:
    """With a limit of 0, giving back what is idle does not let a class keep a block."""
    daemon = HandDaemon(limit=0)
    daemon.cache.ask(100, 1)
    daemon.read()
    daemon.cache.collect()
    daemon.cache.tick(0.0)
    daemon.release(daemon.lease(100))
    daemon.release(daemon.lease(100))
    assert daemon.cache.cached_bytes == 0
    daemon.close()


def test_an_emptied_cache_keeps_nothing(daemon: HandDaemon) -> None:
    """`empty` returns all that is at hand."""
    warm(daemon, 100, 4)
    warm(daemon, 5000, 4)
    daemon.cache.empty()
    daemon.read()
    assert (daemon.owned, daemon.cache.cached_bytes) == ({}, 0)


def test_a_stopped_cache_does_nothing(daemon: HandDaemon) -> None:
    """After `stop` every operation is left to others, and no released lease keeps the mapping."""
    warm(daemon, 100, 2)
    released, held = daemon.lease(100), daemon.lease(100)
    daemon.release(released)
    daemon.cache.stop()
    daemon.cache.stop()
    assert daemon.cache.take(100, 1, "", None, None) is None
    assert daemon.cache.get(100, 1, "", None, None) is None
    assert not daemon.cache.give(held, held.cycle)
    assert not daemon.cache.tick(0.0)
    daemon.cache.empty()
    held.let_go()
    daemon.mapping.close()  # `released` and `held` are still in variables
    assert daemon.read() == []


def test_more_classes_than_there_is_room_for(daemon: HandDaemon) -> None:
    """With more sizes and alignments than classes, leases go on, and blocks of forgotten classes go back."""
    held = [daemon.lease(1 << power, alignment=1 << shift, label="x") for power in range(6, 16) for shift in range(12)]
    daemon.balances(in_use=len(held))
    daemon.release(*held)
    daemon.balances()
    daemon.cache.empty()
    daemon.read()
    assert daemon.owned == {}


# -- forks


def test_a_fork_leaves_children_what_is_in_use(daemon: HandDaemon) -> None:
    """After a fork, blocks in use end by the road that looks after children; cached ones serve on."""
    warm(daemon, 100, 2)
    used = daemon.lease(100)
    cached = {each.slot: each.serial for each in next(iter(daemon.cache._classes)).stack}
    daemon.cache.has_forked(daemon.holdings.next_serial())
    assert not daemon.cache.give(used, used.cycle)
    again = daemon.lease(100)
    assert again.serial > cached[again.slot]
    assert daemon.holdings.records[again.serial] is again.record
    daemon.release(again)
    daemon.balances(in_use=1)


def test_a_fork_in_the_middle_of_a_release(daemon: HandDaemon) -> None:
    """A child that was forked while its parent released a block may see it: it is not leased again."""
    warm(daemon, 100, 1)
    holding = daemon.lease(100)
    slot, view = holding.slot, holding.view

    class Forking:
        """Stands for the view: as it is released, another thread forks."""

        def release(self) -> None:
            daemon.cache.has_forked(daemon.holdings.next_serial())
            view.release()

    holding.live_view = Forking()  # type: ignore[assignment]
    daemon.cache.give(holding, holding.cycle)
    assert slot not in [each.slot for kind in daemon.cache._classes for each in kind.stack]


# -- handing off


def handle(holding: Holding) -> Handle:
    """Return a handle of a block."""
    return Handle(1, holding.slot, holding.name.generation, holding.offset, holding.size, False, holding.usable_size)


def test_an_open_is_posted_and_closed(daemon: HandDaemon) -> None:
    """A shared block is opened without asking, read-only, and CLOSE ends what OPEN began."""
    owner = daemon.lease(100)
    owner.view[:5] = b"hello"
    assert daemon.cache.share(Term(owner, owner.cycle), 3, 2.5)
    (share,) = [post for post in daemon.read() if post.verb == Verb.SHARE]
    assert share == Submission(Verb.SHARE, owner.slot, owner.name.generation, 3, 2_500_000, 100)
    ref = daemon.cache.open(handle(owner))
    assert ref is not None
    assert (bytes(ref.view[:5]), ref.view.readonly, len(ref.view)) == (b"hello", True, 100)
    daemon.read()
    assert list(daemon.opened.values()) == [1]
    daemon.release(ref)
    daemon.read()
    assert list(daemon.opened.values()) == [0]


def test_a_closed_gate_is_not_gone_through(daemon: HandDaemon) -> None:
    """Closed before: nothing is posted. Closed in between: the OPEN is followed by a CLOSE, and nothing is opened."""
    owner = daemon.lease(100)
    made = handle(owner)
    real = daemon.lane.try_post

    def closing(*arguments: Any) -> int:
        number = real(*arguments)
        daemon.table.close(owner.slot, owner.name.generation)
        return number

    daemon.read()
    daemon.lane.try_post = closing  # type: ignore[method-assign, assignment]
    assert daemon.cache.open(made) is None
    assert [post.verb for post in daemon.read()] == [Verb.OPEN, Verb.CLOSE]
    assert daemon.cache.open(made) is None
    assert daemon.read() == []


@pytest.mark.parametrize("strange", ["slot", "offset", "size", "transfer"])
def test_strange_handles_are_left_to_the_daemon(daemon: HandDaemon, strange: str) -> None:
    """A handle that names no block of this heap, or carries a lease, opens nothing here."""
    owner = daemon.lease(100)
    fields = {
        "slot": Handle(1, 2**31, 1, 0, 64, False, 64),
        "offset": Handle(1, owner.slot, owner.name.generation, 2**62, 64, False, 64),
        "size": Handle(1, owner.slot, owner.name.generation, 0, 0, False, 0),
        "transfer": Handle(1, owner.slot, owner.name.generation, 0, 64, True, 64),
    }
    daemon.read()
    assert daemon.cache.open(fields[strange]) is None
    assert daemon.read() == []


def test_an_open_that_was_never_posted_is_never_closed(daemon: HandDaemon) -> None:
    """An interrupt before OPEN is posted costs the session's other open of the same block nothing."""
    owner = daemon.lease(100)
    first = daemon.cache.open(handle(owner))
    assert first is not None
    daemon.read()
    real = daemon.lane.try_post

    def strike(*_: Any) -> int:
        raise KeyboardInterrupt

    daemon.lane.try_post = strike  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        daemon.cache.open(handle(owner))
    daemon.lane.try_post = real  # type: ignore[method-assign]
    daemon.keep_house()
    daemon.read()
    assert list(daemon.opened.values()) == [1]


def test_a_lease_that_has_ended_shares_nothing(daemon: HandDaemon) -> None:
    """Whoever leases the block now is not shared by its last lease."""
    warm(daemon, 100, 1)
    holding = daemon.lease(100)
    term = Term(holding, holding.cycle)
    daemon.release(holding)
    daemon.lease(100)
    with pytest.raises(slabd.LeaseReleased):
        daemon.cache.share(term, 1, None)
    assert posts(daemon, Verb.SHARE) == []


# -- interrupts


class Struck(Exception):
    """Stands for KeyboardInterrupt."""


def strike_at(step: int) -> tuple[Callable[[FrameType, str, Any], None], list[int]]:
    """Return a profile function that raises at the so many-th moment at which CPython would run a signal handler.

    That is where a function of ours begins, and behind every call of one that is written in C.
    """
    left = [step]
    files = {cache_module.__file__, lane_module.__file__}

    def strike(frame: FrameType, event: str, _argument: Any) -> None:
        if frame.f_code.co_filename in files and event in ("call", "c_return"):
            left[0] -= 1
            if left[0] == 0:
                raise Struck

    return strike, left


@pytest.mark.parametrize("what", ["hit", "miss", "release", "release of a shared one"])
def test_no_interrupt_loses_a_block(what: str) -> None:
    """Struck at any moment, a lease or a release leaves every block in use, at hand, or with the daemon."""
    gc.freeze()  # each step collects, and need not look at all the other tests
    step = 1
    while True:
        daemon = HandDaemon()
        held: list[Holding] = []
        if what != "miss":
            warm(daemon, 100, 2)
        if what not in ("hit", "miss"):
            held = [daemon.lease(100)]
        if what == "release of a shared one":
            daemon.cache.share(Term(held[0], held[0].cycle), 1, None)
        cycle = held[0].cycle if held else 0
        strike, left = strike_at(step)
        sys.setprofile(strike)
        try:
            if what in ("hit", "miss"):
                held.append(daemon.lease(100))
            else:
                daemon.cache.give(held[0], cycle)
        except Struck:
            pass
        finally:
            sys.setprofile(None)
        over = left[0] > 0
        gc.collect()
        if held and what not in ("hit", "miss"):
            daemon.cache.give(held[0], cycle)  # as users do: once more, and then no more
        held.clear()
        daemon.keep_house()
        daemon.cache.tick()
        daemon.keep_house()
        daemon.balances()
        daemon.close()
        if over:
            break
        step += 1
    gc.unfreeze()
    assert step > 3


def test_details_fit_any_size() -> None:
    """The largest size that a block can have is told from the purpose it is for."""
    assert unpack_detail(1023 << 48 | (1 << 40)) == (1 << 40, 1023)
    assert RING > 64


def test_what_was_given_back_is_claimed_no_longer(daemon: HandDaemon) -> None:
    """What a class has at hand stands in the lane at once, also when others take its room or all is given back."""
    warm(daemon, 100, 3)
    (kind,) = daemon.cache._classes
    assert daemon.cache.lane.words[kind.place] == 3
    daemon.cache.empty()
    assert daemon.cache.lane.words[kind.place] == 0
