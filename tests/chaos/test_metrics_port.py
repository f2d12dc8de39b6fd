"""Strangers on the metrics port: the worst they can do is to keep each other out."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fixtures.daemons import PATIENCE_SECONDS, DaemonProcess, eventually

import slabd

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS_MAX = 8


def metrics_address(daemon: DaemonProcess) -> tuple[str, int]:
    """Return where the daemon answers Prometheus."""
    host, _, port = daemon.status().metrics_address.rpartition(":")
    return host, int(port)


def scrape(address: tuple[str, int]) -> bool:
    """Tell whether a scrape succeeds.

    One may fail: while the crowd reconnects, a client that is not given the processor between connecting and asking is
    pushed out like any other.
    """
    try:
        with urllib.request.urlopen("http://{}:{}/metrics".format(*address), timeout=PATIENCE_SECONDS) as answer:
            return b"slabd_heap_size_bytes" in answer.read()
    except OSError:
        return False


class SlowCrowd:
    """Clients that send a byte of a request now and then; those that are hung up on come back."""

    def __init__(self, address: tuple[str, int], number: int) -> None:
        self._address = address
        self._clients = [socket.create_connection(address) for _ in range(number)]
        self._enough = threading.Event()
        self.returned = 0
        self._thread = threading.Thread(target=self._drip)
        self._thread.start()

    def _drip(self) -> None:
        while not self._enough.wait(0.05):
            for index, client in enumerate(self._clients):
                try:
                    client.send(b"G")
                except OSError:
                    client.close()
                    # A daemon that is gone is the test's business, not this thread's.
                    with contextlib.suppress(OSError):
                        self._clients[index] = socket.create_connection(self._address)
                        self.returned += 1

    def close(self) -> None:
        """Go away."""
        self._enough.set()
        self._thread.join()
        for client in self._clients:
            client.close()


@contextlib.contextmanager
def crowd(address: tuple[str, int], idle: int, slow: int) -> Iterator[SlowCrowd]:
    """Connect so many clients that say nothing, and so many that say little."""
    with contextlib.ExitStack() as stack:
        for _ in range(idle):
            stack.enter_context(socket.create_connection(address))
        slow_ones = SlowCrowd(address, slow)
        stack.callback(slow_ones.close)
        yield slow_ones


def taken(daemon: DaemonProcess) -> tuple[int, int]:
    """Return how many descriptors and how many threads the daemon has."""
    process = Path(f"/proc/{daemon.process.pid}")
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


def work(daemon: DaemonProcess) -> None:
    """Attach, lease and release, and ask something over gRPC."""
    with slabd.connect(daemon.address) as pool:
        pool.lease(64).release()
    assert daemon.used == 0


def test_a_crowd_on_the_metrics_port(daemon: DaemonProcess) -> None:
    """Idle and slow connections cost a fixed number of descriptors and no thread; scrapes and clients go on."""
    address = metrics_address(daemon)
    # Whatever is made once, when first needed, is made before counting.
    assert scrape(address)
    work(daemon)
    eventually(lambda: not daemon.sessions())
    descriptors, threads = taken(daemon)
    most = [0, 0]
    with crowd(address, idle=300, slow=30) as slow:
        for _ in range(10):
            work(daemon)
            eventually(lambda: scrape(address), "a scrape")
            most = [max(pair) for pair in zip(most, taken(daemon), strict=True)]
        eventually(lambda: slow.returned > 100, "the crowd comes back")
        work(daemon)
        most = [max(pair) for pair in zip(most, taken(daemon), strict=True)]
    # A session that is still going, and its gRPC connection, have some too.
    assert most[0] <= descriptors + CONNECTIONS_MAX + 12
    assert most[1] <= threads + 8
    eventually(lambda: taken(daemon)[0] <= descriptors, "the descriptors are back")
    assert scrape(address)
    assert "Traceback" not in daemon.log_text


def test_readers_of_metrics_that_do_not_read(daemon: DaemonProcess) -> None:
    """Clients that ask and neither read nor hang up are pushed out when others come."""
    address = metrics_address(daemon)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(socket.create_connection(address))
            client.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert scrape(address)
        work(daemon)


def test_garbage_on_the_metrics_port(daemon: DaemonProcess) -> None:
    """What is no request is refused or hung up on, without a word in the log."""
    address = metrics_address(daemon)
    for garbage in (b"\x00" * 100_000, b"\n\n", b"\x16\x03\x01\n\n", b"GET " + b"/" * 100_000, b"GET / X\r\n\r\n"):
        with socket.create_connection(address, PATIENCE_SECONDS) as client, contextlib.suppress(ConnectionError):
            client.sendall(garbage)
            while client.recv(65536):
                pass
    assert scrape(address)
    assert " web: " not in daemon.log_text
    assert "Traceback" not in daemon.log_text
