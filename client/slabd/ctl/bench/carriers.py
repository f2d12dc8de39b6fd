"""What carries a frame from process to process: for each peer its two sides, all over the same pipe.

A producer writes the frame's number into its first bytes, in place; a consumer reads it there. Nobody touches more of a
frame than that, but for those who carry the bytes themselves and have to.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack, contextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, Any, Final

import slabd
from slabd.ctl.bench.catalogue import FRAME_BYTES, IN_FLIGHT
from slabd.ctl.bench.model import OURS
from slabd.ctl.bench.peers import iceoryx
from slabd.ctl.bench.road import ANSWER, END, NUMBER_BYTES, Carrier, OnPipe, number_from, number_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd.ctl.bench.messages import Place
    from slabd.ctl.bench.road import Consumer, Producer, Road

MOST_IN_FLIGHT: Final = max(IN_FLIGHT)
_SECONDS: Final = 30.0
_SERVICE: Final = "bench frames"


class _OurProducer(OnPipe):
    def __init__(self, road: Road, pool: slabd.Pool) -> None:
        super().__init__(road)
        self._pool = pool

    def send(self, number: int) -> None:
        lease = self._pool.lease(FRAME_BYTES)
        lease.view[:NUMBER_BYTES] = number_to_bytes(number)
        handle = lease.share()
        lease.release()
        self.pipe.send_bytes(bytes(handle))


class _OurConsumer(OnPipe):
    def __init__(self, road: Road, pool: slabd.Pool) -> None:
        super().__init__(road)
        self._pool = pool

    def receive(self) -> int | None:
        if not (handle := self.pipe.recv_bytes()):
            return None
        with self._pool.open(handle) as frame:
            number = number_from(frame.view)
        self.pipe.send_bytes(ANSWER)
        return number


class _IceoryxProducer(OnPipe):
    def __init__(self, road: Road, publisher: Any) -> None:
        super().__init__(road)
        self._publisher = publisher

    def send(self, number: int) -> None:
        sample = self._publisher.loan_slice_uninit(FRAME_BYTES)
        ctypes.memmove(sample.payload_ptr, number_to_bytes(number), NUMBER_BYTES)
        sample.assume_init().send()
        self.pipe.send_bytes(ANSWER)


class _IceoryxConsumer(OnPipe):
    def __init__(self, road: Road, subscriber: Any) -> None:
        super().__init__(road)
        self._subscriber = subscriber

    def receive(self) -> int | None:
        if not self.pipe.recv_bytes():
            return None
        sample = self._subscriber.receive()
        number = number_from(ctypes.string_at(sample.payload_ptr, NUMBER_BYTES))
        sample.delete()
        self.pipe.send_bytes(ANSWER)
        return number


class _IdealProducer(OnPipe):
    def __init__(self, road: Road, views: list[memoryview]) -> None:
        super().__init__(road)
        self._views = views
        self._free = list(range(len(views)))

    def send(self, number: int) -> None:
        at = self._free.pop()
        self._views[at][:NUMBER_BYTES] = number_to_bytes(number)
        self.pipe.send_bytes(bytes((at,)))

    def take_answer(self) -> None:
        self._free.append(self.pipe.recv_bytes()[0])


class _IdealConsumer(OnPipe):
    def __init__(self, road: Road, views: list[memoryview]) -> None:
        super().__init__(road)
        self._views = views

    def receive(self) -> int | None:
        if not (place := self.pipe.recv_bytes()):
            return None
        number = number_from(self._views[place[0]])
        self.pipe.send_bytes(place)
        return number


class _BytesProducer(OnPipe):
    def __init__(self, road: Road) -> None:
        super().__init__(road)
        self._frame = bytearray(FRAME_BYTES)

    def send(self, number: int) -> None:
        self._frame[:NUMBER_BYTES] = number_to_bytes(number)
        self._carry(self._frame)

    def _carry(self, frame: bytearray) -> None:
        self.pipe.send_bytes(frame)


class _BytesConsumer(OnPipe):
    def receive(self) -> int | None:
        if not (frame := self._fetch()):
            return None
        self.pipe.send_bytes(ANSWER)
        return number_from(frame)

    def _fetch(self) -> bytes:
        return self.pipe.recv_bytes()


class _QueueProducer(_BytesProducer):
    def _carry(self, frame: bytearray) -> None:
        # A queue pickles later, in a thread of its own: it needs a frame that nobody writes into again.
        self.road.queue.put(bytes(frame))

    def end(self) -> None:
        self.road.queue.put(END)


class _QueueConsumer(_BytesConsumer):
    def _fetch(self) -> bytes:
        # Both processes hold both ends of a queue's pipe, so a dead producer would not be noticed.
        return self.road.queue.get(timeout=_SECONDS)


@contextmanager
def _our_producer(place: Place, road: Road) -> Iterator[Producer]:
    with slabd.connect(place.address, name="bench producer") as pool:
        yield _OurProducer(road, pool)


@contextmanager
def _our_consumer(place: Place, road: Road) -> Iterator[Consumer]:
    with slabd.connect(place.address, name="bench consumer") as pool:
        yield _OurConsumer(road, pool)


@contextmanager
def _iceoryx_producer(place: Place, road: Road) -> Iterator[Producer]:
    with iceoryx.node_for(place) as (package, node), ExitStack() as stack:
        service = iceoryx.service_for(package, node, _SERVICE, MOST_IN_FLIGHT)
        publisher = service.publisher_builder().initial_max_slice_len(FRAME_BYTES).max_loaned_samples(1).create()
        stack.callback(publisher.delete)
        yield _IceoryxProducer(road, publisher)


@contextmanager
def _iceoryx_consumer(place: Place, road: Road) -> Iterator[Consumer]:
    with iceoryx.node_for(place) as (package, node), ExitStack() as stack:
        subscriber = iceoryx.service_for(package, node, _SERVICE, MOST_IN_FLIGHT).subscriber_builder().create()
        stack.callback(subscriber.delete)
        yield _IceoryxConsumer(road, subscriber)


@contextmanager
def _frames(name: str) -> Iterator[list[memoryview]]:
    memory = SharedMemory(name)
    assert memory.buf is not None  # noqa: S101  # it is open; typeshed has it optional
    views = [memory.buf[at * FRAME_BYTES :][:FRAME_BYTES] for at in range(MOST_IN_FLIGHT)]
    try:
        yield views
    finally:
        for view in views:
            view.release()
        memory.close()


@contextmanager
def _ideal_producer(_place: Place, road: Road) -> Iterator[Producer]:
    with _frames(road.memory) as views:
        yield _IdealProducer(road, views)


@contextmanager
def _ideal_consumer(_place: Place, road: Road) -> Iterator[Consumer]:
    with _frames(road.memory) as views:
        yield _IdealConsumer(road, views)


@contextmanager
def _plain(side: Any) -> Iterator[Any]:
    yield side


CARRIERS: Final[dict[str, Carrier]] = {
    OURS: Carrier(_our_producer, _our_consumer),
    "iceoryx2": Carrier(_iceoryx_producer, _iceoryx_consumer),
    "ideal pool": Carrier(_ideal_producer, _ideal_consumer),
    "pipe": Carrier(lambda _, road: _plain(_BytesProducer(road)), lambda _, road: _plain(_BytesConsumer(road))),
    "queue": Carrier(lambda _, road: _plain(_QueueProducer(road)), lambda _, road: _plain(_QueueConsumer(road))),
}
