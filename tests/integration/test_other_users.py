"""Other users: what a daemon that lets them in keeps from them, by each of its sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemons import DaemonProcess
from tests.fixtures.strangers import NOBODY, as_nobody

import slabd

if TYPE_CHECKING:
    from collections.abc import Iterator

OPEN = ("--socket-mode", "0666", "--read-only-uids", str(NOBODY))


@pytest.fixture
def shared() -> Iterator[DaemonProcess]:
    """A daemon whose clients' sockets anybody may connect to, with a reader by policy; afterwards its books balance."""
    with DaemonProcess(*OPEN, "--remote", "off") as daemon:
        yield daemon
        daemon.check()


def test_whom_the_policy_does_not_name_is_not_admitted() -> None:
    """Even where it can reach the socket."""
    with DaemonProcess("--socket-mode", "0666", "--remote", "off") as daemon:
        outcomes = as_nobody(daemon, ("attach", "read-write"), ("attach", "read-only"))
        assert all(each.startswith(f"AccessDenied: heap default does not admit uid {NOBODY}") for each in outcomes)
        assert not daemon.sessions()


def test_a_reader_reads_and_no_more(shared: DaemonProcess) -> None:
    """It attaches for reading and reads what was shared. It cannot write, make its mapping writable, or lease.

    Its session is told from one over gRPC alone, so that `remote` is off does not concern it.
    """
    with slabd.connect(shared.address) as owner, owner.lease(64) as lease:
        lease.view[:5] = b"hello"
        handle = str(lease.share(opens=2))
        read_write, *others = as_nobody(
            shared,
            ("attach", "read-write"),
            ("attach", "read-only"),
            ("read", handle),
            ("write", handle),
            ("make_writable",),
            ("lease",),
        )
        assert bytes(lease.view[:5]) == b"hello"
    assert read_write.startswith(f"AccessDenied: heap default admits uid {NOBODY}")
    assert "for reading only" in read_write
    assert others[:3] == ["ok: read-only", "ok: hello", "TypeError: cannot modify read-only memory"]
    assert others[3].startswith("PermissionError: ")
    assert others[4].startswith("ReadOnly: ")


def test_there_is_no_way_round_over_grpc_alone(shared: DaemonProcess) -> None:
    """No session without attaching, no AdminService, and no connection to admin.sock; the books may be read."""
    outcomes = as_nobody(
        shared,
        ("open_session", "slabd.sock"),
        ("drain", "slabd.sock"),
        ("drain", "admin.sock"),
        ("open_session", "admin.sock"),
        ("stats", "slabd.sock"),
    )
    assert outcomes[0].startswith("PERMISSION_DENIED: heap default does not admit sessions over gRPC alone")
    assert outcomes[1].startswith("PERMISSION_DENIED: AdminService is not answered here: use admin.sock")
    assert [each.partition(":")[0] for each in outcomes[2:4]] == ["UNAVAILABLE"] * 2
    assert all("Permission denied" in each for each in outcomes[2:4])
    assert outcomes[4] == f"ok: {16 << 20}"
    assert (shared.sessions(), shared.used, shared.status().draining) == ([], 0, False)


def test_what_remote_allows_is_allowed() -> None:
    """Whoever says read-write lets everybody lease who may connect."""
    with DaemonProcess(*OPEN, "--remote", "read-write") as daemon:
        assert as_nobody(daemon, ("open_session", "slabd.sock")) == ["ok: leased"]


def test_slabctl_for_others(shared: DaemonProcess) -> None:
    """A probe needs no right to operate anything; an operator's command says which right is missing."""
    health, status = as_nobody(shared, ("slabctl", "health"), ("slabctl", "status"))
    assert health == "ok: 0"
    assert status.startswith("ok: 4 /admin.sock: permission denied; be the daemon's own user or root, or have its ")


def test_operators_may_be_others_than_clients() -> None:
    """Who may reach admin.sock and not slabd.sock operates the daemon, health included."""
    with DaemonProcess("--admin-socket-mode", "0666") as daemon:
        health, status, attach, drain = as_nobody(
            daemon, ("slabctl", "health"), ("slabctl", "status"), ("attach", "read-only"), ("drain", "admin.sock")
        )
        assert (health, status) == ("ok: 0", "ok: 0")
        assert attach.startswith("AccessDenied: this user may not connect")
        assert drain == "ok: draining"
