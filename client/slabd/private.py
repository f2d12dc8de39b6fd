"""A private daemon: a child of this process, for scripts and tests, in a runtime directory of its own.

It lives exactly as long as its maker: its standard input is a pipe, and the daemon stops when that closes, so even
kill -9 of the maker leaves nothing behind. That it is ready, it says over systemd's protocol (sd_notify(3)).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slabd.errors import DaemonUnavailable
from slabd.pool import Pool, connect
from slabd.transport import Deadline
from slabd_proto import runtime

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_DEFAULTS: Final = {"metrics_listen": "off", "drain_seconds": 0}
_READY: Final = b"READY=1"
_POLL_SECONDS: Final = 0.05
_GRACE_SECONDS: Final = 5.0
_LOG_TAIL_CHARACTERS: Final = 4000
_DATAGRAM_BYTES: Final = 4096


def start(heap_size: int | str = "64MiB", *, start_timeout: float = 30.0, **options: Any) -> PrivateDaemon:
    """Start a private daemon, and return when it is ready.

    Args:
        heap_size: in bytes, or with a unit as the daemon's `--heap-size` takes it.
        start_timeout: how many seconds it may take to be ready.
        options: any other option of `slabd serve`, with underscores: `metrics_listen="127.0.0.1:0"` becomes
            `--metrics-listen 127.0.0.1:0`. Without it there are no metrics, so that private daemons need no ports.

    Raises:
        DaemonUnavailable: it did not start; the message ends with what it said.
    """
    return PrivateDaemon(heap_size, start_timeout=start_timeout, options=options)


class PrivateDaemon:
    """A daemon of one's own. Made by `start`; a context manager."""

    def __init__(self, heap_size: int | str, *, start_timeout: float, options: dict[str, Any]) -> None:
        self._directory = _make_directory()
        self._maker = os.getpid()
        # Without a name, so that nothing is left of it however this process ends.
        self._log = os.memfd_create("slabd-log")
        self._close_log = weakref.finalize(self, os.close, self._log)
        try:
            self._process = self._spawn(_arguments(heap_size, options), start_timeout)
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._close_log()
            raise
        self._finalizer = weakref.finalize(self, _stop, self._process, self._directory, self._maker)

    @property
    def address(self) -> str:
        """Where it is: for `slabd.connect`, for $SLABD_ADDRESS, for other processes."""
        return f"unix:{self._directory}"

    @property
    def runtime_dir(self) -> Path:
        """Its runtime directory, removed with it."""
        return self._directory

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def connect(self, **options: Any) -> Pool:
        """Connect to it; the options are those of `slabd.connect`."""
        return connect(self.address, **options)

    def log(self) -> str:
        """Return what it has written to its standard error."""
        # The daemon writes through the same open file, whose position is therefore not ours to move.
        return os.pread(self._log, os.fstat(self._log).st_size, 0).decode(errors="replace")

    def close(self) -> None:
        """Stop it, gracefully at first, and remove its directory. Closing twice, or in a forked child, does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.running else "stopped"
        return f"<slabd.PrivateDaemon {self.address}, {state}>"

    def _spawn(self, arguments: list[str], seconds: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "slabd_server", "serve", "--runtime-dir", str(self._directory), *arguments]
        notify_path = self._directory / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.bind(str(notify_path))
            process = _popen(command, self._log, _environment(notify_path))
            try:
                self._await_ready(process, notify, seconds)
            except BaseException:
                process.kill()
                _reap(process)
                raise
            finally:
                notify_path.unlink()
        return process

    def _await_ready(self, process: subprocess.Popen[bytes], notify: socket.socket, seconds: float) -> None:
        deadline = Deadline(seconds)
        notify.settimeout(_POLL_SECONDS)
        while True:
            try:
                if _READY in notify.recv(_DATAGRAM_BYTES).split(b"\n"):
                    return
            except TimeoutError:
                if process.poll() is not None:
                    raise DaemonUnavailable(
                        f"the private daemon did not start, exit status {process.returncode}: {self._log_tail()}"
                    ) from None
            if deadline.passed:
                raise DaemonUnavailable(f"the private daemon was not ready in {seconds} seconds: {self._log_tail()}")

    def _log_tail(self) -> str:
        return self.log()[-_LOG_TAIL_CHARACTERS:].strip() or "it said nothing"


def _popen(command: list[str], log: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  # this interpreter, with arguments and no shell
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=log,
        env=environment,
        # Ctrl-C is for its maker, who stops it when he has finished with it.
        start_new_session=True,
    )


def _environment(notify_path: Path) -> dict[str, str]:
    """Return ours, without options: $SLABD_LISTEN and the like are meant for another daemon."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLABD_")}
    return kept | {"NOTIFY_SOCKET": str(notify_path)}


def _arguments(heap_size: int | str, options: dict[str, Any]) -> list[str]:
    arguments = ["--heap-size", str(heap_size), "--stop-on-eof"]
    for name, value in (_DEFAULTS | options).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", str(value)]
    return arguments


def _make_directory() -> Path:
    """Make a directory only this user can enter, short enough for a socket's path."""
    directory = Path(tempfile.mkdtemp(prefix="slabd-"))
    if len(os.fsencode(directory / runtime.LONGEST_SOCKET)) <= runtime.MAX_SOCKET_PATH_BYTES:
        return directory
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix="slabd-", dir="/tmp"))  # mkdtemp makes it safely


def _stop(process: subprocess.Popen[bytes], directory: Path, maker: int) -> None:
    if os.getpid() != maker:
        return
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    _reap(process)
    shutil.rmtree(directory, ignore_errors=True)


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
