"""From the command line to the exit code: parse, call, show; every failure becomes one line that says what to do."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from slabd.address import TcpAddress, resolve
from slabd.channels import Tls
from slabd.ctl.connection import Connection
from slabd.ctl.exits import ExitCode, complain
from slabd.ctl.failures import explain
from slabd.ctl.parser import build_parser
from slabd.ctl.plain import to_json
from slabd.ctl.terminal import style_for
from slabd.errors import InvalidArgument, SlabdError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from slabd.address import Address
    from slabd.ctl.command import Command


def main(argv: Sequence[str] | None = None) -> int:
    """Run slabctl and return its exit code.

    Raises:
        SystemExit: argparse has answered by itself: --help, --version, or a command line that makes no sense.
    """
    arguments = build_parser().parse_args(argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return complain("interrupted", ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader has seen enough (`slabctl leases | head`); the interpreter must not complain at its own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    return code


def _run(arguments: argparse.Namespace) -> ExitCode:
    try:
        if arguments.spec is None:
            code: ExitCode = arguments.run(arguments)
            return code
        return _ask(arguments.spec, arguments)
    except SlabdError as error:
        message, code = explain(error)
        return complain(message, code)


def _ask(command: Command[Any], arguments: argparse.Namespace) -> ExitCode:
    address = resolve(arguments.address)
    with Connection(address, _tls(arguments, address)) as connection:
        answer = command.call(connection, arguments)
    if arguments.output == "json":
        print(to_json(command.plain(answer)))
    else:
        print("\n".join(command.lines(answer, arguments, style_for(sys.stdout, os.environ))))
    return command.verdict(answer, arguments)


def _tls(arguments: argparse.Namespace, address: Address) -> Tls | None:
    if not (arguments.tls_ca or arguments.tls_cert or arguments.tls_key):
        return None
    if not isinstance(address, TcpAddress):
        raise InvalidArgument(f"--tls-ca, --tls-cert and --tls-key are for host:port, and {address} is a directory")
    if bool(arguments.tls_cert) != bool(arguments.tls_key):
        raise InvalidArgument("--tls-cert and --tls-key go together: give both or neither")
    return Tls(ca=arguments.tls_ca, certificate=arguments.tls_cert, key=arguments.tls_key)


if __name__ == "__main__":
    sys.exit(main())
