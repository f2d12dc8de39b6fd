"""What does not go together in a configuration, although each value alone is allowed.

Pure: settings in, problems out.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from slabd_proto.runtime import LONGEST_SOCKET, MAX_SOCKET_PATH_BYTES
from slabd_server.options.declare import Problem, Settings
from slabd_server.segments import HUGE_PAGE
from slabd_server.units import exact_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def contradictions(settings: Settings) -> Iterable[Problem]:
    """List what does not go together in the daemon's options."""
    yield from _tls_contradictions(settings)
    yield from _listen_contradictions(settings)
    directory = settings["runtime_dir"]
    longest = len(os.fsencode(directory.value / LONGEST_SOCKET))
    if longest > MAX_SOCKET_PATH_BYTES:
        yield Problem(
            directory.source,
            f"{str(directory.value)!r} is too long: the path of a socket in it has {longest} bytes, "
            f"the kernel takes {MAX_SOCKET_PATH_BYTES}",
        )


def _tls_contradictions(settings: Settings) -> Iterable[Problem]:
    cert, key, client_ca = settings["tls_cert"], settings["tls_key"], settings["tls_client_ca"]
    for one, other in ((cert, key), (key, cert), (client_ca, cert)):
        if one.value is not None and other.value is None:
            yield Problem(one.source, f"{one.words!r} needs {other.option.flag} too")
    if cert.value is not None and not settings["listen"].value:
        yield Problem(cert.source, f"{cert.words!r} has no effect without a TCP address: give --listen too")


def _listen_contradictions(settings: Settings) -> Iterable[Problem]:
    listen = settings["listen"]
    secure = settings["tls_cert"].value is not None or settings["allow_insecure_listen"].value
    for address in listen.value:
        if not address.is_loopback and not secure:
            yield Problem(
                listen.source,
                f"'{address}' would serve other machines without TLS: give --tls-cert and --tls-key, listen on "
                f"127.0.0.1, or say --allow-insecure-listen",
            )
    fixed = [address for address in listen.value if address.port]
    for address in sorted({address for address in fixed if fixed.count(address) > 1}):
        yield Problem(listen.source, f"'{address}' is given twice")
    if settings["metrics_listen"].value in fixed:
        yield Problem(listen.source, f"'{settings['metrics_listen'].value}' is the address of the metrics already")


def heap_contradictions(settings: Settings) -> Iterable[Problem]:
    """List what does not go together in a heap's options."""
    size = settings["size_bytes"]
    if settings["huge_pages"].value == "2MiB" and size.value % HUGE_PAGE:
        yield Problem(
            size.source, f"{size.words!r} is not a multiple of {exact_size(HUGE_PAGE)}, as huge_pages asks for"
        )
    give_back = settings["give_back_seconds"]
    if settings["huge_pages"].value == "2MiB" and give_back.value is not None:
        yield Problem(give_back.source, f"{give_back.words!r} does not go with 2MiB pages, which are reserved anyway")
    if settings["huge_pages"].value == "transparent" and give_back.value is not None:
        yield Problem(
            give_back.source,
            f"{give_back.words!r} does not go with transparent huge pages: what is given back returns in small ones",
        )


def remote_contradictions(settings: Settings, heaps: Mapping[str, Settings]) -> Iterable[Problem]:
    """List the heaps of which nobody has said what other users may do with them over gRPC alone.

    A socket for the owner only vouches for its callers, and so does a certificate. A socket that lets others in does
    not, nor does TCP, even on loopback: gRPC cannot ask who they are, so allow_uids and its like, which hold for the
    attach socket, do not hold for them.
    """
    mode, listen = settings["socket_mode"], settings["listen"]
    if mode.value & _OTHERS:
        door = mode
    elif listen.value and settings["tls_client_ca"].value is None:
        door = listen
    else:
        return
    for name, heap in heaps.items():
        remote = heap["remote"]
        if remote.is_default and remote.value != "off":
            yield Problem(
                door.source,
                f"{door.words!r} lets other users connect, and over gRPC alone nobody vouches for them: say what they "
                f"may do with heap {name}: remote = off (attached clients are not concerned), read-only or read-write",
            )
