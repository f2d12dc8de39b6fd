"""What every child process of the demo does first and last: find its pipe, never outlive the parent, end quietly."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Final

import slabd
from slabd.ctl.demo.messages import Ready, Start

if TYPE_CHECKING:
    from collections.abc import Callable

    from slabd.ctl.demo.messages import FromChild, ToChild

_PR_SET_PDEATHSIG: Final = 1


class Pipe:
    """The child's end of its pipe."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._sending = threading.Lock()

    def receive(self) -> ToChild:
        """Return the next message.

        Raises:
            EOFError: the parent wants no more.
        """
        message: ToChild = self._connection.recv()
        return message

    def send(self, message: FromChild) -> None:
        """Send a message, from any thread."""
        with self._sending:
            self._connection.send(message)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the parent is gone: prctl(2)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def main(serve: Callable[[slabd.Pool, Pipe], None], *, read_only: bool) -> None:
    """Connect to where the parent says, and `serve` until it wants no more. Arguments: DESCRIPTOR PARENT."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends its children in order
    die_with(int(sys.argv[2]))
    pipe = Pipe(int(sys.argv[1]))
    try:
        start = pipe.receive()
        if not isinstance(start, Start):
            raise TypeError(f"the first message is Start, not {start!r}")
        with slabd.connect(start.address, name=start.name, read_only=read_only) as pool:
            pipe.send(Ready())
            serve(pool, pipe)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
