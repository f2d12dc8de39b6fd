"""iceoryx2, if it is installed: a publisher's loan, given back or sent. All names carry the benchmark's own prefix.

Its settings are in its favour: one subscriber and few samples, so that the same memory comes round soon and is warm;
`payload()` gives its own `Slice`, because a memoryview of it (`as_memory_view()`) takes several times as long.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from slabd.ctl.bench.catalogue import CLIENT_BYTES
from slabd.ctl.bench.rounds import Work
from slabd.ctl.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd.ctl.bench.messages import Place

# What a publisher has at most: samples on loan, in the subscriber's buffer, borrowed by it, and one to spare.
_SAMPLES: Final = 4
_NAMED: Final = "/dev/shm"  # noqa: S108  # where the kernel has named shared memory


class NoRoom(Exception):
    """There is too little shared memory. iceoryx2 would find that out by SIGBUS."""


@contextmanager
def node_for(place: Place) -> Iterator[tuple[Any, Any]]:
    """Open a node in the benchmark's own directory, and yield the package and the node.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    package: Any = importlib.import_module("iceoryx2")
    package.set_log_level(package.LogLevel.Error)
    config = package.config.default()
    config.global_cfg.prefix = package.FileName.new(place.prefix)
    config.global_cfg.root_path = package.Path.new(place.scratch)
    builder = package.NodeBuilder.new().config(config)
    # Signals are the benchmark's business.
    builder = builder.signal_handling_mode(package.SignalHandlingMode.Disabled)
    yield package, builder.create(package.ServiceType.Ipc)


def service_for(package: Any, node: Any, name: str, in_flight: int = 1) -> Any:
    """Open a publish-subscribe service of bytes, for one subscriber."""
    builder = node.service_builder(package.ServiceName.new(name)).publish_subscribe(package.Slice[ctypes.c_uint8])
    builder = builder.max_subscribers(1).subscriber_max_buffer_size(in_flight)
    builder = builder.subscriber_max_borrowed_samples(1).history_size(0)
    return builder.enable_safe_overflow(False).open_or_create()


@contextmanager
def publisher_for(place: Place, size: int) -> Iterator[Any]:
    """Open a publisher of slices of `size` bytes, in a service of this process."""
    check_room(size * _SAMPLES)
    with node_for(place) as (package, node), ExitStack() as stack:
        service = service_for(package, node, f"bench {os.getpid()} {size}")
        publisher = service.publisher_builder().initial_max_slice_len(size).max_loaned_samples(1).create()
        stack.callback(publisher.delete)
        yield publisher


@contextmanager
def untouched(place: Place, size: int) -> Iterator[Work]:
    """Loan, look at the payload, drop."""
    with publisher_for(place, size) as publisher:

        def do() -> None:
            sample = publisher.loan_slice_uninit(size)
            sample.payload()
            sample.delete()

        yield Work(do)


def client(place: Place, _clients: int) -> Any:
    """Do the same as one of many clients."""
    return untouched(place, CLIENT_BYTES)


@contextmanager
def written(place: Place, size: int) -> Iterator[Work]:
    """Loan, fill with one copy, drop."""
    data = b"x" * size
    with publisher_for(place, size) as publisher:

        def do() -> None:
            sample = publisher.loan_slice_uninit(size)
            ctypes.memmove(sample.payload_ptr, data, size)
            sample.delete()

        yield Work(do)


def check_room(needed: int) -> None:
    """Refuse what would not fit.

    Raises:
        NoRoom: it does not.
    """
    system = os.statvfs(_NAMED)
    free = system.f_bavail * system.f_frsize
    if free < needed:
        raise NoRoom(f"{_NAMED} has {human_bytes(free)} left, and this takes up to {human_bytes(needed)}")
