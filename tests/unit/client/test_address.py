"""What users may write for an address, and what it means."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from slabd import InvalidAddress
from slabd.address import Address, LocalAddress, TcpAddress, parse, resolve

RUN = LocalAddress(PurePosixPath("/run/slabd"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/run/slabd", RUN),
        ("/run/slabd/", RUN),
        ("unix:/run/slabd", RUN),
        ("unix:///run/slabd", RUN),
        ("unix:/run/slabd/slabd.sock", RUN),
        ("unix:///run/slabd/admin.sock", RUN),
        ("/run/slabd/attach.sock", RUN),
        ("/run/slabd/other.sock", LocalAddress(PurePosixPath("/run/slabd/other.sock"))),
        ("tcp://example.org:7000", TcpAddress("example.org", 7000)),
        ("127.0.0.1:7000", TcpAddress("127.0.0.1", 7000)),
        ("[::1]:7000", TcpAddress("[::1]", 7000)),
        ("relative", LocalAddress(PurePosixPath(Path.cwd()) / "relative")),
        ("./host:7000", LocalAddress(PurePosixPath(Path.cwd()) / "host:7000")),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    """A path is a runtime directory, or a socket in one; host:port is TCP."""
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "unix:", "tcp://host", "tcp://host:0", "host:70000", "http://host:80", "/" + "x" * 200]
)
def test_what_is_no_address(text: str) -> None:
    """Each is a clear error, before anything is connected."""
    with pytest.raises(InvalidAddress):
        parse(text)


def test_where_to_look_when_nothing_is_said() -> None:
    """The variable first, then the runtime directory of slabd_proto.runtime; an empty variable is none."""
    assert resolve(None, {"SLABD_ADDRESS": "tcp://h:1", "SLABD_RUNTIME_DIR": "/a"}) == TcpAddress("h", 1)
    assert resolve(None, {"SLABD_ADDRESS": "", "SLABD_RUNTIME_DIR": "/a"}) == LocalAddress(PurePosixPath("/a"))
    assert resolve(Path("/b"), {"SLABD_ADDRESS": "tcp://h:1"}) == LocalAddress(PurePosixPath("/b"))


@pytest.mark.parametrize("value", [3, b"\0", object()])
def test_an_address_of_another_type(value: object) -> None:
    """No TypeError from deep inside."""
    with pytest.raises((InvalidAddress, ValueError)):
        resolve(value)  # type: ignore[arg-type]


def test_a_target_survives_blanks_and_percent_signs() -> None:
    """GRPC reads it as a URI."""
    address = parse("/tmp/a b%20c")
    assert isinstance(address, LocalAddress)
    assert address.target == "unix:/tmp/a%20b%2520c/slabd.sock"
    assert address.target_of("admin.sock") == "unix:/tmp/a%20b%2520c/admin.sock"
