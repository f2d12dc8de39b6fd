"""The attach server: it hands the heap's descriptor to local processes, and watches them until they are gone.

For each client it keeps two descriptors: the connection, whose hang-up says that the client and every child that
inherited it have let go, and a pidfd, which says that the process has exited. What follows from either is the
engine's decision. The peer's credentials are those the kernel recorded when it connected, so a client cannot claim
another's.

It must not trust a byte it is sent: a handshake that is late, malformed, too long or of another version is refused with
an answer that says so, and costs nobody else anything. After the hello a client has nothing to say but goodbye. What it
writes all the same is thrown away, no faster than a gulp every now and then, and mentioned once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from slabd_proto.attach import (
    GOODBYE,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    FrameError,
    FrameVersionError,
    pack_frame,
    unpack_header,
)
from slabd_proto.v1 import attach_pb2
from slabd_server import __version__, wire
from slabd_server.core.errors import AccessDenied, CoreError, InvalidArgument, TooManySessions, UnsupportedVersion
from slabd_server.core.records import Access, Peer
from slabd_server.core.sessions import SECRET_BYTES
from slabd_server.status import code_and_reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from slabd_server.core.records import SessionId
    from slabd_server.core.sessions import Session
    from slabd_server.dispatch import Dispatcher
    from slabd_server.lane_memory import GenerationTable
    from slabd_server.lanes import Lanes
    from slabd_server.segments import HeapSegment

HANDSHAKE_SECONDS: Final = 5.0
HANDSHAKES_MAX: Final = 256
_ACCEPT_PAUSE_SECONDS: Final = 0.5
# When there are too many, those give way who have not said hello for so long.
_SILENCE_SECONDS: Final = 0.25
_MAKING_ROOM_SECONDS: Final = 0.02
# A hang-up behind unread bytes is noticed with the last of them, so a gulp is as much as a unix socket buffers.
_GULP_BYTES: Final = 256 * 1024
_BABBLE_PAUSE_SECONDS: Final = 0.1
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_UCRED: Final = struct.Struct("iII")
# Python 3.11 has no names for these: include/uapi/asm-generic/socket.h.
_SO_PEERGROUPS: Final = 59
_SO_PEERPIDFD: Final = 77
_GROUPS_MAX: Final = 65_536  # NGROUPS_MAX

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Connection:
    """A session's connection and its process's pidfd; each None once it has nothing more to say.

    `babbles` once the client has written what nobody wants to hear.
    """

    socket: socket.socket | None
    pidfd: int | None
    babbles: bool = False


class AttachServer:
    """Accepts clients on the attach socket and watches the sessions it opened for them."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        segments: Mapping[str, HeapSegment],
        lanes: Lanes,
        tables: Mapping[str, GenerationTable],
    ) -> None:
        self._dispatcher = dispatcher
        self._engine = dispatcher.engine
        self._segments = segments
        self._lanes = lanes
        self._tables = tables
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._handshakes: dict[asyncio.Task[None], float] = {}
        self._connections: dict[SessionId, _Connection] = {}

    def listen(self, path: Path, mode: int) -> None:
        """Listen on a unix socket at `path`, which must not exist, with these permissions.

        Raises:
            OSError: it cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            before = os.umask(0o777 & ~mode)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._loop.add_reader(listener, self._accept)

    def stop_listening(self) -> None:
        """Admit nobody any more; sessions stay watched."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        """Stop listening and let go of every session."""
        self.stop_listening()
        for task in tuple(self._handshakes):
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        for session in tuple(self._connections):
            self.forget(session)

    # -- admitting

    def _accept(self) -> None:
        """Admit one client, and no second before the loop has been round: a hello that is here already is read."""
        if self._listener is None:
            return
        if len(self._handshakes) >= HANDSHAKES_MAX:
            self._make_room()
            return
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            log.error("cannot accept clients for a moment: %s", error)  # noqa: TRY400 - no defect of ours
            self._pause_accepting(_ACCEPT_PAUSE_SECONDS)
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._handshake(connection))
        self._handshakes[task] = self._loop.time()
        task.add_done_callback(self._handshakes.pop)

    def _make_room(self) -> None:
        """Let those give way who have been silent for longest: a client says hello at once."""
        silent_since = self._loop.time() - _SILENCE_SECONDS
        for task, began in tuple(self._handshakes.items()):
            if began <= silent_since:
                task.cancel()
        # They leave before the loop is round again; or else the backlog waits instead of being spun on.
        self._pause_accepting(_MAKING_ROOM_SECONDS)

    def _pause_accepting(self, seconds: float) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._loop.call_later(seconds, self._resume_accepting)

    def _resume_accepting(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._accept)

    async def _handshake(self, connection: socket.socket) -> None:
        kept = False
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                hello = await self._read_hello(connection)
            kept = self._admit(connection, hello)
        except CoreError as error:
            log.info("attach refused: %s", error)
            reply = attach_pb2.AttachReply(reason=code_and_reason(error)[1], message=str(error))
            self._say_no(connection, reply)
        except TimeoutError:
            log.info("attach refused: no hello within %s seconds", HANDSHAKE_SECONDS)
        except (ConnectionError, EOFError) as error:
            log.info("attach given up by the client: %s", error)
        finally:
            if not kept:
                connection.close()

    async def _read_hello(self, connection: socket.socket) -> attach_pb2.AttachHello:
        try:
            header = unpack_header(await self._read(connection, HEADER_BYTES))
            return attach_pb2.AttachHello.FromString(await self._read(connection, header.payload_bytes))
        except FrameVersionError as error:
            raise UnsupportedVersion(str(error)) from None
        except (FrameError, DecodeError) as error:
            raise InvalidArgument(f"no hello on the attach socket: {error}") from None

    async def _read(self, connection: socket.socket, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = await self._loop.sock_recv(connection, length - len(data))
            if not piece:
                raise EOFError(f"hung up after {len(data)} of {length} bytes")
            data += piece
        return data

    def _admit(self, connection: socket.socket, hello: attach_pb2.AttachHello) -> bool:
        peer, pidfd = identify(connection)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, pidfd)
            access = wire.access(hello.access)
            heap_fd = self._heap_fd(self._engine.heap_named(hello.heap).books.name, access)
            undo.callback(os.close, heap_fd)
            session = self._engine.open_session(
                hello.heap,
                name=hello.name or _process_name(peer.pid),
                access=access,
                peer=peer,
                attached=True,
                secret=secrets.token_bytes(SECRET_BYTES),
                now=self._dispatcher.now(),
            )
            undo.pop_all()
        self._connections[session.id] = _Connection(connection, pidfd)
        self._loop.add_reader(connection, self._heard, session.id)
        self._loop.add_reader(pidfd, self._exited, session.id)
        heap = session.books.name
        log.info("session %d %r (pid %s, uid %s) attached to %s", session.id, session.name, peer.pid, peer.uid, heap)
        self._welcome(connection, session, heap_fd, lane=hello.lane)
        return True

    def _heap_fd(self, heap: str, access: Access) -> int:
        """Return a descriptor of a heap with this access, to send and then to close."""
        segment = self._segments[heap]
        try:
            return os.dup(segment.fd) if access is Access.READ_WRITE else segment.read_only_fd()
        except OSError as error:
            raise _no_descriptor(error) from None

    def _welcome(self, connection: socket.socket, session: Session, heap_fd: int, *, lane: bool) -> None:
        served = self._engine.heaps[session.books.name]
        with contextlib.ExitStack() as sent:
            sent.callback(os.close, heap_fd)
            descriptors: dict[attach_pb2.AttachDescriptor.ValueType, int] = {attach_pb2.ATTACH_DESCRIPTOR_HEAP: heap_fd}
            if lane:
                descriptors |= self._lane_fds(session, sent)
            reply = attach_pb2.AttachReply(
                session=wire.session(session, served, __version__), descriptors=list(descriptors)
            )
            # A frame fits any socket buffer, so this never blocks; a client that is gone already is heard by its
            # hang-up.
            with contextlib.suppress(ConnectionError, BlockingIOError):
                socket.send_fds(connection, [pack_frame(reply.SerializeToString())], list(descriptors.values()))

    def _lane_fds(
        self, session: Session, sent: contextlib.ExitStack
    ) -> dict[attach_pb2.AttachDescriptor.ValueType, int]:
        """Make a lane, and return its descriptors, in the order in which they are sent; none when it cannot be had."""
        try:
            generations = self._tables[session.books.name].read_only_fd()
        except OSError as error:
            log.warning("session %d gets no lane and uses gRPC alone: %s", session.id, error)
            return {}
        sent.callback(os.close, generations)
        lane = self._lanes.open(session)
        if lane is None:
            return {}
        return {
            attach_pb2.ATTACH_DESCRIPTOR_GENERATIONS: generations,
            attach_pb2.ATTACH_DESCRIPTOR_LANE: lane.segment.fd,
            attach_pb2.ATTACH_DESCRIPTOR_DOORBELL: lane.doorbell,
            attach_pb2.ATTACH_DESCRIPTOR_BELL: lane.bell,
        }

    def _say_no(self, connection: socket.socket, reply: attach_pb2.AttachReply) -> None:
        with contextlib.suppress(OSError):
            connection.send(pack_frame(reply.SerializeToString()))
            # Closed with bytes unread, the connection would end in a reset and not in an end of file.
            connection.recv(MAX_PAYLOAD_BYTES)

    # -- watching

    def look(self, session: SessionId) -> None:
        """Notice a hang-up that has happened, even though the event loop has not got round to it yet."""
        watched = self._connections.get(session)
        if watched is not None and watched.socket is not None:
            self._heard(session)

    def _heard(self, session: SessionId) -> None:
        watched = self._connections[session]
        if watched.socket is None:
            return
        data = _receive(watched.socket)
        closed = data == GOODBYE
        if closed:
            data = _receive(watched.socket)
        self._lanes.drain(session)
        if data == b"":
            self._drop_socket(session)
            done = self._engine.hang_up(session, now=self._dispatcher.now(), closed=closed)
            self._dispatcher.perform(done.effects)
            return
        if closed:
            self._dispatcher.perform(self._engine.goodbye(session, now=self._dispatcher.now()).effects)
        if data:
            self._ignore(session, watched, watched.socket)

    def _ignore(self, session: SessionId, watched: _Connection, connection: socket.socket) -> None:
        if not watched.babbles:
            watched.babbles = True
            log.warning("session %d writes to the attach socket, which is to be silent; it is ignored", session)
        # Its own buffer fills meanwhile, and it is the client who waits.
        self._loop.remove_reader(connection)
        self._loop.call_later(_BABBLE_PAUSE_SECONDS, self._listen_again, session)

    def _listen_again(self, session: SessionId) -> None:
        watched = self._connections.get(session)
        if watched is not None and watched.socket is not None:
            self._loop.add_reader(watched.socket, self._heard, session)

    def _exited(self, session: SessionId) -> None:
        self._drop_pidfd(session)
        self._lanes.drain(session)
        self._dispatcher.perform(self._engine.process_gone(session, now=self._dispatcher.now()).effects)

    def forget(self, session: SessionId) -> None:
        """Stop watching a session; one that was not attached here is no error."""
        self._lanes.forget(session)
        self._drop_socket(session)
        self._drop_pidfd(session)
        self._connections.pop(session, None)

    def _drop_socket(self, session: SessionId) -> None:
        watched = self._connections.get(session)
        if watched is not None and watched.socket is not None:
            self._loop.remove_reader(watched.socket)
            watched.socket.close()
            watched.socket = None

    def _drop_pidfd(self, session: SessionId) -> None:
        watched = self._connections.get(session)
        if watched is not None and watched.pidfd is not None:
            self._loop.remove_reader(watched.pidfd)
            os.close(watched.pidfd)
            watched.pidfd = None


def _receive(connection: socket.socket) -> bytes | None:
    """Return what there is to read: nothing at a hang-up, None before anything has come."""
    try:
        return connection.recv(_GULP_BYTES)
    except (BlockingIOError, InterruptedError):
        return None
    except ConnectionError:
        return b""


def identify(connection: socket.socket) -> tuple[Peer, int]:
    """Return who is on the other side of a unix connection, and a pidfd of it.

    The pid is 0 for a process of a pid namespace this one cannot see; its pidfd works all the same where the kernel
    has SO_PEERPIDFD (6.5).

    Raises:
        AccessDenied: the process cannot be watched, so its memory could not be taken back safely.
        TooManySessions: there is no descriptor left.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    peer = Peer(pid=pid, uid=uid, gids=_groups(connection) | {gid})
    try:
        return peer, connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EINVAL, errno.ESRCH):
            raise _no_descriptor(error) from None
        unsupported = error.errno == errno.ENOPROTOOPT
    if not unsupported or pid == 0:
        raise AccessDenied(f"the process (pid {pid}) has exited or cannot be watched from the daemon's pid namespace")
    try:
        # The connection is still open, so unless the process exited and left it to a child, the pid is still its own.
        return peer, os.pidfd_open(pid)
    except OSError as error:
        raise AccessDenied(f"the process (pid {pid}) cannot be watched: {error}") from None


def _no_descriptor(error: OSError) -> CoreError:
    """Return what a client is told that came when the daemon had no file descriptor left."""
    if error.errno not in _EXHAUSTED:
        raise error
    return TooManySessions(f"the daemon admits no further client now: {error.strerror}")


def _groups(connection: socket.socket) -> frozenset[int]:
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX)
    except OSError:
        return frozenset()
    return frozenset(struct.unpack(f"{len(data) // 4}I", data))


def _process_name(pid: int | None) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError:
        return ""
