"""The web server for Prometheus: what it answers, whom it hangs up on, and that neither costs the others anything."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import gc
import gzip
import itertools
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

import pytest
from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from slabd_server.web import LIMITS, Limits, MetricsServer, is_whole, respond

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from prometheus_client.core import Metric

PATIENCE_SECONDS: Final = 60.0
# For tests in which nothing may be closed for being late: longer than any of them waits.
PATIENT: Final = Limits(request_seconds=600, answer_seconds=600)
SCRAPE: Final = b"GET /metrics HTTP/1.1\r\nHost: slabd\r\n\r\n"


class Large(Collector):
    """Metrics of some twenty megabytes, more than sockets buffer."""

    def __init__(self) -> None:
        self.text = "x" * (20 << 20)

    def collect(self) -> Iterator[Metric]:
        """Yield one metric with a long help text."""
        yield GaugeMetricFamily("large", self.text, 1)


class Held(Collector):
    """Metrics that are not there until `go` is set; `begun` tells that somebody waits for them."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not wait."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Wait, and yield one metric."""
        self.begun.set()
        assert self.go.wait(PATIENCE_SECONDS)
        yield GaugeMetricFamily("held", "Held back.", 1)


class Broken(Collector):
    """Metrics that cannot be had."""

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not fail."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Raise."""
        raise RuntimeError("no books")


class Seen(Collector):
    """Sees whether garbage is collected while it is asked."""

    def __init__(self) -> None:
        self.collecting: list[bool] = []

    def describe(self) -> list[Metric]:
        """Return nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Look, and yield one metric."""
        self.collecting.append(gc.isenabled())
        yield GaugeMetricFamily("seen", "Seen.", 1)


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry with one metric."""
    made = CollectorRegistry()
    Gauge("answer", "What there is to say.", registry=made).set(42)
    return made


@contextlib.asynccontextmanager
async def serving(
    registry: CollectorRegistry, host: str = "127.0.0.1", limits: Limits = LIMITS
) -> AsyncIterator[MetricsServer]:
    """Serve on a free port."""
    server = MetricsServer(registry, host, 0, limits)
    try:
        yield server
    finally:
        await server.close()


def connect(server: MetricsServer, receive_buffer: int | None = None) -> socket.socket:
    """Connect and say nothing yet. The kernel does it alone, so this waits for nobody."""
    host, _, port = server.address.rpartition(":")
    client = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET)
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        client.connect((host.strip("[]"), int(port)))
    except OSError:
        client.close()
        raise
    client.setblocking(False)
    return client


async def heard(client: socket.socket) -> bytes:
    """Return everything the server says until it hangs up, and hang up too."""
    loop, data = asyncio.get_running_loop(), b""
    with client, contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while piece := await loop.sock_recv(client, 1 << 20):
                data += piece
    return data


async def ask(server: MetricsServer, request: bytes = SCRAPE) -> bytes:
    """Send a request on a connection of its own; return the answer."""
    client = connect(server)
    with contextlib.suppress(ConnectionError):  # hung up on before all was said
        await asyncio.get_running_loop().sock_sendall(client, request)
    return await heard(client)


def status(answer: bytes) -> int:
    """Return the number in an answer's first line."""
    version, number, *_ = answer.split(b" ", 2)
    assert version == b"HTTP/1.0"
    return int(number)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until `condition()` is true."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


# -- what is answered


