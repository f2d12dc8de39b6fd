"""Shared blocks that come back to their owners, blocks by gRPC that are kept, and what clients say of their caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.fixtures.lanes import Hand, LaneWorld, name

from slabd_proto.lane import Answer, State, Verb, Word, closed_word, open_word
from slabd_server.core import inspection
from slabd_server.core.errors import OutOfMemory
from slabd_server.core.ledger import Flag
from slabd_server.core.records import BlockState, SlotId
from slabd_server.lane_memory import LaneSegment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from slabd_proto.lane import Completion

MIB = 1 << 20
SIZE = 8192


@pytest_asyncio.fixture
async def world() -> AsyncIterator[LaneWorld]:
    """A heap of 1 MiB."""
    made = LaneWorld()
    yield made
    made.stop()


def hand_off(world: LaneWorld, maker: Hand, block: Completion, *, back: int = 1, ttl: int = 1_000_000) -> None:
    """Share a block for one open and return it."""
    maker.post(Verb.SHARE, name(block), quantity=1, a=ttl, b=100)
    maker.post(Verb.RETURN, name(block), quantity=back, a=block.size, b=1)
    world.drain(maker)


def read(world: LaneWorld, reader: Hand, block: Completion) -> None:
    """Open a block and close it."""
    reader.post(Verb.OPEN, name(block))
    world.drain(reader)
    reader.post(Verb.CLOSE, name(block))
    world.drain(reader)


async def test_a_block_comes_back_when_its_last_reader_is_gone(world: LaneWorld) -> None:
    """With the same place, the next generation, and nothing left of its last life."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, SIZE)
    hand_off(world, maker, block)
    assert maker.answers() == []
    read(world, reader, block)
    (back,) = maker.answers()
    assert back.answer == Answer.BACK
    assert (back.slot, back.generation, back.offset) == (block.slot, block.generation + 1, block.offset)
    assert (back.request, back.size) == (1, block.size)
    assert maker.generations[back.slot] == open_word(back.generation)
    record = world.heap.books.ledger.get(SlotId(back.slot))
    assert (record.session, record.pending, record.flags) == (maker.key.id, 0, Flag.LANE)
    assert world.blocks() == 1
    maker.post(Verb.RETURN, name(back))
    world.drain(maker)
    assert world.blocks() == 0


async def test_an_old_handle_does_not_open_what_came_back(world: LaneWorld) -> None:
    """The gate of its generation is gone; an open of it that comes all the same changes nothing."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, SIZE)
    hand_off(world, maker, block)
    read(world, reader, block)
    (back,) = maker.answers()
    assert reader.generations[block.slot] != open_word(block.generation)
    read(world, reader, block)
    assert world.heap.books.state(SlotId(back.slot)) is BlockState.LEASED
    assert maker.generations[back.slot] == open_word(back.generation)


async def test_a_handle_that_expires_sends_its_block_back(world: LaneWorld) -> None:
    """Within a second; later nobody might look for it, so it is free."""
    maker = world.client()
    soon, late = world.grant(maker, SIZE, 2)
    hand_off(world, maker, soon, ttl=500_000)
    hand_off(world, maker, late, ttl=5_000_000)
    world.dispatcher.perform(world.advance(0.6))
    assert [each.slot for each in maker.answers()] == [soon.slot]
    world.dispatcher.perform(world.advance(5.0))
    assert maker.answers() == []
    assert world.blocks() == 1


async def test_who_does_not_want_it_back_does_not_get_it(world: LaneWorld) -> None:
    """As it was, and as older clients have it."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, SIZE)
    hand_off(world, maker, block, back=0)
    read(world, reader, block)
    assert maker.answers() == []
    assert world.blocks() == 0
    assert maker.generations[block.slot] == closed_word(block.generation)


