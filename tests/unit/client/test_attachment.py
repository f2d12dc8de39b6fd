"""Attaching, against listeners that are no daemon, or a bad one."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pytest

from slabd import errors
from slabd.address import LocalAddress
from slabd.attachment import attach_to
from slabd_proto import attach
from slabd_proto.v1 import attach_pb2, error_pb2, pool_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HELLO = attach_pb2.AttachHello(name="test")
HEAP_BYTES = 65_536


class Listener:
    """Answers one connection with the bytes, and the descriptors, it was given."""

    def __init__(self, directory: Path) -> None:
        self.address = LocalAddress(PurePosixPath(directory))
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(self.address.attach_path))
        self.socket.listen(1)
        self.peer: socket.socket | None = None

    def answer(self, reply: bytes, *descriptors: int, hang_up: bool = True) -> None:
        """Do so in a thread."""

        def run() -> None:
            self.peer, _ = self.socket.accept()
            if reply:
                socket.send_fds(self.peer, [reply[:1]], descriptors)
                self.peer.sendall(reply[1:])
            if hang_up:
                self.peer.close()

        threading.Thread(target=run).start()

    def close(self) -> None:
        """Close everything."""
        self.socket.close()
        if self.peer is not None:
            self.peer.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    """Somebody on the attach socket."""
    listener = Listener(tmp_path)
    yield listener
    listener.close()


@pytest.fixture
def memfd() -> Iterator[int]:
    """A heap's memory."""
    descriptor = os.memfd_create("heap")
    os.ftruncate(descriptor, HEAP_BYTES)
    yield descriptor
    os.close(descriptor)


def reply(**fields: object) -> bytes:
    """Return the frame of a reply that grants a session over a heap."""
    session = pool_pb2.Session(heap="default", heap_bytes=HEAP_BYTES)
    granted = attach_pb2.AttachReply(session=session, descriptors=[attach_pb2.ATTACH_DESCRIPTOR_HEAP])
    granted.MergeFrom(attach_pb2.AttachReply(**fields))  # type: ignore[arg-type]
    return attach.pack_frame(granted.SerializeToString())


def open_descriptors() -> set[str]:
    """Return the descriptors this process has."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names, not paths


def test_a_daemon_that_grants(listener: Listener, memfd: int) -> None:
    """The heap is mapped, the connection stays, and its end is noticed."""
    listener.answer(reply(), memfd, hang_up=False)
    attachment = attach_to(listener.address, HELLO, 5.0)
    attachment.mapping.anchor(0, 4)[0] = 7
    assert (os.pread(memfd, 1, 0), len(attachment.mapping), attachment.hung_up()) == (b"\7", HEAP_BYTES, False)
    assert not os.get_inheritable(attachment.connection.fileno())
    listener.close()
    assert attachment.hung_up()
    attachment.connection.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", errors.DaemonUnavailable),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", errors.UnsupportedVersion),
        (attach.pack_frame(b"", version=2), errors.UnsupportedVersion),
        (attach.pack_frame(b"\xff\xff\xff"), errors.UnsupportedVersion),
        (reply()[:20], errors.DaemonUnavailable),
        (reply(), errors.UnsupportedVersion),
        (reply(reason=error_pb2.ERROR_REASON_UNKNOWN_HEAP, message="no heap 'x'"), errors.UnknownHeap),
        (reply(reason=error_pb2.ERROR_REASON_ACCESS_DENIED, message="uid 7"), errors.AccessDenied),
    ],
)
def test_answers_that_are_none(listener: Listener, answer: bytes, expected: type[errors.SlabdError]) -> None:
    """A hang-up, garbage, another version, a grant without a heap, refusals: a typed error each, nothing left open."""
    before = open_descriptors()
    listener.answer(answer)
    with pytest.raises(expected):
        attach_to(listener.address, HELLO, 5.0)
    listener.close()
    assert open_descriptors() <= before


def test_descriptors_of_a_refusal_are_closed(listener: Listener, memfd: int) -> None:
    """A daemon that sends too much cannot fill our table of descriptors."""
    listener.answer(reply(reason=error_pb2.ERROR_REASON_DRAINING), memfd, memfd, memfd)
    before = open_descriptors()
    with pytest.raises(errors.Draining):
        attach_to(listener.address, HELLO, 5.0)
    listener.close()
    assert open_descriptors() <= before


def test_a_daemon_that_says_nothing(listener: Listener) -> None:
    """The deadline ends it."""
    listener.answer(b"", hang_up=False)
    with pytest.raises(errors.DaemonUnavailable, match="does not answer"):
        attach_to(listener.address, HELLO, 0.2)


def test_nobody_there(tmp_path: Path) -> None:
    """At once, with the path tried and what to do."""
    address = LocalAddress(PurePosixPath(tmp_path))
    with pytest.raises(errors.DaemonUnavailable, match=f"there is no socket {address.attach_path}; start one with"):
        attach_to(address, HELLO, 60.0)


def test_a_stale_socket_file(listener: Listener) -> None:
    """A daemon that died leaves its file."""
    listener.close()
    with pytest.raises(errors.DaemonUnavailable, match="nobody listens"):
        attach_to(listener.address, HELLO, 60.0)


def test_a_heap_that_is_smaller_than_announced(listener: Listener, memfd: int) -> None:
    """An error and no SIGBUS: mmap itself refuses."""
    os.ftruncate(memfd, 4096)
    listener.answer(reply(), memfd)
    with pytest.raises(errors.InternalError, match="cannot map"):
        attach_to(listener.address, HELLO, 5.0)
