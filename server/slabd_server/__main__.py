"""The `slabd` command: `slabd serve`, `slabd check-config`.

Reads the command line, shows errors as one line, and turns them into exit statuses (`errors.ExitCode`). Decides nothing
else: the daemon is `daemon`, the options are `config`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from slabd_server import __version__, logs
from slabd_server.config import add_arguments, load
from slabd_server.errors import ExitCode, StartError
from slabd_server.options.declare import ConfigError, Parser
from slabd_server.options.text import sample_toml, settings_json, settings_table
from slabd_server.options.tls import require_tls_files

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        given = vars(_parser().parse_args(argv))
        command = given.pop("command")
        return int(command(given))
    except ConfigError as error:
        return _complain(error, ExitCode.USAGE)
    except StartError as error:
        return _complain(error, ExitCode.NO_START)
    except KeyboardInterrupt:
        return _complain("interrupted", ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; nothing may be written any more, not even by the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:
        log.exception("internal error")
        return _complain(f"internal error, a defect of slabd: {type(error).__name__}: {error}", ExitCode.INTERNAL)


def _serve(given: dict[str, Any]) -> int:
    loaded = load(given, os.environ)
    require_tls_files(loaded)
    logs.configure(loaded.config.log_level, loaded.config.log_format)
    # Only now: gRPC takes a third of a second to import, and reads the environment while it does.
    import uvloop  # noqa: PLC0415

    from slabd_server import daemon  # noqa: PLC0415

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(daemon.run(loaded.config, lambda: load(given, os.environ).config))


def _check_config(given: dict[str, Any]) -> int:
    if given.pop("print_sample"):
        return _show(sample_toml())
    output = given.pop("output")
    loaded = load(given, os.environ)
    require_tls_files(loaded)
    return _show(settings_json(loaded) if output == "json" else settings_table(loaded))


def _show(text: str) -> ExitCode:
    sys.stdout.write(text)
    sys.stdout.flush()  # here, where a reader that has gone can still be handled
    return ExitCode.OK


def _complain(message: object, status: ExitCode) -> ExitCode:
    sys.stderr.write(f"slabd: {message}\n")
    return status


def _parser() -> argparse.ArgumentParser:
    statuses = "\n".join(f"  {status.value:3}  {status.meaning}" for status in ExitCode)
    parser = Parser(
        prog="slabd",
        description="Lease blocks of a large shared-memory heap to processes.",
        epilog=f"exit status:\n{statuses}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"slabd {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the daemon", description=_serve_description(), allow_abbrev=False)
    serve.set_defaults(command=_serve)
    add_arguments(serve)
    check = commands.add_parser(
        "check-config",
        help="show the configuration that the same options would give `serve`, and where each value comes from",
        allow_abbrev=False,
    )
    check.set_defaults(command=_check_config)
    check.add_argument("-o", dest="output", choices=("table", "json"), default="table", help="form of the output")
    check.add_argument("--print-sample", action="store_true", help="print a configuration file with every option")
    add_arguments(check)
    return parser


def _serve_description() -> str:
    return (
        "Run the daemon until SIGTERM or SIGINT. Every option can also be set by the environment variable shown with "
        "it, or in the file that --config names; flags come first, then variables, then the file."
    )


if __name__ == "__main__":
    sys.exit(main())