@pytest.mark.parametrize("path", [b"/metrics", b"/", b"/metrics?debug=1", b"http://slabd:9464/metrics"])
async def test_metrics_are_served(registry: CollectorRegistry, path: bytes) -> None:
    """Both paths give the metrics, and say how long they are."""
    async with serving(registry) as server:
        head, _, body = (await ask(server, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
    assert status(head) == 200
    assert b"\nanswer 42.0\n" in body
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")


async def test_what_clients_can_choose(registry: CollectorRegistry) -> None:
    """OpenMetrics, gzip, and names of metrics."""
    accept = b"Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\nAccept-Encoding: gzip\r\n"
    Gauge("other", "Something else.", registry=registry)
    async with serving(registry) as server:
        answer = await ask(server, b"GET /metrics?name[]=other HTTP/1.1\r\n" + accept + b"\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip" in head
    assert b"Content-Type: application/openmetrics-text; version=1.0.0" in head
    parsed = text_string_to_metric_families(gzip.decompress(body).decode())  # type: ignore[no-untyped-call]
    assert [family.name for family in parsed] == ["other"]


async def test_head_has_no_body(registry: CollectorRegistry) -> None:
    """HEAD tells what GET would, and how long it would be."""
    async with serving(registry) as server:
        whole = await ask(server)
        head = await ask(server, SCRAPE.replace(b"GET", b"HEAD"))
    assert head.endswith(b"\r\n\r\n")

    def facts(answer: bytes) -> set[bytes]:
        return {line for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n") if not line.startswith(b"Date:")}

    assert facts(head) == facts(whole)


BAD_REQUESTS: Final = {
    b"GET /nothing HTTP/1.1\r\n\r\n": 404,
    b"GET /metrics/ HTTP/1.1\r\n\r\n": 404,
    b"GET http://[/metrics HTTP/1.1\r\n\r\n": 400,
    b"POST /metrics HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000): 405,
    b"OPTIONS / HTTP/1.1\r\n\r\n": 405,
    b"BREW /pot HTCPCP/1.0\r\n\r\n": 400,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": 505,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n": 400,  # much like the beginning of TLS
    b"GET / HTTP/1.1\r\nAccept: text/plain;version=new\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n": 431,
    b"GET / HTTP/1.1\r\nA: " + b"b" * 1_000_000 + b"\r\n\r\n": 431,
    b"GET /" + b"x" * 1_000_000: 431,
    bytes(1_000_000): 431,
}


@pytest.mark.parametrize(("request_bytes", "expected"), BAD_REQUESTS.items(), ids=range(len(BAD_REQUESTS)))
async def test_bad_requests(
    registry: CollectorRegistry,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    request_bytes: bytes,
    expected: int,
) -> None:
    """Each is told what is wrong with it, though it had more to say; nothing is logged, and the next is served."""
    async with serving(registry) as server:
        assert status(await ask(server, request_bytes)) == expected
        assert status(await ask(server)) == 200
    assert (caplog.records, capfd.readouterr().err) == ([], "")


def test_a_request_line_is_needed(registry: CollectorRegistry) -> None:
    """An empty line in its place is answered with nothing."""
    assert respond(b"\r\n\r\n", make_wsgi_app(registry)) == b""


def test_no_header_gets_into_the_answer(registry: CollectorRegistry) -> None:
    """The version asked for comes back in Content-Type, but on one line, however it was folded."""
    accept = b"application/openmetrics-text;version=2.x\r\n Injected: yes"
    answer = respond(b"GET / HTTP/1.1\r\nAccept: " + accept + b"\r\n\r\n", make_wsgi_app(registry))
    assert not [line for line in answer.splitlines() if line.strip().startswith(b"Injected")]


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"])
def test_where_a_request_ends(end: bytes) -> None:
    """It ends with an empty line, in whatever pieces that comes."""
    request = b"GET / HTTP/1.1\r\nA: b" + end
    assert is_whole(request)
    assert not is_whole(request[:-1])
    for cut in range(len(request)):
        assert is_whole(request, max(0, cut - 2))


async def test_a_failing_collector_is_mentioned_once(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails is our defect: status 500, and a traceback in the log, but not one for each scrape."""
    broken = Broken()
    registry.register(broken)
    async with serving(registry) as server:
        assert [status(await ask(server)) for _ in range(3)] == [500, 500, 500]
        assert [record.exc_info is not None for record in caplog.records] == [True]
        registry.unregister(broken)
        assert status(await ask(server)) == 200
        registry.register(broken)
        assert status(await ask(server)) == 500
    assert len(caplog.records) == 2


async def test_a_scrape_sets_off_no_garbage_collection(registry: CollectorRegistry) -> None:
    """Meanwhile there is none, afterwards there is again, even when it failed."""
    seen = Seen()
    registry.register(seen)
    async with serving(registry) as server:
        assert status(await ask(server)) == 200
        registry.register(Broken())
        assert status(await ask(server)) == 500
    assert seen.collecting == [False, False]
    assert gc.isenabled()


# -- who is answered


async def test_an_idle_crowd_is_pushed_out(registry: CollectorRegistry) -> None:
    """No more than the limit are connected at once; the newest stay, and a scrape goes through."""
    async with serving(registry, limits=dataclasses.replace(PATIENT, connections=4)) as server:
        crowd = [connect(server) for _ in range(50)]
        assert status(await ask(server)) == 200
        # The scrape took the place of one more.
        assert [await heard(client) for client in crowd[:47]] == [b""] * 47
        await eventually(lambda: len(server._connections) == 3)
        for client in crowd[47:]:
            await asyncio.get_running_loop().sock_sendall(client, SCRAPE)
            assert status(await heard(client)) == 200


async def test_who_is_being_answered_is_not_pushed_out(registry: CollectorRegistry) -> None:
    """When everybody waits for an answer, newcomers wait for a place, and get it."""
    held = Held()
    registry.register(held)
    async with serving(registry, limits=dataclasses.replace(PATIENT, connections=3)) as server:
        first = [asyncio.create_task(ask(server)) for _ in range(3)]
        await eventually(lambda: [each.stage.name for each in server._connections.values()] == ["ANSWERING"] * 3)
        later = [asyncio.create_task(ask(server)) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert len(server._connections) == 3
        held.go.set()
        assert [status(answer) for answer in await asyncio.gather(*first, *later)] == [200] * 8


async def test_who_has_an_answer_is_pushed_out_first(registry: CollectorRegistry) -> None:
    """A client that does not hang up after its answer makes room before one that has yet to ask."""
    limits = dataclasses.replace(PATIENT, connections=2, linger_seconds=600)
    async with serving(registry, limits=limits) as server:
        asking, answered = connect(server), connect(server)
        await asyncio.get_running_loop().sock_sendall(answered, SCRAPE)
        await eventually(lambda: [each.stage.name for each in server._connections.values()] == ["ASKING", "ANSWERED"])
        assert status(await ask(server)) == 200
        await asyncio.get_running_loop().sock_sendall(asking, SCRAPE)
        assert status(await heard(asking)) == 200
        assert status(await heard(answered)) == 200


async def test_newcomers_do_not_wait_for_who_has_an_answer(registry: CollectorRegistry) -> None:
    """One that had to wait gets the place of a client with an answer, though that one stays."""
    held = Held()
    registry.register(held)
    limits = dataclasses.replace(PATIENT, connections=1, linger_seconds=600)
    async with serving(registry, limits=limits) as server:
        client = connect(server)
        await asyncio.get_running_loop().sock_sendall(client, SCRAPE)
        await eventually(held.begun.is_set)
        later = asyncio.create_task(ask(server))
        await asyncio.sleep(0.05)  # it has been turned away by now, or else this test tests less
        held.go.set()
        assert [status(await later), status(await heard(client))] == [200, 200]


@pytest.mark.parametrize("beginning", [b"", b"GET /met", SCRAPE[:-2]])
async def test_half_requests_are_given_up(registry: CollectorRegistry, beginning: bytes) -> None:
    """Who does not say the rest is hung up on without a word."""
    async with serving(registry, limits=Limits(request_seconds=0.05)) as server:
        assert await ask(server, beginning) == b""
        await eventually(lambda: not server._connections)


async def drip(client: socket.socket) -> None:
    """Send a byte every now and then, for ever."""
    while True:
        await asyncio.get_running_loop().sock_sendall(client, b"x")
        await asyncio.sleep(0.01)


async def test_a_drop_now_and_then_holds_nothing(registry: CollectorRegistry) -> None:
    """The time is for the whole request: byte after byte does not extend it."""
    async with serving(registry, limits=Limits(request_seconds=0.2)) as server:
        with connect(server) as client, pytest.raises(ConnectionError):
            await asyncio.wait_for(drip(client), PATIENCE_SECONDS)
        await eventually(lambda: not server._connections)


async def test_a_request_in_pieces(registry: CollectorRegistry) -> None:
    """One that comes byte by byte is answered all the same."""
    async with serving(registry, limits=PATIENT) as server:
        client = connect(server)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in SCRAPE:
            await asyncio.get_running_loop().sock_sendall(client, bytes([byte]))
            await asyncio.sleep(0)
        assert status(await heard(client)) == 200


async def test_an_answer_that_nobody_reads(registry: CollectorRegistry) -> None:
    """Its connection is closed after a while, and the answer ends before its length."""
    registry.register(Large())
    async with serving(registry, limits=Limits(connections=1, answer_seconds=0.2)) as server:
        client = connect(server, receive_buffer=4096)
        await asyncio.get_running_loop().sock_sendall(client, SCRAPE)
        await eventually(lambda: server._connections)
        await eventually(lambda: not server._connections)
        assert len(await heard(client)) < 20 << 20


async def test_an_answer_longer_than_buffers(registry: CollectorRegistry) -> None:
    """A reader that does read gets all of it."""
    large = Large()
    registry.register(large)
    async with serving(registry, limits=PATIENT) as server:
        assert large.text.encode() in await ask(server)


async def test_hanging_up_in_the_middle(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """Clients that are gone before or while they are answered leave nothing behind."""
    registry.register(Large())
    async with serving(registry, limits=PATIENT) as server:
        for request in (b"", b"GET /", SCRAPE):
            with connect(server) as client:
                await asyncio.get_running_loop().sock_sendall(client, request)
        with connect(server, receive_buffer=4096) as client:
            await asyncio.get_running_loop().sock_sendall(client, SCRAPE)
            await asyncio.get_running_loop().sock_recv(client, 100)
        await eventually(lambda: not server._connections)
    assert caplog.records == []


async def test_out_of_descriptors(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While accept fails it is not tried again and again; it is mentioned once, and afterwards all is well."""
    failures: list[float] = []

    class Starved:
        """A listener for which there are no descriptors the first three times."""

        def __init__(self, listener: socket.socket) -> None:
            self.real = listener

        def accept(self) -> tuple[socket.socket, object]:
            """Fail, and later accept."""
            if len(failures) < 3:
                failures.append(time.monotonic())
                raise OSError(errno.EMFILE, "Too many open files")
            return self.real.accept()

        def fileno(self) -> int:
            """The real one's."""
            return self.real.fileno()

        def close(self) -> None:
            """Close the real one."""
            self.real.close()

    monkeypatch.setattr("slabd_server.web._ACCEPT_PAUSE_SECONDS", 0.05)
    async with serving(registry) as server:
        assert server._listener is not None
        monkeypatch.setattr(server, "_listener", Starved(server._listener))
        assert status(await ask(server)) == 200
    assert all(later - earlier >= 0.04 for earlier, later in itertools.pairwise(failures))
    assert ["Too many open files" in record.getMessage() for record in caplog.records] == [True]


# -- listening and closing


async def test_ipv6(registry: CollectorRegistry) -> None:
    """Its address is one that can be put into a URL."""
    try:
        server = MetricsServer(registry, "::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    assert server.address.startswith("[::1]:")
    assert status(await ask(server)) == 200
    await server.close()


async def test_a_name_is_an_address_too(registry: CollectorRegistry) -> None:
    """`localhost` is looked up; a port that is taken and a name that is nobody's are errors."""
    async with serving(registry, "localhost") as server:
        port = int(server.address.rpartition(":")[2])
        assert port > 0
        with pytest.raises(OSError, match="in use"):
            MetricsServer(registry, "localhost", port)
        with pytest.raises(OSError, match=r".+"):
            MetricsServer(registry, "name.invalid", 0)


async def test_closing_does_not_wait_for_clients(registry: CollectorRegistry) -> None:
    """Whoever idles, is in the middle of a request or of an answer is hung up on; then nobody listens any more."""
    registry.register(Large())
    server = MetricsServer(registry, "127.0.0.1", 0, dataclasses.replace(PATIENT, linger_seconds=600))
    clients = [connect(server, receive_buffer=4096) for _ in range(3)]
    for client, request in zip(clients, (b"", b"GET", SCRAPE), strict=True):
        await asyncio.get_running_loop().sock_sendall(client, request)
    await asyncio.get_running_loop().sock_recv(clients[2], 100)
    await asyncio.wait_for(server.close(), PATIENCE_SECONDS)  # which is less than any of the limits
    for client in clients:
        await heard(client)
    with pytest.raises(ConnectionRefusedError):
        connect(server)


async def test_closing_waits_for_the_thread(registry: CollectorRegistry) -> None:
    """A rendering under way comes to its end, while the loop goes on; those behind it are not begun."""
    held = Held()
    registry.register(held)
    server = MetricsServer(registry, "127.0.0.1", 0)
    scrapes = [asyncio.create_task(ask(server)) for _ in range(3)]
    await eventually(held.begun.is_set)
    await eventually(lambda: len(server._connections) == 3)
    closing = asyncio.create_task(server.close())
    await asyncio.gather(*scrapes)
    assert not closing.done()
    held.go.set()
    await closing
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("metrics")]
