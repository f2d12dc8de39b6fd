"""The `slabd` command: its exit statuses, its one-line errors, and what check-config prints."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import slabd_server
from slabd_server import __main__ as command
from slabd_server import __version__, logs
from slabd_server.errors import ExitCode, StartError
from slabd_server.segments import SegmentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from slabd_server.config import Config

TLS = ("--remote=off", "--listen=127.0.0.1:0", "--tls-cert", "{0}/a.crt", "--tls-key", "{0}/a.key")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No options from the outside, and the root logger as it was."""
    for name in ("SLABD_CONFIG", "SLABD_RUNTIME_DIR", "SLABD_HEAP_SIZE"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Config], int]], None]:
    """Put a function in the place of the daemon."""

    def pretend(run: Callable[[Config], int]) -> None:
        async def run_it(config: Config, _reread: object) -> int:
            return run(config)

        module = ModuleType("slabd_server.daemon")
        module.run = run_it  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(slabd_server, "daemon", module, raising=False)

    return pretend


def failing(error: BaseException) -> Callable[[Config], int]:
    """Return a daemon that raises."""

    def run(_: Config) -> int:
        raise error

    return run


def write_certificate(directory: Path, name: str) -> None:
    """Write a self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def with_tls(directory: Path, *more: str) -> list[str]:
    """Return a check-config command line with TLS files in a directory."""
    return ["check-config", *(argument.format(directory) for argument in (*TLS, *more))]


def test_serve_runs_the_daemon_with_the_configuration(daemon: Callable[..., None]) -> None:
    """Its result is the exit status, and the log is set up."""
    seen: list[Config] = []

    def run(config: Config) -> int:
        seen.append(config)
        return 0

    daemon(run)
    assert command.main(["serve", "--heap-size=64MiB", "--log-level=error"]) == ExitCode.OK
    assert seen[0].heaps[0].size_bytes == 64 << 20
    assert logging.getLogger().level == logging.ERROR
    assert any(isinstance(handler, logs.LogHandler) for handler in logging.getLogger().handlers)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (StartError("a live daemon holds /run/slabd"), 3, "slabd: a live daemon holds /run/slabd\n"),
        (SegmentError("heap x does not fit"), 3, "slabd: heap x does not fit\n"),
        (KeyboardInterrupt(), 130, "slabd: interrupted\n"),
    ],
)
def test_errors_are_one_line_and_an_exit_status(
    daemon: Callable[..., None], capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    """No traceback for what is no defect."""
    daemon(failing(error))
    assert command.main(["serve"]) == status
    assert capsys.readouterr() == ("", line)


def test_a_defect_leaves_its_traceback_in_the_log(
    daemon: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """And ends with a status of its own."""
    daemon(failing(ZeroDivisionError("oops")))
    assert command.main(["serve", "--log-format=json"]) == ExitCode.INTERNAL
    logged, line = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError: oops" in json.loads(logged)["traceback"]
    assert line == "slabd: internal error, a defect of slabd: ZeroDivisionError: oops"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "slabd: command line: the following arguments are required: COMMAND (see slabd --help)"),
        (["serv"], "slabd: command line: argument COMMAND: invalid choice: 'serv'"),
        (["serve", "--heapsize=1"], "slabd: command line: no such option: --heapsize=1; did you mean --heap-size?"),
        (["serve", "x"], "slabd: command line: no such option: x (see slabd serve --help)"),
        (["serve", "--heap-size=1"], "slabd: --heap-size: '1' is not a multiple of 32KiB"),
        (["check-config", "-o", "xml"], "slabd: command line: argument -o: invalid choice: 'xml'"),
    ],
)
def test_a_command_line_that_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], line: str
) -> None:
    """With the status for unusable options."""
    assert command.main(argv) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_several_problems_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    """Below a line that counts them."""
    assert command.main(["check-config", "--heap-size=1", "--log-level=x"]) == ExitCode.USAGE
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "slabd",
        "  --log-level",
        "  --heap-size",
    ]


def test_check_config_shows_every_value_and_its_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a table for people."""
    monkeypatch.setenv("SLABD_HEAP_SIZE", "64MiB")
    assert (
        command.main(["check-config", "--listen=127.0.0.1:0", "--admin-socket-mode=660", "--remote=off"]) == ExitCode.OK
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in (
        ["OPTION", "VALUE", "FROM"],
        ["listen", "127.0.0.1:0", "--listen"],
        ["admin_socket_mode", "0660", "--admin-socket-mode"],
        ["heaps.default.size", "64MiB", "SLABD_HEAP_SIZE"],
        ["tls_cert", "none", "default"],
        ["heaps.default.prefault", "false", "default"],
    ):
        assert row in rows


def test_check_config_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes in bytes, the heaps by name."""
    assert command.main(["check-config", "-o", "json", "--heap-size=64MiB", "--metrics-listen=off"]) == ExitCode.OK
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert content["metrics_listen"] == {"value": "off", "source": "--metrics-listen"}
    assert content["tls_cert"] == {"value": None, "source": "default"}
    assert content["heaps"]["default"]["size"] == {"value": 64 << 20, "source": "--heap-size"}


def test_check_config_needs_no_memory_and_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    """A heap that would never fit is checked all the same: it may be meant for another machine."""
    assert command.main(["check-config", "--heap-size=64TiB"]) == ExitCode.OK
    assert "64TiB" in capsys.readouterr().out


def test_tls_files_that_belong_together_are_accepted(tmp_path: Path) -> None:
    """A certificate with its key, and authorities for clients."""
    write_certificate(tmp_path, "a")
    assert command.main(with_tls(tmp_path, "--tls-client-ca", "{0}/a.crt")) == ExitCode.OK


def test_tls_files_that_cannot_be_used_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing, of another pair, or not PEM at all: each says which option is to blame."""
    write_certificate(tmp_path, "a")
    write_certificate(tmp_path, "b")
    (tmp_path / "noise").write_text("noise", encoding="utf-8")
    for more, expected in (
        (("--tls-key", "{0}/none"), f"slabd: --tls-key: '{tmp_path}/none' cannot be read: No such file or directory"),
        (
            ("--tls-key", "{0}/b.key"),
            f"slabd: --tls-cert: '{tmp_path}/a.crt' and '{tmp_path}/b.key' are no certificate",
        ),
        (("--tls-cert", "{0}/noise"), f"slabd: --tls-cert: '{tmp_path}/noise' and '{tmp_path}/a.key' are no cert"),
        (("--tls-client-ca", "{0}/noise"), f"slabd: --tls-client-ca: '{tmp_path}/noise' has no certificates"),
    ):
        assert command.main(with_tls(tmp_path, *more)) == ExitCode.USAGE
        assert capsys.readouterr().err.startswith(expected)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is the package's; the help lists every exit status."""
    for argv, expected in ((["--version"], f"slabd {__version__}\n"), (["--help"], "slabd")):
        with pytest.raises(SystemExit) as caught:
            command.main(argv)
        assert caught.value.code == 0
        assert expected in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"{status.value:3}  {status.meaning}" in text for status in ExitCode)
