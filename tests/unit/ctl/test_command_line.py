"""The command line: what it takes, what it refuses, and how it exits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slabd import errors
from slabd.ctl.__main__ import main
from slabd.ctl.commands import COMMANDS
from slabd.ctl.exits import ExitCode, exit_table
from slabd.ctl.failures import explain
from slabd.ctl.parser import build_parser

if TYPE_CHECKING:
    import argparse


def refused(reason: str, kind: type[errors.SlabdError] = errors.AccessDenied) -> errors.SlabdError:
    """Return an error that the daemon itself has sent."""
    error = kind("said so")
    error.reason = reason
    return error


def test_exit_codes_are_distinct_and_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """A script can tell them apart, and a reader can look them up."""
    assert len({int(code) for code in ExitCode}) == len(ExitCode)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert exit_table() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DaemonUnavailable("gone"), ExitCode.UNREACHABLE),
        (errors.DeadlineExceeded("slow"), ExitCode.TIMED_OUT),
        (errors.InvalidAddress("ftp://x"), ExitCode.USAGE),
        (errors.AccessDenied("not yours"), ExitCode.REFUSED),
        (errors.UnsupportedVersion("old"), ExitCode.REFUSED),
        (errors.InternalError("bug"), ExitCode.REFUSED),
        (refused("ACCESS_DENIED"), ExitCode.REFUSED),
        (refused("UNKNOWN_HEAP", errors.UnknownHeap), ExitCode.REFUSED),
        (refused("INVALID_ARGUMENT", errors.InvalidArgument), ExitCode.REFUSED),
    ],
)
def test_every_error_has_its_exit_code(error: errors.SlabdError, code: ExitCode) -> None:
    """And a message of one line."""
    message, exit_code = explain(error)
    assert exit_code is code
    assert "\n" not in message


def test_an_unreachable_daemon_comes_with_what_to_do() -> None:
    """How to start one, how to say where it is."""
    message, _ = explain(errors.DaemonUnavailable("no daemon\n here"))
    assert message.startswith("no daemon here; start one with `slabd serve`")
    assert "--address" in message


def test_no_daemon_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line on stderr, with nothing on stdout."""
    assert main(["--address", "/nonexistent/slabd", "status"]) == ExitCode.UNREACHABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("slabctl: no daemon in /nonexistent/slabd: there is no admin.sock; start one")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["nonsense"],
        ["status", "--bogus"],
        ["-o", "xml", "status"],
        ["evict"],
        ["evict", "x"],
        ["evict", "0"],
        ["evict", str(2**64)],
        ["leases", "--limit", "0"],
        ["leases", "--session", "-1"],
        ["drain", "--timeout", "soon"],
        ["drain", "--timeout", "1", "--resume"],
        ["demo", "--workers", "0"],
        ["demo", "--workers", "many"],
        ["demo", "--heap-size", "1"],
        ["demo", "--heap-size", "33KiB"],
        ["demo", "--limit", "0"],
    ],
)
def test_nonsense_is_exit_code_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Argparse says what is wrong."""
    with pytest.raises(SystemExit) as exit_info:
        main(line)
    assert exit_info.value.code == ExitCode.USAGE
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--address", "ftp://host", "status"], "not ftp://"),
        (["--address", "localhost:0", "status"], "port from 1 to 65535"),
        (["--address", "/" + "x" * 200, "status"], "use a shorter runtime directory"),
        (["--tls-ca", "/nonexistent.pem", "--address", "localhost:1", "status"], "No such file"),
        (["--tls-ca", "ca.pem", "--address", "/run/x", "status"], "are for host:port"),
        (["--tls-cert", "c.pem", "--address", "localhost:1", "status"], "go together"),
        (["demo", "/nonexistent/path"], "give files or directories that exist"),
    ],
)
def test_addresses_and_paths_that_cannot_be_are_exit_code_2(
    line: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to write instead."""
    assert main(line) == ExitCode.USAGE
    assert message in capsys.readouterr().err


def test_a_demo_without_files_is_exit_code_2(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty directory proves nothing."""
    assert main(["demo", str(tmp_path)]) == ExitCode.USAGE
    assert "no regular file" in capsys.readouterr().err


def test_common_options_may_stand_before_and_after_the_command() -> None:
    """The one after it wins."""
    parser = build_parser()
    before = parser.parse_args(["--address", "/a", "-o", "json", "status"])
    after = parser.parse_args(["--address", "/a", "status", "--address", "/b", "-o", "json"])
    neither = parser.parse_args(["status"])
    assert (before.address, before.output) == ("/a", "json")
    assert (after.address, after.output) == ("/b", "json")
    assert (neither.address, neither.output) == (None, "table")


def test_every_command_documents_its_json(capsys: pytest.CaptureFixture[str]) -> None:
    """In its own help."""
    for name in [*(command.name for command in COMMANDS), "demo", "bench"]:
        with pytest.raises(SystemExit):
            build_parser().parse_args([name, "--help"])
        assert "-o json prints" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the distribution."""
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == ExitCode.OK
    assert capsys.readouterr().out.startswith("slabctl ")


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a traceback."""

    def interrupted(_arguments: argparse.Namespace) -> ExitCode:
        raise KeyboardInterrupt

    monkeypatch.setattr("slabd.ctl.__main__._run", interrupted)
    assert main(["status"]) == ExitCode.INTERRUPTED
    assert capsys.readouterr().err == "slabctl: interrupted\n"
