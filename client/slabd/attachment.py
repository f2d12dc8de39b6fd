"""Attaching to a local daemon: one exchange on the attach socket, which then stays open and silent for life.

The socket is how the daemon learns that this process is gone, and how this process learns that the daemon has dropped
the session. Blocking, with a deadline; the asyncio client runs it in a thread.
"""

from __future__ import annotations

import array
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from slabd import errors
from slabd.descriptors import Descriptor
from slabd.failures import error_of_reason
from slabd.lane import Lane, LaneDescriptors, register_for_barriers
from slabd.mapping import COUNTS_VIEWS, Mapping
from slabd.transport import Deadline
from slabd_proto import attach
from slabd_proto.v1 import attach_pb2, error_pb2, pool_pb2

if TYPE_CHECKING:
    from slabd.address import LocalAddress

_INT_BYTES: Final = array.array("i").itemsize
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(attach.MAX_DESCRIPTORS * _INT_BYTES)
_BACKLOG_PAUSE_SECONDS: Final = 0.01
_LANE_DESCRIPTORS: Final = (
    attach_pb2.ATTACH_DESCRIPTOR_GENERATIONS,
    attach_pb2.ATTACH_DESCRIPTOR_LANE,
    attach_pb2.ATTACH_DESCRIPTOR_DOORBELL,
    attach_pb2.ATTACH_DESCRIPTOR_BELL,
)


@dataclass(frozen=True, slots=True)
class Attachment:
    """An attached session: what the daemon says about it, its connection, and the descriptor of that, its heap."""

    session: pool_pb2.Session
    connection: socket.socket
    descriptor: Descriptor
    mapping: Mapping
    lane: Lane | None = None

    def hung_up(self) -> bool:
        """Return whether the daemon has dropped the session."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def say_goodbye(self) -> None:
        """Tell the daemon that this process will not touch the heap again; it hears that together with the hang-up."""
        with suppress(OSError):  # the daemon is gone
            self.connection.send(attach.GOODBYE, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def hang_up(self) -> None:
        """Let go of the connection."""
        number = self.connection.detach()
        if number >= 0:
            self.descriptor.close()


def attach_to(address: LocalAddress, hello: attach_pb2.AttachHello, seconds: float) -> Attachment:
    """Open a session over the attach socket, within `seconds`.

    Raises:
        DaemonUnavailable: nobody listens there, or does not answer in time.
        UnsupportedVersion: whoever listens there does not speak this version of the protocol.
        SlabdError: the daemon refuses; the class says why.
    """
    deadline = Deadline(seconds)
    connection = _dial(address, deadline)
    descriptors: list[int] = []
    try:
        reply = _exchange(connection, hello, address, deadline, descriptors)
        mapping = _map(reply, descriptors, address)
        lane = _lane(reply, descriptors)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return Attachment(reply.session, connection, Descriptor(connection.fileno()), mapping, lane)


def _dial(address: LocalAddress, deadline: Deadline) -> socket.socket:
    path = str(address.attach_path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        while True:
            connection.settimeout(deadline.remaining or _BACKLOG_PAUSE_SECONDS)
            try:
                connection.connect(path)
            except BlockingIOError:  # the daemon's backlog is full: for unix sockets that is no waiting state
                if deadline.passed:
                    raise
                time.sleep(_BACKLOG_PAUSE_SECONDS)
            else:
                return connection
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise _unreachable(path, error) from None
        raise


def _unreachable(path: str, error: OSError) -> errors.SlabdError:
    advice = "start one with `slabd serve`, or name the right runtime directory in $SLABD_ADDRESS or connect(address)"
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return errors.DaemonUnavailable(f"no slabd daemon: there is no socket {path}; {advice}")
        case ConnectionRefusedError():
            return errors.DaemonUnavailable(f"no slabd daemon: nobody listens on {path}; {advice}")
        case PermissionError():
            return errors.AccessDenied(f"this user may not connect to {path}: {error.strerror}")
        case TimeoutError() | BlockingIOError():
            return errors.DaemonUnavailable(f"the slabd daemon at {path} does not answer: is it stopped or overloaded?")
    return errors.DaemonUnavailable(f"cannot connect to {path}: {error.strerror or error}; {advice}")


def _exchange(
    connection: socket.socket,
    hello: attach_pb2.AttachHello,
    address: LocalAddress,
    deadline: Deadline,
    descriptors: list[int],
) -> attach_pb2.AttachReply:
    """Send the hello, and return the reply; its descriptors are appended as they come, so that none can get lost."""
    path = address.attach_path
    try:
        with suppress(BrokenPipeError):  # a daemon may refuse, and hang up, before it has read anything
            connection.sendall(attach.pack_frame(hello.SerializeToString()))
        header = attach.unpack_header(_receive(connection, attach.HEADER_BYTES, deadline, descriptors))
        reply = attach_pb2.AttachReply.FromString(_receive(connection, header.payload_bytes, deadline, descriptors))
    except (attach.FrameError, DecodeError) as error:
        raise errors.UnsupportedVersion(f"{path} is not answered by a slabd daemon of this version: {error}") from None
    except OSError as error:
        raise _unreachable(str(path), error) from None
    if reply.reason != error_pb2.ERROR_REASON_UNSPECIFIED:
        raise error_of_reason(reply.reason, reply.message)
    return reply


def _receive(connection: socket.socket, size: int, deadline: Deadline, descriptors: list[int]) -> bytes:
    data = b""
    while len(data) < size:
        if not (remaining := deadline.remaining):
            raise TimeoutError
        connection.settimeout(remaining)
        piece, ancillary, _, _ = connection.recvmsg(size - len(data), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(content[: len(content) // _INT_BYTES * _INT_BYTES])
                descriptors.extend(received)
        if not piece:
            raise ConnectionResetError(0, "the daemon hung up without an answer")
        data += piece
    return data


def _lane(reply: attach_pb2.AttachReply, descriptors: list[int]) -> Lane | None:
    """Map the lane, if the daemon has sent one and it can be used here: else everything goes by gRPC."""
    named = dict(zip(reply.descriptors, descriptors, strict=False))
    if not COUNTS_VIEWS or any(kind not in named for kind in _LANE_DESCRIPTORS):
        return None
    with suppress(OSError, ValueError):
        register_for_barriers()
        return Lane.over(LaneDescriptors(*(named[kind] for kind in _LANE_DESCRIPTORS)))
    return None


def _map(reply: attach_pb2.AttachReply, descriptors: list[int], address: LocalAddress) -> Mapping:
    named = dict(zip(reply.descriptors, descriptors, strict=False))
    if attach_pb2.ATTACH_DESCRIPTOR_HEAP not in named:
        raise errors.UnsupportedVersion(f"the daemon at {address.attach_path} sent no heap")
    session = reply.session
    heap = named[attach_pb2.ATTACH_DESCRIPTOR_HEAP]
    writable = session.access != pool_pb2.ACCESS_MODE_READ_ONLY
    try:
        return Mapping(heap, session.heap_bytes, writable=writable)
    except OSError as error:
        raise errors.MappingFailed(
            f"cannot map the heap of {session.heap_bytes} bytes: {error.strerror}; see `ulimit -v`, or connect over TCP"
        ) from error
    except ValueError as error:  # the daemon lies about the size
        raise errors.InternalError(f"cannot map the heap of {session.heap_bytes} bytes: {error}") from error
