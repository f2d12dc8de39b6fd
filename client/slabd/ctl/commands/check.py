"""`slabctl check`: does everything the daemon believes about its memory hold?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slabd.ctl.command import Command
from slabd.ctl.exits import ExitCode
from slabd.ctl.terminal import printable
from slabd.ctl.units import plural
from slabd_proto.v1.admin_pb2 import CheckResponse

if TYPE_CHECKING:
    import argparse

    from slabd.ctl.terminal import Style


def _lines(answer: CheckResponse, _arguments: argparse.Namespace, style: Style) -> list[str]:
    looked = f"{plural(answer.blocks, 'block')} looked at"
    if answer.ok:
        return [f"{style.good('ok')}: every invariant holds, {looked}"]
    count = len(answer.problems)
    return [
        f"{style.bad('wrong')}: {plural(count, 'problem')}, {looked}",
        *(f"  {printable(each)}" for each in answer.problems),
    ]


def _verdict(answer: CheckResponse, _arguments: argparse.Namespace) -> ExitCode:
    return ExitCode.OK if answer.ok else ExitCode.WRONG


CHECK = Command(
    name="check",
    summary="check every structure of the daemon; exit code 1 when something is wrong",
    answer=CheckResponse,
    call=lambda connection, _: connection.check(),
    lines=_lines,
    verdict=_verdict,
)
