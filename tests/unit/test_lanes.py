"""The daemon's side of lanes: a real engine, real memory, and clients whose every word is written by hand."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from tests.fixtures.descriptors import open_descriptors
from tests.fixtures.engines import MIB
from tests.fixtures.lanes import Hand, LaneWorld, name, until

from slabd_proto.lane import (
    ENDED,
    HEADER_BYTES,
    RING,
    Answer,
    State,
    Submission,
    Verb,
    Word,
    closed_word,
    open_word,
    pack_submission,
    shut_word,
)
from slabd_server.barrier import barrier
from slabd_server.core import inspection
from slabd_server.core.errors import LedgerFull, OutOfMemory, StaleHandle
from slabd_server.core.records import Access, BlockRef, BlockState, Handle, SlotId
from slabd_server.lane_memory import LaneSegment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@pytest_asyncio.fixture
async def world() -> AsyncIterator[LaneWorld]:
    """A daemon's lanes over a heap of 1 MiB."""
    made = LaneWorld()
    yield made
    made.check()
    made.stop()


def handle_of(world: LaneWorld, block: tuple[int, int]) -> Handle:
    """Return a handle for a block, as gRPC clients have it."""
    return Handle(world.heap.books.heap_id, BlockRef(SlotId(block[0]), block[1]), 0, 0, transfer=False)


# -- waking and sleeping


async def test_a_doorbell_is_answered(world: LaneWorld) -> None:
    """A LEASE and a ring bring a block, at the place and of the sizes the completion says, and a ring back."""
    client = world.client()
    number = client.ask(100, quantity=1)
    client.ring()
    await until(client.rang)
    (block,) = client.answers()
    assert (block.answer, block.request, block.left) == (Answer.GRANTED, number, 0)
    assert block.min_size <= 100 <= block.size == 128
    assert client.generations[block.slot] == open_word(block.generation)
    record = world.heap.books.ledger.get(SlotId(block.slot))
    assert (record.a, record.b, record.session) == (block.offset, block.size, client.key.id)
    assert client.taken == number


async def test_it_polls_for_a_while_and_then_sleeps(world: LaneWorld) -> None:
    """After a ring the daemon looks by itself, says so, and says so no more when nothing has come for a while."""
    client = world.client()
    assert not client.polled()
    client.ask(64)
    client.ring()
    await until(client.rang)
    assert client.polled()
    client.answers()
    client.ask(64)  # without a ring
    await until(client.answers)
    await until(lambda: not client.polled())
    client.ask(64)
    await asyncio.sleep(0.05)
    assert not client.answers()
    client.ring()
    await until(client.answers)


