"""A pipeline's frames: large blocks, handed off again and again, that its producer finds at hand."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemons import DaemonProcess, eventually, soiled

import slabd

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
FRAME = 6 * MIB


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    """A daemon of a heap of 128 MiB, which clears what somebody has left everywhere in it."""
    with soiled(128 * MIB) as made:
        yield made


def hand_off(maker: slabd.Pool, reader: slabd.Pool, number: int) -> slabd.Handle:
    """Hand a frame from one pool to the other."""
    with maker.lease(FRAME) as lease:
        lease.view[:4] = number.to_bytes(4, "little")
        handle = lease.share()
    with reader.open(handle) as ref:
        assert bytes(ref.view[:4]) == number.to_bytes(4, "little")
    return handle


def test_what_had_to_be_cleared_first_is_at_hand_afterwards(daemon: DaemonProcess) -> None:
    """It came by gRPC, because that takes a while, and is kept all the same when it is released."""
    with slabd.connect(daemon.address) as pool:
        with pool.lease(FRAME) as lease:
            assert not any(lease.view[:: MIB // 4])
            first = lease.offset
        before = daemon.calls()
        assert before["Lease"] > 0
        for _ in range(100):
            with pool.lease(FRAME) as lease:
                assert lease.offset == first
        assert daemon.calls() == before
        assert daemon.cached >= FRAME


def test_what_is_kept_so_is_recalled(daemon: DaemonProcess) -> None:
    """It counts as available, and who needs all of the heap gets it."""
    with slabd.connect(daemon.address) as keeper, slabd.connect(daemon.address) as other:
        keeper.lease(FRAME).release()
        assert daemon.stats().available_bytes == 128 * MIB
        with other.lease(128 * MIB):
            assert daemon.cached == 0
        with keeper.lease(FRAME) as lease:
            assert not any(lease.view[:: MIB // 4])


def test_what_is_in_use_is_not_recalled(daemon: DaemonProcess) -> None:
    """Though it may be kept later."""
    with slabd.connect(daemon.address) as keeper, slabd.connect(daemon.address) as other:
        keeper.lease(FRAME).release()
        lease = keeper.lease(FRAME)
        lease.view[:] = b"\x55" * FRAME
        with pytest.raises(slabd.OutOfMemory):
            other.lease(128 * MIB, timeout=0)
        assert bytes(lease.view) == b"\x55" * FRAME
        lease.release()


def test_frames_come_back(daemon: DaemonProcess) -> None:
    """Once its readers have closed it, a frame is its producer's again, who asks nobody for the next one."""
    with slabd.connect(daemon.address) as maker, slabd.connect(daemon.address, read_only=True) as reader:
        assert maker._cache is not None
        for number in range(3):
            hand_off(maker, reader, number)
            daemon.stats()  # which reads all lanes
        # One that its reader keeps for a second does not come back, and on a busy machine that may happen.
        for _ in range(5):
            before, misses = daemon.calls(), maker._cache.misses
            for number in range(50):
                hand_off(maker, reader, number)
                daemon.stats()
            if nobody_asked := (daemon.calls(), maker._cache.misses) == (before, misses):
                break
        assert nobody_asked
    eventually(lambda: daemon.used == 0)


def test_the_handle_of_an_earlier_frame_opens_nothing(daemon: DaemonProcess) -> None:
    """Not the frame that is in its place now, whether that is leased, or shared with others."""
    with slabd.connect(daemon.address) as maker, slabd.connect(daemon.address, read_only=True) as reader:
        old = hand_off(maker, reader, 1)
        daemon.stats()
        with maker.lease(FRAME) as lease:
            assert lease.offset == old.offset
            with pytest.raises(slabd.StaleHandle):
                reader.open(old)
            lease.share()
            with pytest.raises(slabd.StaleHandle):
                reader.open(old)


def test_a_frame_that_somebody_keeps_does_not_come_back(daemon: DaemonProcess) -> None:
    """However long others have been done with it; it changes under nobody's eyes."""
    with slabd.connect(daemon.address) as maker, slabd.connect(daemon.address, read_only=True) as reader:
        with maker.lease(FRAME) as lease:
            lease.view[:] = b"\x2a" * FRAME
            handle = lease.share(opens=2)
        kept = reader.open(handle)
        reader.open(handle).release()
        for number in range(20):
            hand_off(maker, reader, number)
            daemon.stats()
        assert bytes(kept.view) == b"\x2a" * FRAME
        kept.release()


def test_frames_as_fast_as_they_come(daemon: DaemonProcess) -> None:
    """With several in flight, each is what its producer wrote while its reader has it open; and nothing is left."""
    frames, size = 3000, 64 * 1024
    handles: queue.Queue[slabd.Handle] = queue.Queue(8)
    wrong: list[int] = []
    with slabd.connect(daemon.address) as maker, slabd.connect(daemon.address, read_only=True) as reader:

        def consume() -> None:
            for number in range(frames):
                with reader.open(handles.get()) as ref:
                    found = {int.from_bytes(ref.view[:4], "little"), int.from_bytes(ref.view[-4:], "little")}
                    if found != {number}:
                        wrong.append(number)

        thread = threading.Thread(target=consume)
        thread.start()
        for number in range(frames):
            with maker.lease(size) as lease:
                lease.view[:4] = lease.view[-4:] = number.to_bytes(4, "little")
                handles.put(lease.share())
        thread.join()
    assert wrong == []
    eventually(lambda: daemon.used == 0)
