"""The web server that Prometheus scrapes: a handful of connections on the daemon's event loop, one thread to render in.

Anybody who reaches the port may connect, so whatever a connection can take is bounded: how many there are at once, how
long a request is, how long it takes as a whole, how long its answer is left unread. A newcomer that finds no place gets
that of the oldest connection that waits for no answer: of a crowd that only connects, each member pushes out another,
and a scraper that asks right away is answered. When everybody is being answered, newcomers wait in the kernel's queue.

A connection carries one request, GET or HEAD, and is closed after the answer. `respond` decides the answer from the
request's bytes, without any I/O but the scrape itself; the rest of the module moves bytes.

It must not render on the event loop, must not log what strangers can bring about, and reads no body.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import gc
import io
import logging
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from wsgiref.handlers import SimpleHandler

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import choose_encoder

from slabd_server import __version__
from slabd_server.options.kinds import TcpAddress

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from prometheus_client import CollectorRegistry

_PATHS: Final = ("/", "/metrics")
_METHODS: Final = ("GET", "HEAD")
_SOFTWARE: Final = f"slabd/{__version__}"
_END: Final = re.compile(rb"\n\r?\n")
_FAILED: Final = b"HTTP/1.0 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
_BACKLOG: Final = 1024  # a crowd that comes at once must not have the kernel drop a scraper among it
_GULP_BYTES: Final = 64 * 1024
_ACCEPT_PAUSE_SECONDS: Final = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What strangers may take: all of them together, and each from its first moment to its last."""

    connections: int = 8
    request_bytes: int = 16 * 1024  # the request line and all headers; Prometheus sends some 300 bytes
    request_seconds: float = 5.0
    answer_seconds: float = 10.0  # Prometheus itself gives up after ten
    linger_seconds: float = 1.0


LIMITS: Final = Limits()


# -- what is answered


def is_whole(request: bytes | bytearray, start: int = 0) -> bool:
    """Tell whether a request line and its headers are there, up to the empty line; it is not before `start`."""
    return _END.search(request, start) is not None


def respond(request: bytes, application: WSGIApplication) -> bytes:
    """Return the answer to a request: the application's, or what is wrong with the request.

    A request that is not whole is one that was too long. Raises what the application raises.
    """
    return _Exchange(request, application).answer()


def _respond_tidily(request: bytes, application: WSGIApplication) -> bytes:
    """Respond without setting off the garbage collector.

    What a scrape makes is gone by itself when the scrape is over. But for as long as it is there it looks like so much
    that lives long that the collector goes through everything there is: 20 ms on the event loop among 100,000 leases.
    """
    gc.disable()
    try:
        return respond(request, application)
    finally:
        gc.enable()


class _Exchange(BaseHTTPRequestHandler):
    """The standard library's reading of one request, from bytes to bytes."""

    # Of a request that names none, which would be 0.9: its answers have no status, so garbage could not be told of it.
    default_request_version = "HTTP/1.0"

    def __init__(self, request: bytes, application: WSGIApplication) -> None:
        # Without the base class's constructor, which reads from a socket and writes to it.
        self._request = request
        self._application = application
        self._answer = io.BytesIO()
        self.rfile, self.wfile = io.BytesIO(request), self._answer

    def answer(self) -> bytes:
        """Return the answer; nothing if the request line is empty."""
        self.raw_requestline = self.rfile.readline()
        if not is_whole(self._request):
            self.command = self.requestline = self.request_version = ""
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self.parse_request():
            self._serve()
        return self._answer.getvalue()

    def _serve(self) -> None:
        if self.command not in _METHODS:
            self.send_response(HTTPStatus.METHOD_NOT_ALLOWED)
            self.send_header("Allow", ", ".join(_METHODS))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        try:
            url = urlsplit(self.path)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST, "Bad address")
            return
        if url.path not in _PATHS:
            self.send_error(HTTPStatus.NOT_FOUND)
        elif not self._is_acceptable():
            self.send_error(HTTPStatus.BAD_REQUEST, "Bad version in Accept")
        else:
            self._scrape(url.path, url.query)

    def _is_acceptable(self) -> bool:
        """Tell whether the Accept header can be read: prometheus_client fails on a version that is no number."""
        try:
            choose_encoder(self._header("Accept"))
        except (TypeError, ValueError):
            return False
        return True

    def _scrape(self, path: str, query: str) -> None:
        content = io.BytesIO()
        environ = {
            "REQUEST_METHOD": "GET",  # all that the application knows; of its answer, HEAD gets the head
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": self.request_version,
            "SERVER_NAME": "slabd",
            "SERVER_PORT": "0",
            **{f"HTTP_{name.upper().replace('-', '_')}": self._header(name) for name in self.headers},
        }
        _Application(io.BytesIO(), content, io.StringIO(), environ).run(self._application)
        head, blank, _ = content.getvalue().partition(b"\r\n\r\n")
        self.wfile.write(head + blank if self.command == "HEAD" else content.getvalue())

    def _header(self, name: str) -> str:
        """Return a header's value on one line: a version in Accept comes back in the answer's Content-Type."""
        return " ".join(", ".join(self.headers.get_all(name, ())).split())

    def version_string(self) -> str:
        """Return what the answer says of its server."""
        return _SOFTWARE

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing: strangers may send what they like."""


class _Application(SimpleHandler):
    """A run of the WSGI application whose failure is the caller's business, and not a traceback on standard error."""

    server_software = _SOFTWARE
    os_environ = {}  # noqa: RUF012 - the base class's way to say what else is in the environment: nothing

    def handle_error(self) -> None:
        """Raise what was raised."""
        raise  # noqa: PLE0704 - called where an exception is handled


