"""`slabctl drain`: stop taking new work, see the last block come back, or take work again."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from slabd.ctl.command import Command, argument
from slabd.ctl.exits import ExitCode
from slabd.ctl.units import human_age, parse_seconds, plural
from slabd_proto.v1.admin_pb2 import DrainResponse

if TYPE_CHECKING:
    from slabd.ctl.terminal import Style


def _lines(answer: DrainResponse, arguments: argparse.Namespace, style: Style) -> list[str]:
    if not answer.draining:
        return [f"{style.good('serving')}: the daemon takes new work"]
    held = f"{plural(answer.leases, 'lease')} held by {plural(answer.sessions, 'session')}"
    if not answer.leases:
        return [f"{style.good('drained')}: nothing is held any more, no new work is taken"]
    if arguments.timeout is None:
        return [f"{style.warn('draining')}: {held}; --timeout waits for them"]
    return [
        f"{style.bad('draining')}: still {held} after {human_age(arguments.timeout)}; `slabctl leases` says by whom"
    ]


def _verdict(answer: DrainResponse, arguments: argparse.Namespace) -> ExitCode:
    waited_in_vain = arguments.timeout is not None and answer.draining and answer.leases > 0
    return ExitCode.TIMED_OUT if waited_in_vain else ExitCode.OK


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


DRAIN = Command(
    name="drain",
    summary="stop taking new work, or take it again with --resume",
    description=(
        "Stop taking new work: what is held can still be used and released. With --timeout, wait for the last block; "
        "exit code 5 when some are still held then."
    ),
    answer=DrainResponse,
    call=lambda connection, arguments: connection.drain(arguments.timeout, resume=arguments.resume),
    lines=_lines,
    verdict=_verdict,
    exclusive=True,
    arguments=(
        argument("--timeout", type=_seconds, metavar="TIME", help="wait so long for the last block: 30, 500ms, 2min"),
        argument("--resume", action="store_true", help="take new work again"),
    ),
)
