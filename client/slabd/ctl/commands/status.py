"""`slabctl status` and `slabctl health`: is the daemon there, and how is it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc_health.v1.health_pb2 import HealthCheckResponse

from slabd.ctl.command import Command, argument
from slabd.ctl.commands.heaps import books_table
from slabd.ctl.exits import ExitCode
from slabd.ctl.plain import seconds
from slabd.ctl.table import facts
from slabd.ctl.terminal import printable
from slabd.ctl.units import human_age
from slabd_proto.v1.admin_pb2 import GetStatusResponse

if TYPE_CHECKING:
    import argparse

    from slabd.ctl.terminal import Style


def _status_lines(answer: GetStatusResponse, _arguments: argparse.Namespace, style: Style) -> list[str]:
    state = style.warn("draining: no new work is taken") if answer.draining else style.good("serving")
    pairs = [
        ("daemon", f"slabd {printable(answer.version)}, pid {answer.pid}"),
        ("state", f"{state}, up {human_age(seconds(answer.uptime))}"),
        ("runtime dir", printable(answer.runtime_dir)),
        *((f"grpc{'' if at == 0 else f' {at + 1}'}", printable(each)) for at, each in enumerate(answer.addresses)),
        ("metrics", printable(answer.metrics_address) or "off"),
    ]
    return [*facts(pairs, style), "", *books_table(answer.heaps, style)]


STATUS = Command(
    name="status",
    summary="describe the daemon and its heaps",
    answer=GetStatusResponse,
    call=lambda connection, _: connection.status(),
    lines=_status_lines,
)


def _health_lines(answer: HealthCheckResponse, arguments: argparse.Namespace, style: Style) -> list[str]:
    name = HealthCheckResponse.ServingStatus.Name(answer.status).lower().replace("_", " ")
    good = answer.status == HealthCheckResponse.SERVING
    subject = printable(arguments.service) or "slabd"
    return [f"{subject}: {style.good(name) if good else style.bad(name)}"]


def _health_verdict(answer: HealthCheckResponse, _arguments: argparse.Namespace) -> ExitCode:
    return ExitCode.OK if answer.status == HealthCheckResponse.SERVING else ExitCode.WRONG


HEALTH = Command(
    name="health",
    summary="ask gRPC health; exit code 0 only when the daemon serves (for probes)",
    answer=HealthCheckResponse,
    call=lambda connection, arguments: connection.health(arguments.service),
    lines=_health_lines,
    verdict=_health_verdict,
    arguments=(
        argument("--service", default="", metavar="NAME", help="a gRPC service, for example slabd.v1.PoolService"),
    ),
)
