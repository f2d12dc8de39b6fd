"""One call to the daemon: deadline, retries, and gRPC's failures turned into slabd's.

No `grpc.RpcError` gets past here. A call that the daemon did not answer is made again until its deadline, with the same
sequence number, so that nothing happens twice: a daemon that restarts goes unnoticed. When the daemon has dropped the
session there is nothing to wait for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from slabd.errors import PoolClosed, SlabdError
from slabd.failures import error_of_rpc, is_transient
from slabd.transport import Deadline, Interrupted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from slabd.transport import T, Transport

_FIRST_PAUSE_SECONDS: Final = 0.01
_LAST_PAUSE_SECONDS: Final = 0.5
# The least that a call is given, so that one made at the last moment fails by its answer and not by its deadline.
_LEAST_SECONDS: Final = 0.05


class Line:
    """The line to one daemon, for one session."""

    def __init__(self, transport: Transport, seconds: float, check_alive: Callable[[SlabdError], None]) -> None:
        """`check_alive` is told of a failure, and raises the error to report instead when it knows better."""
        self.transport = transport
        self._seconds = seconds
        self._check_alive = check_alive

    async def call(self, attempt: Callable[[float], Awaitable[T]], deadline: Deadline | None = None) -> T:
        """Return what `attempt(seconds)` returns, repeated as long as nobody answers.

        Raises:
            DaemonUnavailable: nobody answered until the deadline, or the daemon is gone and the session with it.
            SlabdError: the daemon answered with a refusal.
        """
        deadline = deadline or Deadline(self._seconds)
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await once(self.transport, attempt, max(deadline.remaining or 0.0, _LEAST_SECONDS))
            except Interrupted:
                continue
            except SlabdError as error:
                self._check_alive(error)
                if not is_transient(error) or deadline.passed:
                    raise
            await self.transport.sleep(min(pause, _LAST_PAUSE_SECONDS))
            pause *= 2


async def once(transport: Transport, attempt: Callable[[float], Awaitable[T]], seconds: float) -> T:
    """Return what `attempt(seconds)` returns, its failures translated, without a second try."""
    try:
        return await attempt(seconds)
    except SlabdError:
        raise
    except grpc.RpcError as failure:
        raise error_of_rpc(failure, transport.target) from None
    except grpc.FutureCancelledError as failure:
        raise PoolClosed("the pool has been closed") from failure
    except ValueError as failure:
        # What a channel raises when another thread or task has closed it; a serializer's are RpcErrors.
        raise PoolClosed("the pool has been closed") from failure
