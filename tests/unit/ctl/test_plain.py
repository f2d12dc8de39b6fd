"""Messages as JSON that scripts can rely on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1.health_pb2 import HealthCheckResponse

from slabd.ctl.commands import COMMANDS
from slabd.ctl.plain import descriptor_of, enum_name, schema, to_json, to_plain
from slabd_proto.v1 import admin_pb2, pool_pb2

if TYPE_CHECKING:
    from slabd.ctl.command import Command


def test_64_bit_numbers_stay_numbers() -> None:
    """Protobuf's own mapping makes strings of them."""
    plain = to_plain(pool_pb2.HeapStats(name="default", total_bytes=2**64 - 1))
    assert json.loads(to_json(plain))["total_bytes"] == 2**64 - 1


def test_every_field_is_present_under_its_own_name() -> None:
    """Zeros too, so that scripts need no defaults."""
    plain = to_plain(admin_pb2.CheckResponse())
    assert plain == {"ok": False, "problems": [], "blocks": 0}


def test_durations_are_seconds_and_absent_ones_null() -> None:
    """A session without a lease has no oldest one."""
    session = admin_pb2.SessionInfo(age=Duration(seconds=3, nanos=250_000_000))
    plain = to_plain(session)
    assert (plain["age"], plain["oldest_lease_age"], plain["uid"]) == (3.25, None, None)


def test_a_present_zero_is_not_null() -> None:
    """Root's uid is 0."""
    assert to_plain(admin_pb2.SessionInfo(uid=0))["uid"] == 0


def test_enums_are_their_names_without_the_prefix() -> None:
    """As buf's rules make them; an unknown one is its number."""
    assert to_plain(admin_pb2.SessionInfo(state=admin_pb2.SESSION_STATE_QUARANTINED))["state"] == "quarantined"
    assert to_plain(pool_pb2.Session(access=pool_pb2.ACCESS_MODE_READ_ONLY))["access"] == "read_only"
    assert enum_name(admin_pb2.BlockState.DESCRIPTOR, 99) == "99"
    assert to_plain(HealthCheckResponse(status=HealthCheckResponse.SERVING)) == {"status": "serving"}


def test_messages_nest_and_bytes_are_hex() -> None:
    """A secret is no text."""
    session = pool_pb2.Session(key=pool_pb2.SessionKey(id=1, secret=b"\x00\xff"))
    assert to_plain(session)["key"] == {"id": 1, "secret": "00ff"}
    assert to_plain(pool_pb2.Session())["key"] is None


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_schema_names_every_field(command: Command[Any]) -> None:
    """The schema in --help and the JSON come from the same descriptors."""
    answer = command.answer
    lines = [line.strip().split(":")[0] for line in schema(descriptor_of(answer))]
    assert set(to_plain(answer())) <= set(lines)


def test_the_schema_says_what_is_a_list_and_what_may_be_null() -> None:
    """In words."""
    lines = [line.strip() for line in schema(descriptor_of(admin_pb2.ListSessionsResponse))]
    assert "sessions: list of object" in lines
    assert "uid: number, or null" in lines
    assert "state: active | quarantined | ending" in lines
    assert "oldest_lease_age: seconds, or null" in lines