async def test_others_need_it_more(world: LaneWorld) -> None:
    """When somebody waits for memory, or little is free, it is free for all."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, SIZE)
    full = world.grant(reader, MIB - 2 * SIZE)
    hand_off(world, maker, block)
    read(world, reader, block)
    assert maker.answers() == []
    assert world.blocks() == len(full)


async def test_what_is_back_and_not_noticed_yet_is_recalled(world: LaneWorld) -> None:
    """It counts as cached, and whoever needs its room gets it, once its last owner says that it does not use it."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, SIZE)
    maker.say(block.slot, State.FREE)
    hand_off(world, maker, block)
    read(world, reader, block)
    world.lanes.look()
    assert world.heap.books.cached_bytes == block.size
    ((info,), _) = inspection.leases(world.engine, "", 0, 100, world.now)
    assert world.lanes.described(info, world.now).state is BlockState.CACHED
    world.lease(world.session(), MIB)
    assert world.blocks() == 1


async def test_an_owner_that_never_looks_gets_no_more_than_a_few(world: LaneWorld) -> None:
    """So the ring has room for what it asks for, and the heap for others."""
    maker, reader = world.client(), world.client()
    blocks = world.grant(maker, 64, 100)
    for block in blocks:
        hand_off(world, maker, block)
        read(world, reader, block)
    assert 0 < len(maker.answers()) == world.blocks() < len(blocks)


async def test_a_wish_of_one_who_is_gone_is_forgotten(world: LaneWorld) -> None:
    """Its session has ended while somebody still had the block open."""
    maker, reader = world.client(), world.client()
    (block,) = world.grant(maker, SIZE)
    hand_off(world, maker, block)
    reader.post(Verb.OPEN, name(block))
    world.drain(reader)
    world.dispatcher.perform(world.die(maker.key))
    reader.post(Verb.CLOSE, name(block))
    world.drain(reader)
    assert world.blocks() == 0


async def test_a_block_by_grpc_is_recalled_once_its_client_keeps_it(world: LaneWorld) -> None:
    """KEEP says that its state is to be believed from now on; of what is not its own it changes nothing."""
    maker, other = world.client(), world.client()
    (block,) = world.lease(maker.key, MIB // 2)
    maker.say(block.ref.slot, State.CACHED)
    maker.claim(block.size, 1)
    other.post(Verb.KEEP, block.ref)
    world.drain(other)
    with pytest.raises(OutOfMemory):
        world.lease(world.session(), MIB)
    maker.post(Verb.KEEP, block.ref)
    world.drain(maker)
    world.lease(world.session(), MIB)
    assert maker.generations[block.ref.slot] != open_word(block.ref.generation)


async def test_hits_and_misses_are_counted(world: LaneWorld) -> None:
    """As clients say, also at their end; what cannot be true is not believed."""
    tallies = world.heap.books.tallies
    one, two = world.client(), world.client()
    one.words[Word.CACHE_HITS], one.words[Word.CACHE_MISSES] = 500, 5
    world.advance(1.0)
    world.lanes.look()
    assert (tallies.cache_hits, tallies.cache_misses) == (500, 5)
    one.words[Word.CACHE_HITS], two.words[Word.CACHE_HITS] = 400, 1 << 63
    world.advance(1.0)
    world.lanes.look()
    assert (tallies.cache_hits, tallies.cache_misses) == (500, 5)
    one.words[Word.CACHE_HITS] = 700
    world.advance(1.0)
    world.dispatcher.perform(world.die(one.key))
    assert (tallies.cache_hits, tallies.cache_misses) == (700, 5)


async def test_cached_blocks_are_counted_by_class(world: LaneWorld) -> None:
    """Of the classes there are; a client that makes up others is not heard, nor one that has more than there is."""
    client = world.client()
    blocks = world.grant(client, 64, 3)
    client.claim(64, 2)
    client.claim(SIZE, 1, place=1)
    client.claim(100, 7, place=2)
    client.claim(128, 1 << 40, place=3)
    world.lanes.look()
    counted = world.heap.books.tallies.cached_class_blocks or {}
    assert (counted[64], counted[0], counted[128]) == (2, 1, len(blocks))
    assert 100 not in counted
    assert counted[4096] == 0


def test_a_new_lane_has_served_nobody() -> None:
    """Both counters begin at 0."""
    segment = LaneSegment.create("7", 64, 0)
    assert segment.counts() == (0, 0)
    segment.close()
