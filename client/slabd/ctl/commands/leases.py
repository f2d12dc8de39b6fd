"""`slabctl leases`: who holds what, since when, from which line of code."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from slabd.ctl.command import Command, argument
from slabd.ctl.commands.sessions import session_id
from slabd.ctl.plain import enum_name, seconds
from slabd.ctl.table import Column, table
from slabd.ctl.units import human_age, human_bytes, human_count
from slabd_proto.v1.admin_pb2 import (
    BLOCK_STATE_QUARANTINED,
    BlockState,
    LeaseInfo,
    ListLeasesResponse,
)

if TYPE_CHECKING:
    from slabd.ctl.terminal import Style

_MAX_LIMIT = 2**32 - 1


def _owner(lease: LeaseInfo) -> str:
    if not lease.session_id:
        return "released"
    pid = f" pid {lease.pid}" if lease.pid else ""
    return f"{lease.session_id} {lease.session_name}{pid}"


def _readers(lease: LeaseInfo) -> str:
    parts = [", ".join(str(each) for each in lease.opened_by)] if lease.opened_by else []
    if lease.pending_opens:
        parts.append(f"{lease.pending_opens} to come")
    return " + ".join(parts) or "-"


def _paint_state(style: Style, lease: LeaseInfo, text: str) -> str:
    return style.warn(text) if lease.state == BLOCK_STATE_QUARANTINED else text


_LEASES: tuple[Column[LeaseInfo], ...] = (
    Column("BLOCK", lambda lease: f"{lease.block.ref.slot}.{lease.block.ref.generation}", right=True),
    Column("HEAP", lambda lease: lease.heap),
    Column("OFFSET", lambda lease: f"{lease.block.offset:#x}", right=True),
    Column("ASKED FOR", lambda lease: human_bytes(lease.block.requested_size), right=True),
    Column("SIZE", lambda lease: human_bytes(lease.block.size), right=True),
    Column("STATE", lambda lease: enum_name(BlockState.DESCRIPTOR, lease.state), paint=_paint_state),
    Column("OWNER", _owner),
    Column("OPENED BY", _readers),
    Column("AGE", lambda lease: human_age(seconds(lease.age)), right=True),
    Column("LABEL", lambda lease: lease.label or "-"),
    Column("CALL SITE", lambda lease: lease.call_site or "-"),
)


def _lease_lines(answer: ListLeasesResponse, _arguments: argparse.Namespace, style: Style) -> list[str]:
    if not answer.leases:
        return ["no leases"]
    lines = table(_LEASES, answer.leases, style)
    if answer.total > len(answer.leases):
        shown, total = human_count(len(answer.leases)), human_count(answer.total)
        lines += ["", f"the oldest {shown} of {total}; --limit {answer.total} shows all"]
    return lines


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= _MAX_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of leases: write 1 to {_MAX_LIMIT}")
    return int(text)


LEASES = Command(
    name="leases",
    summary="list granted blocks, the oldest first",
    description="List granted blocks, the oldest first: at most 1,000 unless --limit says otherwise.",
    answer=ListLeasesResponse,
    call=lambda connection, arguments: connection.leases(arguments.heap, arguments.session, arguments.limit),
    lines=_lease_lines,
    arguments=(
        argument("--heap", default="", metavar="NAME", help="only this heap's"),
        argument("--session", type=session_id, default=0, metavar="SESSION", help="only this session's"),
        argument("--limit", type=_limit, default=0, metavar="N", help="at most this many (default 1000)"),
    ),
)
