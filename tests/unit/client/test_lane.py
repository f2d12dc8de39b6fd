"""The client's lane: posting, taking answers, and the usage table, with the other end in the test's hands."""

from __future__ import annotations

import errno
import gc
import os
import select
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.descriptors import open_descriptors
from tests.fixtures.hand_daemon import SLOTS, HandDaemon

from slabd import lane as lane_module
from slabd.lane import Lane, LaneDescriptors, register_for_barriers
from slabd_proto.lane import (
    PURPOSES,
    RING,
    Answer,
    Completion,
    LaneFormatError,
    Submission,
    Verb,
    Word,
    pack_submission,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def daemon() -> Iterator[HandDaemon]:
    """A daemon by hand, with a client's lane on it."""
    made = HandDaemon()
    yield made
    made.close()


def rings(daemon: HandDaemon) -> int:
    """Return how often the doorbell was rung since it was asked last."""
    try:
        return os.eventfd_read(daemon.doorbell)
    except BlockingIOError:
        return 0


def unwritten(daemon: HandDaemon) -> bool:
    """Whether something that was committed waits for room in the ring."""
    return daemon.lane.has_unwritten


def close(number: int) -> Submission:
    """Return a post that can be told from others."""
    return Submission(Verb.CLOSE, number)


# -- posting


def test_posts_arrive_in_their_order(daemon: HandDaemon) -> None:
    """What is committed and what is posted comes in the order in which it was, and each is numbered."""
    daemon.lane.commit(close(1))
    assert daemon.lane.try_post(close(2)) == 2
    daemon.lane.commit(close(3))
    assert [post.slot for post in daemon.read()] == [1, 2, 3]


def test_a_full_ring_keeps_what_is_committed(daemon: HandDaemon) -> None:
    """When the ring is full, `try_post` does nothing, and what is committed waits its turn in front of later posts."""
    for number in range(RING):
        daemon.lane.commit(close(number))
    assert not unwritten(daemon)
    assert daemon.lane.try_post(close(9999)) == 0
    daemon.lane.commit(close(RING))
    daemon.lane.commit(close(RING + 1))
    assert unwritten(daemon)
    assert not daemon.lane.flush()
    assert len(daemon.read(1)) == 1
    assert daemon.lane.try_post(close(9999)) == 0  # there is room for one of the two in the outbox
    assert [post.slot for post in daemon.read()] == list(range(1, RING + 1))
    assert daemon.lane.try_post(close(5)) == RING + 3
    assert [post.slot for post in daemon.read()] == [RING + 1, 5]


def test_many_laps(daemon: HandDaemon) -> None:
    """The ring goes round as often as need be."""
    for number in range(3 * RING + 7):
        daemon.lane.commit(close(number))
        if number % 100 == 0:
            daemon.read()
    daemon.read()
    assert [post.slot for post in daemon.posts] == list(range(3 * RING + 7))


def test_the_doorbell_is_rung_for_who_sleeps(daemon: HandDaemon) -> None:
    """A daemon that polls is not woken by a post, unless the ring is half full; one that sleeps is."""
    daemon.lane.commit(close(1))
    assert rings(daemon) == 1
    daemon.segment.set_polling(polling=True)
    daemon.lane.commit(close(2))
    assert rings(daemon) == 0
    for number in range(RING // 2):
        daemon.lane.commit(close(number))
    assert rings(daemon) > 0


def test_a_block_is_given_back_by_one_post(daemon: HandDaemon) -> None:
    """Of two posts that give back the block of one serial number, one is written; without a number all are."""
    held: dict[int, object] = {7: "block"}
    daemon.lane.claim_by(held)
    for _ in range(2):
        daemon.lane.commit(close(1), 7)
    daemon.lane.commit(close(2), 8)  # not held
    for _ in range(2):
        daemon.lane.commit(close(3))
    assert [post.slot for post in daemon.read()] == [1, 3, 3]
    assert held == {}


class Struck(Exception):
    """Stands for KeyboardInterrupt."""


@pytest.mark.parametrize("where", ["_has_room", "unpack_submission", "pack_submission"])
def test_an_interrupted_post_is_posted_once(daemon: HandDaemon, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """What an interrupt left half-done in the outbox is done by whoever comes next, and not twice."""
    armed = [True]

    owner = daemon.lane if where == "_has_room" else lane_module
    real = getattr(owner, where)

    def strike(*arguments: Any) -> Any:
        done = real(*arguments)
        if armed:
            armed.pop()
            raise Struck
        return done

    monkeypatch.setattr(owner, where, strike)
    with pytest.raises(Struck):
        daemon.lane.commit(close(1))
    daemon.lane.commit(close(2))
    assert [post.slot for post in daemon.read()] == [1, 2]
    assert not unwritten(daemon)


def test_the_garbage_collector_may_post_in_the_middle(daemon: HandDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A post from inside another one is not lost, does not disturb it, and comes after it."""
    inside: list[int] = []

    def pack(number: int, post: Submission) -> bytes:
        if not inside:
            inside.append(1)
            daemon.lane.commit(close(2))
            assert daemon.lane.try_post(close(3)) == 0
        return pack_submission(number, post)

    monkeypatch.setattr(lane_module, "pack_submission", pack)
    daemon.lane.commit(close(1))
    assert [post.slot for post in daemon.read()] == [1, 2]


def test_threads_post_at_once(daemon: HandDaemon) -> None:
    """No post of any thread is lost or doubled, and each thread's come in its order."""

    def work(number: int) -> None:
        for turn in range(200):
            daemon.lane.commit(Submission(Verb.CLOSE, number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        daemon.read()
    daemon.lane.flush()
    daemon.read()
    for number in range(4):
        assert [post.generation for post in daemon.posts if post.slot == number] == list(range(200))


# -- answers


def test_answers_are_taken_once(daemon: HandDaemon) -> None:
    """Each completion is there until it is taken, once, in order; what is taken makes room."""
    for number in range(1, 4):
        daemon.segment.complete(Completion(Answer.REFUSED, number))
    assert daemon.lane.next_completion() == daemon.lane.next_completion() == (1, Completion(Answer.REFUSED, 1))
    daemon.lane.took(1)
    daemon.lane.took(1)
    assert answers(daemon) == [2, 3]
    assert daemon.lane.next_completion() is None
    assert daemon.lane.words[Word.COMPLETIONS_TAKEN] == 3
    assert daemon.segment.room == RING


def test_answers_go_round(daemon: HandDaemon) -> None:
    """Completions of several laps are told from each other."""
    for lap in range(3):
        for number in range(RING):
            daemon.segment.complete(Completion(Answer.REFUSED, lap * RING + number))
        assert answers(daemon) == list(range(lap * RING, (lap + 1) * RING))


def answers(daemon: HandDaemon) -> list[int]:
    """Take the completions there are, and return which requests they are for."""
    found = []
    while (entry := daemon.lane.next_completion()) is not None:
        daemon.lane.took(entry[0])
        found.append(entry[1].request)
    return found


def test_waiting_ends_with_the_bell_or_the_daemon() -> None:
    """The bell ends it and is quiet afterwards; silence and a hang-up end it without."""
    daemon = HandDaemon()
    del daemon.lane.wait  # the real one
    connection = daemon.theirs.fileno()
    assert not daemon.lane.wait(connection, 0.01)
    os.eventfd_write(daemon.bell, 1)
    assert daemon.lane.wait(connection, 60.0)
    assert not daemon.lane.wait(connection, 0.0)
    daemon.ours.close()
    assert not daemon.lane.wait(connection, 60.0)
    daemon.close()


# -- the usage table


def test_slots_are_reached_in_pieces(daemon: HandDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Usage of a slot is allocated before it is written, once for many; without memory the slot is not for the lane."""
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda _fd, start, _size: asked.append(start))
    assert daemon.lane.reach(0)
    assert len(asked) == 3
    assert daemon.lane.reach(SLOTS - 1)
    assert len(asked) == 3
    assert not daemon.lane.reach(SLOTS)
    assert not daemon.lane.reach(2**31)


def test_without_memory_a_block_goes_back(daemon: HandDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A granted block whose usage cannot be written is returned, and the lease asked for by gRPC."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    daemon.table.open(1, 1)  # the daemon has memory
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert daemon.cache.get(100, 1, "", None, None) is None
    daemon.read()
    assert daemon.owned == {}
    assert daemon.lane.purpose("label", "site") == 0


def test_purposes_are_numbered_once(daemon: HandDaemon) -> None:
    """The same label and call site have one number, others another; nothing at all has none."""
    first = daemon.lane.purpose("frame", "a.py:1")
    assert daemon.lane.purpose("frame", "a.py:1") == first > 0
    assert daemon.lane.purpose("frame", "a.py:2") != first
    assert daemon.lane.purpose("", "") == 0
    assert daemon.segment.purpose(first) == ("frame", "a.py:1")


def test_purposes_are_bounded(daemon: HandDaemon) -> None:
    """With more labels than there is room for, the last ones say nothing; those before stay what they are."""
    numbers = [daemon.lane.purpose(f"label {index}", "here") for index in range(PURPOSES + 100)]
    assert numbers[-1] == 0
    assert [daemon.segment.purpose(number)[0] for number in numbers[: PURPOSES - 1]] == [
        f"label {index}" for index in range(PURPOSES - 1)
    ]


# -- mapping it


def test_other_memory_is_no_lane(daemon: HandDaemon) -> None:
    """A descriptor of something else, or of another version, makes no lane, and no descriptor stays open."""
    gc.collect()  # what other tests have left
    before = open_descriptors()
    other = os.memfd_create("other")
    generations = daemon.table.read_only_fd()
    for content in (b"", bytes(1 << 20), b"SLABLANE" + bytes(1 << 20)):
        os.ftruncate(other, 0)
        os.pwrite(other, content, 0)
        with pytest.raises((LaneFormatError, ValueError, OSError)):
            Lane.over(LaneDescriptors(generations, other, daemon.doorbell, daemon.bell))
    with pytest.raises(OSError, match="Bad file descriptor"):
        Lane.over(LaneDescriptors(generations, daemon.segment.fd, -1, daemon.bell))
    os.close(other)
    os.close(generations)
    gc.collect()
    assert open_descriptors() == before


def test_generations_cannot_be_written(daemon: HandDaemon) -> None:
    """What says whether a block may be opened is the daemon's alone."""
    with pytest.raises(TypeError):
        daemon.lane.generations[1] = 5


def test_closing_keeps_the_memory_and_no_descriptor(daemon: HandDaemon) -> None:
    """A closed lane has no descriptor; who looks at its memory still can."""
    numbers = [daemon.lane.bell.number, daemon.lane._fd.number, daemon.lane._doorbell.number]
    daemon.lane.close()
    daemon.lane.close()
    for number in numbers:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    assert daemon.lane.words[Word.SUBMISSIONS_TAKEN] == 0


def test_registering_for_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    """This kernel has them; of a machine that is not known it is said so."""
    register_for_barriers()
    register_for_barriers()
    machine = os.uname()
    monkeypatch.setattr(os, "uname", lambda: type(machine)([*machine[:4], "pdp11"]))
    with pytest.raises(OSError, match="pdp11"):
        register_for_barriers()


def test_the_bell_can_be_polled(daemon: HandDaemon) -> None:
    """The bell is an eventfd of the daemon's, readable when it has rung, and `quiet` takes that."""
    assert not daemon.lane.quiet()
    os.eventfd_write(daemon.bell, 3)
    assert select.select([daemon.lane.bell.number], [], [], 0)[0]
    assert daemon.lane.quiet()
    assert not daemon.lane.quiet()
