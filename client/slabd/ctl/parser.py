"""slabctl's command line, as argparse sees it. Nothing here does I/O."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import TYPE_CHECKING

from slabd.ctl.bench import command as bench
from slabd.ctl.commands import COMMANDS
from slabd.ctl.demo import command as demo
from slabd.ctl.exits import exit_table

if TYPE_CHECKING:
    from collections.abc import Callable

_DESCRIPTION = "Look at a slabd daemon, and operate it."
_EPILOG = """\
JSON (-o json): the fields of the contract (proto/slabd/v1) under their own names, every field present; sizes in bytes
and times in seconds, as numbers; what is absent is null. `slabctl COMMAND --help` has the schema of each command.

environment:
  SLABD_ADDRESS  where the daemon is, when --address does not say
  NO_COLOR       no colours, also on a terminal
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the whole command line. What it parses has a `spec`, or `run` for what has no daemon to ask."""
    parser = _parser(prog="slabctl", description=_DESCRIPTION, epilog=f"{_EPILOG}\n{exit_table()}")
    parser.add_argument("--version", action="version", version=f"slabctl {version('slabd')}")
    _add_common(parser, top=True)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        child = _child(commands.add_parser, command.name, command.summary, command.description)
        _add_common(child, top=False)
        command.add_to(child)
        child.set_defaults(spec=command)
    for own in (demo, bench):
        child = _child(commands.add_parser, own.NAME, own.SUMMARY, own.DESCRIPTION)
        _add_output(child, top=False)
        own.add_arguments(child)
        child.set_defaults(spec=None, run=own.run)
    return parser


def _parser(**options: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,  # type: ignore[arg-type]  # argparse's options differ in type
    )


def _child(
    add: Callable[..., argparse.ArgumentParser], name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    text = description or f"{summary[0].upper()}{summary[1:]}."
    return add(
        name,
        help=summary,
        description=text,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_common(parser: argparse.ArgumentParser, *, top: bool) -> None:
    """Add what may stand before the command and after it: the one after it wins."""
    _add_output(parser, top=top)
    line = parser.add_argument_group("the daemon")
    line.add_argument(
        "--address",
        metavar="ADDR",
        default=_default(None, top=top),
        help="the daemon's runtime directory, or host:port (default: $SLABD_ADDRESS, else the usual directory)",
    )
    for flag, what in (
        ("--tls-ca", "roots to trust"),
        ("--tls-cert", "this client's certificate"),
        ("--tls-key", "its key"),
    ):
        help_text = f"over TCP: a PEM file with {what}"
        line.add_argument(flag, metavar="FILE", default=_default(None, top=top), help=help_text)


def _add_output(parser: argparse.ArgumentParser, *, top: bool) -> None:
    parser.add_argument(
        "-o",
        "--output",
        choices=("table", "json"),
        default=_default("table", top=top),
        help="how to print the answer (default: table)",
    )


def _default(value: str | None, *, top: bool) -> str | None:
    # A subcommand's own default would overwrite what was given before the subcommand.
    return value if top else argparse.SUPPRESS