async def test_what_is_posted_as_it_falls_asleep_is_read(world: LaneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that finds the daemon polling does not ring, though the daemon is about to sleep: it is read first."""
    client = world.client()
    client.ring()
    await until(client.polled)
    posted: list[int] = []

    def post_before() -> None:
        assert not client.polled()
        if not posted:
            posted.append(client.ask(64))
        barrier()

    monkeypatch.setattr("slabd_server.lanes.barrier", post_before)
    await until(lambda: posted)
    await until(client.answers)
    assert client.taken == posted[0]


async def test_calls_find_what_was_posted_before(world: LaneWorld) -> None:
    """A client's posts are done before its next gRPC call, without a ring."""
    client = world.client()
    (block,) = world.grant(client, 64)
    client.post(Verb.RETURN, name(block))
    assert world.blocks() == 1
    world.drain(client)
    assert world.blocks() == 0


async def test_a_sessions_lane_goes_with_it(world: LaneWorld) -> None:
    """Forgotten, a lane has no descriptor left, and with the last one nobody watches the gates."""
    before = open_descriptors()
    key = world.session()
    assert world.lanes.open(world.engine.sessions.recognise(key)) is not None
    assert (len(world.lanes), world.table.watched) == (1, True)
    world.lanes.forget(key.id)
    world.lanes.forget(key.id)
    assert (len(world.lanes), world.table.watched) == (0, False)
    assert open_descriptors() == before


@pytest.mark.parametrize("step", ["memory", "first eventfd", "second eventfd"])
async def test_without_memory_or_descriptors_there_is_no_lane(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A session that can have no lane gets none, and leaves no descriptor behind."""
    real, made = os.eventfd, []

    def refuse(*_: Any) -> Any:
        raise OSError(24, "too many")

    def eventfd(*arguments: int) -> int:
        made.append(1)
        return refuse() if step != "memory" and len(made) == (1 if step == "first eventfd" else 2) else real(*arguments)

    if step == "memory":
        monkeypatch.setattr(LaneSegment, "create", refuse)
    monkeypatch.setattr(os, "eventfd", eventfd)
    before = open_descriptors()
    key = world.session()
    assert world.lanes.open(world.engine.sessions.recognise(key)) is None
    assert open_descriptors() == before
    assert not world.table.watched


# -- leasing


async def test_a_batch_is_answered_entry_by_entry(world: LaneWorld) -> None:
    """Several blocks for one request come one after the other, and the last says that it is the last."""
    client = world.client()
    number = client.ask(1000, quantity=5)
    world.drain(client)
    found = client.answers()
    assert [each.request for each in found] == [number] * 5
    assert [each.left for each in found] == [4, 3, 2, 1, 0]
    assert len({each.offset for each in found}) == 5


async def test_no_more_is_granted_than_there_is_room_to_say(world: LaneWorld) -> None:
    """A batch is cut to the completions there is room for; taking them makes room again."""
    client = world.client()
    for _ in range(3):
        client.ask(64, quantity=400)
    world.drain(client)
    assert (world.blocks(), client.lane.segment.room) == (RING, 0)
    assert len(client.answers()) == RING
    client.ask(64, quantity=400)
    world.drain(client)
    assert len(client.answers()) == 400


async def test_who_reads_no_answers_is_ended(world: LaneWorld) -> None:
    """Asking on and on without room for an answer is no way to behave; others go on."""
    client, other = world.client(), world.client()
    client.ask(64, quantity=RING)
    client.ask(64)
    world.drain(client)
    await until(lambda: not world.lives(client))
    assert world.grant(other, 64)


@pytest.mark.parametrize(("size", "alignment"), [(0, 1), (2 * MIB, 1), (2**64 - 1, 1), (64, 0), (64, 3), (64, 2**63)])
async def test_what_cannot_be_had_is_refused(world: LaneWorld, size: int, alignment: int) -> None:
    """An impossible request is refused like one that comes too early: the client asks by gRPC, and is told why."""
    client = world.client()
    number = client.ask(size, alignment=alignment, quantity=3)
    world.drain(client)
    (refusal,) = client.answers()
    assert (refusal.answer, refusal.request, refusal.left) == (Answer.REFUSED, number, 0)
    assert client.rang()
    assert (world.blocks(), world.lives(client)) == (0, True)


async def test_who_waits_comes_first(world: LaneWorld) -> None:
    """While somebody waits for memory, nobody is served past him over a lane."""
    client, holder, waiter = world.client(), world.session(), world.session()
    (block,) = world.lease(holder, MIB // 2)
    world.wait(waiter, MIB)
    client.ask(64)
    world.drain(client)
    (refusal,) = client.answers()
    assert refusal.answer == Answer.REFUSED
    world.dispatcher.perform(world.release(holder, block.ref).effects)
    assert world.heap.books.blocks == 1  # the waiter's


async def test_nothing_is_granted_while_it_drains(world: LaneWorld) -> None:
    """A draining daemon refuses over lanes as well, and grants again when it is resumed."""
    client = world.client()
    world.engine.drain()
    client.ask(64)
    world.drain(client)
    assert client.answers()[0].answer == Answer.REFUSED
    world.engine.drain(resume=True)
    assert world.grant(client, 64)


async def test_a_batch_leaves_something_to_others(world: LaneWorld) -> None:
    """When memory is scarce a batch is one block: what is granted for later is for when there is plenty."""
    client = world.client()
    world.lease(world.session(), MIB - MIB // 8)
    client.ask(4096, quantity=10)
    world.drain(client)
    granted = [each for each in client.answers() if each.answer == Answer.GRANTED]
    assert 1 <= len(granted) <= 2


async def test_slots_without_a_gate_are_not_for_lanes(world: LaneWorld) -> None:
    """A block whose slot has no place in the tables is not granted over a lane."""
    client = world.client()
    world.table.slots = 1
    client.ask(64, quantity=3)
    world.drain(client)
    assert {each.answer for each in client.answers()} == {Answer.REFUSED}
    assert world.blocks() == 0


# -- handing off


async def test_an_open_finds_a_share_that_was_not_read_yet(world: LaneWorld) -> None:
    """OPEN in one lane reads SHARE in another first: who has a handle has it from somebody who posted it before."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, 100)
    maker.post(Verb.SHARE, name(block), quantity=1, b=100)
    reader.post(Verb.OPEN, name(block))
    world.drain(reader)
    assert (world.lives(maker), world.lives(reader)) == (True, True)
    assert world.heap.books.holds[SlotId(block.slot)].keys() == {reader.key.id}
    assert maker.taken == maker.posted


@pytest.mark.parametrize("first", [0, 1])
async def test_two_who_hand_to_each_other(world: LaneWorld, first: int) -> None:
    """A's open waits for B's share and B's open for A's share, all unread: both are right, whoever is read first."""
    clients = one, two = world.client(), world.client()
    (mine,), (yours,) = world.grant(one, 100), world.grant(two, 100)
    two.post(Verb.SHARE, name(yours), quantity=1, b=100)
    one.post(Verb.OPEN, name(yours))
    one.post(Verb.SHARE, name(mine), quantity=1, b=100)
    two.post(Verb.OPEN, name(mine))
    world.drain(clients[first])
    world.drain(*clients)
    await asyncio.sleep(0)
    assert (world.lives(one), world.lives(two)) == (True, True)
    assert world.heap.books.holds[SlotId(mine.slot)].keys() == {two.key.id}
    assert world.heap.books.holds[SlotId(yours.slot)].keys() == {one.key.id}


async def test_a_ring_of_three_hands_around(world: LaneWorld) -> None:
    """Three clients, each of whom opens what the one before has shared, all unread, in any order of reading."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        clients = [world.client() for _ in range(3)]
        blocks = [world.grant(client, 64)[0] for client in clients]
        clients[0].post(Verb.SHARE, name(blocks[0]), quantity=1, b=64)
        for before, client in ((0, 1), (1, 2), (2, 0)):
            clients[client].post(Verb.OPEN, name(blocks[before]))
            if client:
                clients[client].post(Verb.SHARE, name(blocks[client]), quantity=1, b=64)
        world.drain(*(clients[index] for index in order))
        world.drain(*clients)
        await asyncio.sleep(0)
        assert [world.lives(client) for client in clients] == [True] * 3
        assert all(client.taken == client.posted for client in clients)


async def test_a_gate_shuts_with_the_last_open(world: LaneWorld) -> None:
    """A block may be opened as often as was promised; then its gate is shut, until it is shared again."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, 100)
    maker.post(Verb.SHARE, name(block), quantity=2, b=100)
    reader.post(Verb.OPEN, name(block))
    world.drain(maker, reader)
    assert reader.generations[block.slot] == open_word(block.generation)
    reader.post(Verb.OPEN, name(block))
    world.drain(reader)
    assert reader.generations[block.slot] == shut_word(block.generation)
    maker.post(Verb.SHARE, name(block), quantity=1, b=100)
    world.drain(maker)
    assert reader.generations[block.slot] == open_word(block.generation)


async def test_a_block_is_kept_for_who_came_through_the_gate(world: LaneWorld) -> None:
    """Before a block that was shared is free, every lane is read: an OPEN posted in time keeps it until its CLOSE."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, 100)
    maker.post(Verb.SHARE, name(block), quantity=1, a=1_000_000, b=100)
    maker.post(Verb.RETURN, name(block))
    world.drain(maker)
    reader.post(Verb.OPEN, name(block))  # in the last moment, and without a ring
    world.dispatcher.perform(world.advance(2.0))
    assert world.blocks() == 1
    assert world.heap.books.state(SlotId(block.slot)) is BlockState.SHARED
    reader.post(Verb.CLOSE, name(block))
    world.drain(reader)
    assert world.blocks() == 0


async def test_the_gate_is_closed_before_anybody_is_read(world: LaneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the gate, then a barrier, then the lanes: who posts before the barrier is found, who comes later is not."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, 100)
    maker.post(Verb.SHARE, name(block), quantity=1, a=1_000_000, b=100)
    maker.post(Verb.RETURN, name(block))
    world.drain(maker)
    seen: list[int] = []

    def at_the_barrier() -> None:
        seen.append(reader.generations[block.slot])
        if len(seen) == 1:
            reader.post(Verb.OPEN, name(block))
        barrier()

    monkeypatch.setattr("slabd_server.lanes.barrier", at_the_barrier)
    world.dispatcher.perform(world.advance(2.0))
    assert seen[0] == closed_word(block.generation)
    assert world.blocks() == 1


async def test_what_was_never_shared_needs_no_barrier(world: LaneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Returning a block that nobody can have a handle of is free of barriers, and frees it at once."""
    client = world.client()
    (block,) = world.grant(client, 100)

    def no_barrier() -> None:
        raise AssertionError("a barrier")

    monkeypatch.setattr("slabd_server.lanes.barrier", no_barrier)
    client.post(Verb.RETURN, name(block))
    world.drain(client)
    assert world.blocks() == 0


async def test_a_late_open_is_no_lie(world: LaneWorld) -> None:
    """An OPEN of a block that was given back meanwhile is passed over: its client has found the gate closed."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, 100)
    maker.post(Verb.SHARE, name(block), quantity=1, a=1_000_000, b=100)
    maker.post(Verb.RETURN, name(block))
    world.drain(maker)
    world.dispatcher.perform(world.advance(2.0))
    assert world.blocks() == 0
    reader.post(Verb.OPEN, name(block))
    reader.post(Verb.CLOSE, name(block))
    world.drain(reader)
    await asyncio.sleep(0)
    assert (world.lives(reader), world.blocks()) == (True, 0)


async def test_a_dead_clients_posts_happen(world: LaneWorld) -> None:
    """What a client posted before it died, without a ring, has happened: its share is opened by whom it was for."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, 100)
    maker.post(Verb.SHARE, name(block), quantity=1, b=100)
    world.lanes.drain(maker.key.id)  # as the attach server does when the process is gone
    world.die(maker.key)
    assert not world.lives(maker)
    reader.post(Verb.OPEN, name(block))
    world.drain(reader)
    assert world.heap.books.state(SlotId(block.slot)) is BlockState.SHARED
    assert world.lives(reader)


async def test_a_hand_off_by_both_roads(world: LaneWorld) -> None:
    """A share posted in a lane is opened over gRPC, and an open posted in a lane uses up what gRPC had promised."""
    maker, reader = world.client(), world.client()
    plain = world.session(attached=False)
    (block,) = world.grant(maker, 100)
    maker.post(Verb.SHARE, name(block), quantity=1, b=100)
    world.lanes.look()
    assert world.open(plain, handle_of(world, name(block))).size == 128
    world.share(maker.key, BlockRef(SlotId(block.slot), block.generation), opens=1)
    reader.post(Verb.OPEN, name(block))
    world.drain(reader)
    with pytest.raises(StaleHandle):
        world.open(plain, handle_of(world, name(block)))


# -- lies


LIES: dict[str, Callable[[Hand, tuple[int, int]], object]] = {
    "shares with nobody": lambda hand, mine: hand.post(Verb.SHARE, mine, quantity=0, b=5),
    "shares for too long": lambda hand, mine: hand.post(Verb.SHARE, mine, quantity=1, a=2**64 - 1, b=5),
    "verb 0": lambda hand, _: hand.post(0),
    "verb 8": lambda hand, _: hand.post(8),
    "verb 255": lambda hand, _: hand.post(255),
}


@pytest.mark.parametrize("lie", LIES)
async def test_who_lies_is_ended_and_others_go_on(world: LaneWorld, lie: str) -> None:
    """A post that cannot be true ends its session and nothing else: what it holds comes back when it is gone."""
    liar, honest = world.client(), world.client()
    (mine,), (theirs,) = world.grant(liar, 64), world.grant(honest, 64)
    LIES[lie](liar, name(mine))
    liar.post(Verb.RETURN, name(mine))
    world.drain(liar)
    await until(lambda: not world.lives(liar))
    honest.post(Verb.SHARE, name(theirs), quantity=1, b=64)
    world.drain(honest)
    assert liar.attention == ENDED
    assert world.lives(honest)
    assert world.heap.books.state(SlotId(theirs.slot)) is BlockState.SHARED
    assert liar.taken == 1  # the lie was not taken, and nothing behind it
    world.dispatcher.perform(world.die(liar.key))
    assert world.blocks() == 1


@pytest.mark.parametrize("verb", [Verb.RETURN, Verb.RESIZE, Verb.SHARE, Verb.CLOSE])
async def test_anothers_block_is_left_alone(world: LaneWorld, verb: Verb) -> None:
    """A post about a block that is another session's changes nothing."""
    client, other = world.client(), world.client()
    (theirs,) = world.grant(other, 64)
    client.post(verb, name(theirs), quantity=1, a=5, b=5)
    world.drain(client)
    record = world.heap.books.ledger.get(SlotId(theirs.slot))
    assert (record.session, record.pending, record.c) == (other.key.id, 0, 64)
    assert client.taken == 1


@pytest.mark.parametrize("opens", [0, 65_536, 2**32 - 1])
async def test_shares_are_bounded(world: LaneWorld, opens: int) -> None:
    """A share of none, or of more than there may be, is a lie."""
    liar = world.client()
    (block,) = world.grant(liar, 64)
    liar.post(Verb.SHARE, name(block), quantity=opens, b=64)
    world.drain(liar)
    await until(lambda: not world.lives(liar))


async def test_a_read_only_session_only_opens(world: LaneWorld) -> None:
    """It opens and closes over its lane; a LEASE of its ends it."""
    maker, reader = world.client(), world.client(access=Access.READ_ONLY)
    (block,) = world.grant(maker, 64)
    maker.post(Verb.SHARE, name(block), quantity=1, b=64)
    reader.post(Verb.OPEN, name(block))
    world.drain(reader)
    assert SlotId(block.slot) in world.heap.books.holds
    reader.post(Verb.CLOSE, name(block))
    world.drain(reader)
    assert SlotId(block.slot) not in world.heap.books.holds
    reader.ask(64)
    world.drain(reader)
    await until(lambda: not world.lives(reader))


@pytest.mark.parametrize("verb", [Verb.RETURN, Verb.RESIZE, Verb.SHARE, Verb.OPEN, Verb.CLOSE])
@pytest.mark.parametrize("block", [(0, 0), (1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (500_000, 1)])
async def test_what_is_gone_may_be_named(world: LaneWorld, verb: Verb, block: tuple[int, int]) -> None:
    """A post about a block that is not granted any more changes nothing: it may have been recalled."""
    client = world.client()
    world.grant(client, 64)
    client.post(verb, block, quantity=1, a=2**64 - 1, b=2**64 - 1)
    world.drain(client)
    await asyncio.sleep(0)
    assert (world.lives(client), world.blocks()) == (True, 1)
    assert client.taken == client.posted


@pytest.mark.parametrize("verb", [Verb.RESIZE, Verb.SHARE])
async def test_sizes_are_cut_to_the_block(world: LaneWorld, verb: Verb) -> None:
    """However many bytes a client says it uses of a block, the books count no more than it has, and at least one."""
    client = world.client()
    (block,) = world.grant(client, 100)
    for size, counted in ((2**64 - 1, 128), (0, 1), (77, 77)):
        client.post(verb, name(block), quantity=1, a=size if verb is Verb.RESIZE else 0, b=size)
        world.drain(client)
        assert world.heap.books.requested_bytes == counted


@pytest.mark.parametrize("seed", range(20))
async def test_noise_in_every_word(world: LaneWorld, seed: int) -> None:
    """Whatever a client writes wherever it can, the daemon goes on, and its books are right."""
    dice = random.Random(seed)
    noisy, honest = world.client(), world.client()
    blocks = [name(each) for each in world.grant(noisy, 64, 3) + world.grant(honest, 64, 3)]
    for _ in range(60):
        match dice.randrange(5):
            case 0:
                verb, block = dice.randrange(9), dice.choice([*blocks, (dice.getrandbits(32), dice.getrandbits(32))])
                noisy.post(verb, block, quantity=dice.choice([0, 1, 70_000]), a=dice.choice([0, 64, 2**64 - 1]), b=1)
            case 1:
                start = dice.randrange(HEADER_BYTES)
                noisy.memory[start] = dice.randrange(256)
            case 2:
                start = dice.randrange(len(noisy.memory) - 64)
                noisy.memory[start : start + 64] = dice.randbytes(64)
            case 3:
                noisy.words[dice.choice(list(Word)[4:])] = dice.choice([0, 1, 2**63, 2**64 - 1])
            case 4:
                noisy.say(dice.choice(blocks)[0], dice.choice(list(State)), size=dice.getrandbits(48))
        world.lanes.drain(noisy.key.id)
        world.lanes.look()
        world.lanes._recaller.reclaim("default", dice.choice([0, 1000, MIB]))
        found, _ = inspection.leases(world.engine, "", 0, 100, world.now)
        for each in found:
            world.lanes.described(each, world.now)
        await asyncio.sleep(0)
        world.check()
    assert world.lives(honest)
    assert all(world.heap.books.ledger.get(SlotId(slot)).session == honest.key.id for slot, _ in blocks[3:])
    honest.post(Verb.RETURN, blocks[3])
    world.drain(honest)
    assert honest.taken == honest.posted


async def test_a_damaged_entry_is_not_read(world: LaneWorld) -> None:
    """An entry with any bit wrong, or of another lap, is waited for; when it is right it is read."""
    client = world.client()
    client.posted = 1
    right = pack_submission(1, Submission(Verb.LEASE, quantity=1, a=64, b=1))
    client.write(bytes([right[0] ^ 2]) + right[1:])
    world.drain(client)
    client.write(pack_submission(1 + RING, Submission(Verb.LEASE, quantity=1, a=64, b=1)))
    world.drain(client)
    assert (client.taken, world.lives(client)) == (0, True)
    client.write(right)
    world.drain(client)
    assert client.taken == 1


# -- without memory for the ledger


async def test_a_full_ledger_postpones(world: LaneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open that cannot be noted for want of memory stays unread, keeps its block, and is read when there is some."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, 100)
    maker.post(Verb.SHARE, name(block), quantity=1, a=1_000_000, b=100)
    world.drain(maker)
    real = world.heap.books.ledger.reserve

    def full(count: int) -> None:
        raise LedgerFull(f"no room for {count}")

    monkeypatch.setattr(world.heap.books.ledger, "reserve", full)
    reader.post(Verb.OPEN, name(block))
    maker.post(Verb.RETURN, name(block))
    world.drain(reader, maker)
    world.dispatcher.perform(world.advance(2.0))
    assert (reader.taken, world.blocks(), world.lives(reader)) == (0, 1, True)
    monkeypatch.setattr(world.heap.books.ledger, "reserve", real)
    await until(lambda: SlotId(block.slot) in world.heap.books.holds)
    world.check()
    reader.post(Verb.CLOSE, name(block))
    world.drain(reader)
    assert world.blocks() == 0


# -- recalling


async def test_cached_blocks_are_recalled_before_a_heap_is_full(world: LaneWorld) -> None:
    """A request that finds no room gets the cached blocks of others; what they use stays theirs."""
    client, other = world.client(), world.session()
    used, *idle = world.grant(client, MIB // 8, 8)
    client.say(used.slot, State.IN_USE, size=5)
    for block in idle:
        client.cache(name(block), block.size)
    (got,) = world.lease(other, MIB // 2)
    assert got.size == MIB // 2
    gone = [block for block in idle if client.generations[block.slot] != open_word(block.generation)]
    assert len(gone) >= 4
    assert client.generations[used.slot] == open_word(used.generation)
    assert world.heap.books.ledger.get(SlotId(used.slot)).session == client.key.id
    with pytest.raises(OutOfMemory):
        world.lease(other, MIB // 2)
    assert client.attention % 2 == 0
    assert client.attention > 0


async def test_a_recall_announces_itself_first(world: LaneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention is odd at the barrier after which states are read, and at the one after which generations are new."""
    client, other = world.client(), world.session()
    blocks = world.grant(client, MIB // 4, 4)
    for block in blocks:
        client.cache(name(block), block.size)
    seen: list[tuple[int, list[bool]]] = []

    def at_the_barrier() -> None:
        mine = [client.generations[block.slot] == open_word(block.generation) for block in blocks]
        seen.append((client.attention, mine))
        if len(seen) == 1:
            client.say(blocks[0].slot, State.IN_USE, size=1)  # leased in the last moment
        barrier()

    monkeypatch.setattr("slabd_server.recall.barrier", at_the_barrier)
    with pytest.raises(OutOfMemory):
        world.lease(other, MIB)
    assert seen[:2] == [(1, [True] * 4), (1, [True, False, False, False])]
    assert client.attention % 2 == 0


async def test_who_has_most_gives_first(world: LaneWorld) -> None:
    """Blocks are recalled from the client that has most of them, and no more than is needed."""
    poor, rich = world.client(), world.client()
    few, many = world.grant(poor, MIB // 8, 2), world.grant(rich, MIB // 8, 6)
    for client, blocks in ((poor, few), (rich, many)):
        for block in blocks:
            client.cache(name(block), block.size)
    world.lease(world.session(), MIB // 8)
    assert (poor.lost(few), rich.lost(many)) == (0, 1)
    world.lease(world.session(), MIB // 8)
    assert poor.lost(few) == 0


async def test_what_has_other_keepers_is_not_recalled(world: LaneWorld) -> None:
    """A block that is promised, or opened, or was granted over gRPC, stays, whatever its client says of it."""
    liar, reader = world.client(), world.client()
    promised, opened = world.grant(liar, MIB // 4, 2)
    (called,) = world.lease(liar.key, MIB // 4)
    for block in (promised, opened):
        liar.post(Verb.SHARE, name(block), quantity=1, b=1)
        liar.cache(name(block), block.size)
    reader.post(Verb.OPEN, name(opened))
    world.drain(liar, reader)
    liar.say(called.ref.slot, State.CACHED)
    liar.claim(MIB // 4, 3)
    with pytest.raises(OutOfMemory):
        world.lease(world.session(), MIB // 2)
    assert world.blocks() == 3


async def test_a_claim_of_what_is_not_cached_gets_nothing_freed(world: LaneWorld) -> None:
    """A client that claims a full cache and marks nothing as cached keeps its blocks; nothing breaks."""
    liar = world.client()
    world.grant(liar, MIB // 4, 4)
    liar.claim(2**63, 2**63)
    world.lanes.look()
    world.check()
    assert world.heap.books.used_bytes + world.heap.books.available_bytes == MIB
    with pytest.raises(OutOfMemory):
        world.lease(world.session(), 64)


async def test_who_waits_is_relieved_by_the_tick(world: LaneWorld) -> None:
    """A block that goes into a cache while somebody waits is taken from there for him, without anybody's doing."""
    client, waiter = world.client(), world.session()
    (block,) = world.grant(client, MIB)
    client.say(block.slot, State.IN_USE, size=1)
    waiting = world.wait(waiter, MIB, timeout=1000.0)
    answer = asyncio.create_task(world.dispatcher.answer(waiter, "default", waiting, sequence=0))
    await asyncio.sleep(0.05)
    assert not answer.done()
    client.cache(name(block), block.size)
    async with asyncio.timeout(60):
        (got,) = await answer
    assert got.size == MIB
    world.check()


async def test_draining_takes_every_cache(world: LaneWorld) -> None:
    """While it drains, the daemon takes back what is cached, so that draining comes to an end."""
    client = world.client()
    for block in world.grant(client, 64, 3):
        client.cache(name(block), block.size)
    world.dispatcher.perform(world.engine.drain().effects)
    await until(lambda: not world.blocks())
    assert await world.dispatcher.idle(1.0)


async def test_what_has_not_been_taken_from_the_ring_is_recalled(world: LaneWorld) -> None:
    """Blocks granted to a client that does not look do not keep memory from others."""
    client = world.client()
    client.ask(MIB // 8, quantity=6)
    world.drain(client)
    assert world.blocks() == 6
    assert world.lease(world.session(), MIB)


async def test_unread_returns_are_read_before_anything_is_recalled(world: LaneWorld) -> None:
    """A heap is not called full, and no cache is emptied, while a RETURN lies in somebody's lane."""
    gives, keeps = world.client(), world.client()
    (block,), (idle,) = world.grant(gives, MIB // 2), world.grant(keeps, MIB // 4)
    keeps.cache(name(idle), idle.size)
    gives.post(Verb.RETURN, name(block))
    assert world.lease(world.session(), MIB // 2)
    assert keeps.lost([idle]) == 0


async def test_closing_blocks_are_swept_before_a_heap_is_full(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that was shared and given back serves the next request that would not fit without it."""
    client = world.client()
    (block,) = world.grant(client, MIB)
    client.post(Verb.SHARE, name(block), quantity=1, a=1, b=1)
    world.drain(client)
    monkeypatch.setattr(world.dispatcher, "after_performing", lambda: None)  # nobody sweeps in passing
    client.post(Verb.RETURN, name(block))
    world.advance(1.0)
    assert world.lease(world.session(), MIB)


# -- sessions that end


async def test_an_ended_session_is_told_so(world: LaneWorld) -> None:
    """An operator's word reaches the client through its lane, and a recall does not take it back."""
    client, other = world.client(), world.client()
    (mine,), (theirs,) = world.grant(client, MIB // 4), world.grant(other, MIB // 4)
    client.cache(name(mine), mine.size)
    other.cache(name(theirs), theirs.size)
    world.dispatcher.perform(world.evict(client.key))
    assert client.attention == ENDED
    world.lease(world.session(), 3 * MIB // 4)
    assert client.attention == ENDED
    assert (client.lost([mine]), other.lost([theirs])) == (0, 1)


async def test_what_an_ended_session_has_cached_is_used(world: LaneWorld) -> None:
    """Nobody can take it back while its process lives, so it is not available."""
    client, other = world.client(), world.session()
    (block,) = world.grant(client, MIB // 4)
    client.cache(name(block), block.size)
    world.lease(other, MIB // 4)
    world.lanes.look()
    assert world.heap.books.available_bytes == 3 * MIB // 4
    world.dispatcher.perform(world.evict(client.key))
    world.lanes.look()
    assert world.heap.books.available_bytes == MIB // 2
    world.check()


async def test_an_ended_sessions_posts_still_happen(world: LaneWorld) -> None:
    """A session in quarantine posts what its process did before it knew: a return gives back, a lease is refused."""
    client = world.client()
    (block,) = world.grant(client, 64)
    world.dispatcher.perform(world.evict(client.key))
    client.post(Verb.RETURN, name(block))
    client.ask(64)
    world.drain(client)
    assert client.answers()[0].answer == Answer.REFUSED
    assert world.blocks() == 0


# -- who holds what


async def test_leases_are_described_by_those_who_have_them(world: LaneWorld) -> None:
    """Label, requested size, call site and age of a lease, and what is cached, are as its client wrote them."""
    client = world.client()
    used, idle, silent = world.grant(client, 1000, 3)
    world.now += 10.0
    client.explain(3, "frame", "camera.py:12 in shoot")
    client.say(used.slot, State.IN_USE, size=900, purpose=3, since=world.now - 2.0)
    client.say(idle.slot, State.CACHED, since=world.now - 1.0)
    found, total = inspection.leases(world.engine, "", 0, 10, world.now)
    described = {each.block.ref.slot: world.lanes.described(each, world.now) for each in found}
    one = described[SlotId(used.slot)]
    assert (one.label, one.call_site, one.block.requested_size, one.age) == ("frame", "camera.py:12 in shoot", 900, 2.0)
    assert (one.state, total) == (BlockState.LEASED, 3)
    two = described[SlotId(idle.slot)]
    assert (two.state, two.label, two.age) == (BlockState.CACHED, "", 1.0)
    three = described[SlotId(silent.slot)]
    assert (three.state, three.block.requested_size, three.age) == (BlockState.LEASED, 1000, 10.0)


@pytest.mark.parametrize("since", [float("nan"), float("inf"), float("-inf"), -1e300, 1e300])
async def test_nonsense_about_a_lease_is_bounded(world: LaneWorld, since: float) -> None:
    """Whatever a client writes of a lease, it is no larger than its block and no older than its grant."""
    client = world.client()
    (block,) = world.grant(client, 1000)
    world.now += 10.0
    client.say(block.slot, State.IN_USE, size=2**48 - 1, purpose=2**16 - 1, since=since)
    (info,), _ = inspection.leases(world.engine, "", 0, 10, world.now)
    described = world.lanes.described(info, world.now)
    assert described.block.requested_size == 1024
    assert 0.0 <= described.age <= 10.0
    assert described.label == ""


async def test_cached_is_what_clients_say_less_what_was_recalled(world: LaneWorld) -> None:
    """Blocks that were recalled and not yet dropped by their client are not counted as cached twice."""
    client = world.client()
    blocks = world.grant(client, MIB // 8, 6)
    for block in blocks:
        client.cache(name(block), block.size)
    world.lanes.look()
    assert world.heap.books.cached_bytes == 6 * MIB // 8
    world.lease(world.session(), MIB // 2)
    world.lanes.look()
    recalled = client.lost(blocks)
    assert recalled >= 2
    assert world.heap.books.cached_bytes == (6 - recalled) * MIB // 8
    client.claim(MIB // 8, 6 - recalled)
    client.words[Word.DROPPED_BYTES] += recalled * MIB // 8
    client.words[Word.DROPPED_BLOCKS] += recalled
    world.lanes.look()
    assert world.heap.books.cached_bytes == (6 - recalled) * MIB // 8
