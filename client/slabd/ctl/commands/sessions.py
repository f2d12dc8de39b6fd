"""`slabctl sessions` and `slabctl evict`: who is there, and how to end one by force."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from slabd.ctl.command import Command, argument
from slabd.ctl.plain import enum_name, seconds
from slabd.ctl.table import Column, table
from slabd.ctl.units import human_age, human_bytes, human_count
from slabd_proto.v1.admin_pb2 import (
    SESSION_STATE_QUARANTINED,
    EndSessionResponse,
    ListSessionsResponse,
    SessionInfo,
    SessionState,
)
from slabd_proto.v1.pool_pb2 import AccessMode

if TYPE_CHECKING:
    from slabd.ctl.terminal import Style


def _state(session: SessionInfo) -> str:
    return enum_name(SessionState.DESCRIPTOR, session.state)


def _paint_state(style: Style, session: SessionInfo, text: str) -> str:
    return style.warn(text) if session.state == SESSION_STATE_QUARANTINED else text


_SESSIONS: tuple[Column[SessionInfo], ...] = (
    Column("SESSION", lambda session: str(session.id), right=True),
    Column("NAME", lambda session: session.name or "-"),
    Column("PID", lambda session: str(session.pid) if session.pid else "-", right=True),
    Column("UID", lambda session: str(session.uid) if session.HasField("uid") else "-", right=True),
    Column("HEAP", lambda session: session.heap),
    Column("ACCESS", lambda session: enum_name(AccessMode.DESCRIPTOR, session.access).replace("_", "-")),
    Column("MAPPED", lambda session: "yes" if session.attached else "no"),
    Column("STATE", _state, paint=_paint_state),
    Column("USED", lambda session: human_bytes(session.used_bytes), right=True),
    Column("CACHED", lambda session: human_bytes(session.cached_bytes), right=True),
    Column("LEASES", lambda session: human_count(session.leases), right=True),
    Column("OPENS", lambda session: human_count(session.opens), right=True),
    Column("WAITERS", lambda session: human_count(session.waiters), right=True),
    Column(
        "OLDEST LEASE",
        lambda session: human_age(seconds(session.oldest_lease_age)) if session.HasField("oldest_lease_age") else "-",
        right=True,
    ),
    Column("AGE", lambda session: human_age(seconds(session.age)), right=True),
)


def _session_lines(answer: ListSessionsResponse, _arguments: argparse.Namespace, style: Style) -> list[str]:
    return table(_SESSIONS, answer.sessions, style) if answer.sessions else ["no sessions"]


SESSIONS = Command(
    name="sessions",
    summary="list sessions, the one that holds most first",
    answer=ListSessionsResponse,
    call=lambda connection, arguments: connection.sessions(arguments.heap),
    lines=_session_lines,
    arguments=(argument("--heap", default="", metavar="NAME", help="only this heap's"),),
)


def session_id(text: str) -> int:
    """Read a session's number.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is no session number: `slabctl sessions` lists them")
    return int(text)


def _evict_lines(answer: EndSessionResponse, arguments: argparse.Namespace, style: Style) -> list[str]:
    if not answer.quarantined_bytes:
        return [f"session {arguments.session} has ended; {human_bytes(answer.reclaimed_bytes)} are free again"]
    held = human_bytes(answer.quarantined_bytes)
    return [
        f"session {arguments.session} can do nothing any more",
        style.warn(f"{held} stay in quarantine until its process has exited or closed its pool: it has them mapped"),
    ]


EVICT = Command(
    name="evict",
    summary="end a session by force",
    description=(
        "End a session by force. A process that lives and has the heap mapped could still write to its blocks, so they "
        "stay in quarantine until it has exited."
    ),
    answer=EndSessionResponse,
    call=lambda connection, arguments: connection.end_session(arguments.session),
    lines=_evict_lines,
    arguments=(argument("session", type=session_id, metavar="SESSION", help="its number, from `slabctl sessions`"),),
)
