"""Where the daemon and its clients meet: the runtime directory and the names in it.

Pure but for `find_temporary_dir`: the environment and the user are parameters, and nothing is created.
"""

from __future__ import annotations

import tempfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

GRPC_SOCKET: Final = "slabd.sock"
ADMIN_SOCKET: Final = "admin.sock"
ATTACH_SOCKET: Final = "attach.sock"
SOCKETS: Final = (GRPC_SOCKET, ADMIN_SOCKET, ATTACH_SOCKET)
LONGEST_SOCKET: Final = max(SOCKETS, key=len)
LOCK_FILE: Final = "slabd.lock"
# sockaddr_un.sun_path holds 108 bytes, the terminating zero included: unix(7).
MAX_SOCKET_PATH_BYTES: Final = 107


def find_temporary_dir() -> str:
    """Return the temporary directory; where nobody may write to one, that which there would be."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return "/tmp"  # noqa: S108  # named in the message that it cannot be used


def default_runtime_dir(environ: Mapping[str, str], uid: int, temporary_dir: str) -> PurePosixPath:
    """Return the runtime directory for this user when no option names one.

    `$SLABD_RUNTIME_DIR`, else systemd's `$RUNTIME_DIRECTORY` (its first entry), else `/run/slabd` for root, else
    `$XDG_RUNTIME_DIR/slabd`, else `slabd-UID` below `temporary_dir`.
    """
    if explicit := environ.get("SLABD_RUNTIME_DIR"):
        return PurePosixPath(explicit)
    if granted := environ.get("RUNTIME_DIRECTORY"):
        return PurePosixPath(granted.split(":", 1)[0])
    if uid == 0:
        return PurePosixPath("/run/slabd")
    if session := environ.get("XDG_RUNTIME_DIR"):
        return PurePosixPath(session) / "slabd"
    return PurePosixPath(temporary_dir) / f"slabd-{uid}"