# -- who is answered


class _Stage(enum.IntEnum):
    """How far a connection has come; the lower, the less is lost when it is closed for another's sake."""

    ANSWERED = 0
    ASKING = 1
    ANSWERING = 2


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    stage: _Stage = _Stage.ASKING


class MetricsServer:
    """Answers Prometheus. Belongs to the event loop it is made on, and is used there alone."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int, limits: Limits = LIMITS) -> None:
        """Listen on `host:port`; port 0 takes a free one.

        Raises:
            OSError: it cannot.
        """
        self._application: WSGIApplication = make_wsgi_app(registry)
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._connections: dict[asyncio.Task[None], _Connection] = {}  # in the order of their arrival
        self._starved = self._failing = False
        # One: rendering takes the interpreter lock, so that two would only delay the event loop twice as often.
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        listener = _listen(host, port)
        self.address: Final = str(TcpAddress(*listener.getsockname()[:2]))
        self._listener: socket.socket | None = listener
        self._resume_accepting()

    async def close(self) -> None:
        """Stop listening and hang up, also on who is being answered; return when nothing renders any more."""
        if self._listener is not None:
            self._pause_accepting()
            self._listener.close()
            self._listener = None
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        # In a thread: a rendering under way may be waiting for its snapshot, which is taken on this loop.
        await asyncio.to_thread(self._renderer.shutdown, cancel_futures=True)

    # -- admitting

    def _accept(self) -> None:
        """Admit one client, and no second before the loop has been round: a request that is here already is read."""
        if self._listener is None:
            return
        if len(self._connections) >= self._limits.connections:
            self._pause_accepting()  # whoever leaves, or has its answer, resumes it
            self._make_room()
            return
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError as error:
            self._starve(error)
            return
        self._starved = False
        accepted.setblocking(False)
        connection = _Connection(accepted)
        task = self._loop.create_task(self._converse(connection))
        self._connections[task] = connection
        # Not in the coroutine, which does not even begin if it is cancelled at once.
        task.add_done_callback(self._ended)

    def _make_room(self) -> None:
        if any(task.cancelling() for task in self._connections):
            return  # somebody is leaving already
        idle = [task for task, each in self._connections.items() if each.stage is not _Stage.ANSWERING]
        if idle:
            min(idle, key=lambda task: self._connections[task].stage).cancel()  # of equals, the oldest

    def _starve(self, error: OSError) -> None:
        """Let newcomers wait in the kernel's queue, instead of spinning on it: there is no descriptor for them."""
        if not self._starved:
            log.error("cannot accept scrapes for a moment: %s", error)
        self._starved = True
        self._pause_accepting()
        self._loop.call_later(_ACCEPT_PAUSE_SECONDS, self._resume_accepting)

    def _pause_accepting(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)

    def _resume_accepting(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._accept)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connections.pop(task).socket.close()
        self._resume_accepting()

    # -- conversing

    async def _converse(self, connection: _Connection) -> None:
        with contextlib.suppress(OSError):  # the client is late (a TimeoutError), or gone
            async with asyncio.timeout(self._limits.request_seconds):
                request = await self._read(connection.socket)
            if request is None:
                return
            connection.stage = _Stage.ANSWERING
            answer = await self._render(request)
            async with asyncio.timeout(self._limits.answer_seconds):
                await self._loop.sock_sendall(connection.socket, answer)
            connection.stage = _Stage.ANSWERED
            self._resume_accepting()  # there is room for who waits
            async with asyncio.timeout(self._limits.linger_seconds):
                await self._linger(connection.socket)

    async def _read(self, client: socket.socket) -> bytes | None:
        """Return a request, or more bytes than a request may have; None when the client has hung up."""
        data = bytearray()
        most = self._limits.request_bytes + 1
        while len(data) < most:
            # The end may have begun in the pieces before. Looking from the start again would let a client that sends
            # single bytes have the square of their number looked at.
            start = max(0, len(data) - len(b"\n\r"))
            piece = await self._loop.sock_recv(client, most - len(data))
            if not piece:
                return None
            data += piece
            if is_whole(data, start):
                break
        return bytes(data)

    async def _render(self, request: bytes) -> bytes:
        try:
            answer = await self._loop.run_in_executor(self._renderer, _respond_tidily, request, self._application)
        except Exception:
            # A defect of a collector, or a snapshot that the loop did not take in time: no stranger can bring it about.
            if not self._failing:
                log.exception("a scrape failed; further ones are not mentioned until one succeeds")
            self._failing = True
            return _FAILED
        self._failing = False
        return answer

    async def _linger(self, client: socket.socket) -> None:
        """Let the client hang up first: closed with bytes unread, a connection is reset, and the answer may be lost."""
        client.shutdown(socket.SHUT_WR)
        while await self._loop.sock_recv(client, _GULP_BYTES):  # noqa: ASYNC110 - the sleep waits for nothing
            await asyncio.sleep(0)  # sock_recv need not suspend, and there is no end to what a client may send


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the first address that `host` stands for."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
