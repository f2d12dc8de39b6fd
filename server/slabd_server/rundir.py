"""The runtime directory: made, checked, locked, and swept of what a dead daemon left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

from slabd_proto.runtime import ADMIN_SOCKET, ATTACH_SOCKET, GRPC_SOCKET, LOCK_FILE
from slabd_server.errors import StartError

if TYPE_CHECKING:
    from pathlib import Path

_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class RuntimeDir:
    """The daemon's runtime directory, held under an exclusive lock until `close`."""

    def __init__(self, path: Path, *, socket_mode: int, private: bool = False) -> None:
        """Make the directory if need be, check it, and lock it; a `private` one is removed again by `close`.

        Raises:
            StartError: another daemon has it, somebody else could tamper with it, or it cannot be used.
        """
        self.path: Final = path
        self.grpc_socket: Final = path / GRPC_SOCKET
        self.admin_socket: Final = path / ADMIN_SOCKET
        self.attach_socket: Final = path / ATTACH_SOCKET
        self._sockets: Final = (self.grpc_socket, self.admin_socket, self.attach_socket)
        self._swept = False
        self._private = private
        try:
            ours_alone = not socket_mode & (stat.S_IRWXG | stat.S_IRWXO)
            path.mkdir(mode=0o700 if ours_alone else 0o755, parents=True, exist_ok=True)
            _check_owner(path)
            if not ours_alone:
                _let_others_in(path)
            self._lock = self._take_lock(path / LOCK_FILE)
        except OSError as error:
            raise StartError(
                f"cannot use the runtime directory {path}: {error.strerror}; choose another with --runtime-dir"
            ) from None

    def _take_lock(self, path: Path) -> int:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise StartError(
                f"another slabd (pid {holder or 'unknown'}) serves {self.path}; stop it, or take another --runtime-dir"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock

    def sweep(self) -> None:
        """Remove sockets that a dead daemon left.

        Raises:
            StartError: something answers on one of them, or what is there is no socket.
        """
        for path in self._sockets:
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue
            if not stat.S_ISSOCK(mode):
                raise StartError(f"{path} is in the way and is no socket; remove it, or choose another --runtime-dir")
            if _answers(path):
                raise StartError(f"something that is no slabd listens on {path}; choose another --runtime-dir")
            path.unlink()
        self._swept = True

    def close(self) -> None:
        """Remove our sockets and let go of the directory. The lock file stays: a successor may have it open."""
        # What was in the directory before `sweep` had looked at it is not ours to remove.
        for path in self._sockets if self._swept else ():
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        if self._private:
            # Its maker removes it too, unless the maker was killed.
            with contextlib.suppress(OSError):
                (self.path / LOCK_FILE).unlink()
                self.path.rmdir()
        os.close(self._lock)


def _let_others_in(path: Path) -> None:
    """Let others pass through a directory of ours that a daemon for its owner only had made."""
    found = path.stat()
    wanted = stat.S_IMODE(found.st_mode) | stat.S_IXGRP | stat.S_IRGRP | stat.S_IXOTH | stat.S_IROTH
    if found.st_uid == os.geteuid() and wanted != stat.S_IMODE(found.st_mode):
        path.chmod(wanted)


def _check_owner(path: Path) -> None:
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise StartError(f"{path} belongs to uid {found.st_uid}, not to {os.geteuid()}; choose another --runtime-dir")
    if found.st_mode & _WRITABLE_BY_OTHERS and not found.st_mode & stat.S_ISVTX:
        raise StartError(
            f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o}); "
            f"run `chmod go-w {path}`, or choose another --runtime-dir"
        )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True
