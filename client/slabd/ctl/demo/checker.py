"""The checker: SHA-256 straight from the files, by `hashlib.file_digest`. It knows nothing of slabd.

It runs as a script, imports the standard library alone, and speaks in plain tuples, so that no line of the code under
test has a part in the digests that the other side is compared with.

    in:   (batch, [(piece, path, offset, length, stamp), ...])      stamp as in messages.Stamp
    out:  (batch, {piece: digest}, {piece: (reason, changed)})
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import WriteableBuffer

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_PR_SET_PDEATHSIG: Final = 1
# Which number of a stamp is the size.
_SIZE: Final = 2

Answer = tuple[int, dict[int, bytes], dict[int, tuple[str, bool]]]
Item = tuple[int, str, int, int, tuple[int, ...]]


class Stretch(io.RawIOBase):
    """A stretch of a file, as a file."""

    def __init__(self, file: io.FileIO, offset: int, length: int) -> None:
        super().__init__()
        self._file = file
        self._left = length
        file.seek(offset)

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read at most to the stretch's end."""
        view = memoryview(buffer)[: self._left]
        count = self._file.readinto(view) if view else 0
        self._left -= count or 0
        return count or 0


def digest(path: str, offset: int, length: int, stamp: tuple[int, ...]) -> bytes | tuple[str, bool]:
    """Return the SHA-256 of a stretch of a file, or why there is none, and whether that is because it has changed."""
    try:
        with io.FileIO(os.open(path, _FLAGS)) as file:
            if _stamp(file.fileno()) != stamp:
                return "changed since it was found", True
            found = hashlib.file_digest(Stretch(file, offset, length), "sha256").digest()
            if offset + length == stamp[_SIZE] and file.read(1):
                return "has more bytes than its size says", True
            return found if _stamp(file.fileno()) == stamp else ("changed while it was read", True)
    except OSError as error:
        return error.strerror or str(error), False


def check(batch: int, items: Sequence[Item]) -> Answer:
    """Digest a batch."""
    digests: dict[int, bytes] = {}
    failures: dict[int, tuple[str, bool]] = {}
    for piece, path, offset, length, stamp in items:
        found = digest(path, offset, length, stamp)
        if isinstance(found, bytes):
            digests[piece] = found
        else:
            failures[piece] = found
    return batch, digests, failures


def main() -> None:
    """Answer until the parent hangs up. Arguments: DESCRIPTOR PARENT."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[2]):
        return
    pipe = Connection(int(sys.argv[1]))
    try:
        while True:
            batch, items = pipe.recv()
            pipe.send(check(batch, items))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _stamp(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


if __name__ == "__main__":
    main()
