"""The gRPC channel, as both transports use it: behind the fork gate, with calls that block and calls that are futures.

asyncio has the same channel as threads, and not grpc.aio, which is a sixth faster and does not survive a fork.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic

import grpc

from slabd.forking import check_child_can_call, gate
from slabd.transport import Interrupted, Request, Response, Rpc

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_FIRST_BACKOFF_MILLISECONDS: Final = 50
_LAST_BACKOFF_MILLISECONDS: Final = 1000
_ATTEMPT_MILLISECONDS: Final = 20_000

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # A connection of its own for each channel: a forked child must never touch its parent's.
    ("grpc.use_local_subchannel_pool", 1),
    # Retries are ours: they carry the sequence number.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # A daemon that restarts is back within a second, and its clients notice.
    ("grpc.initial_reconnect_backoff_ms", _FIRST_BACKOFF_MILLISECONDS),
    # Named for a pause, it is what gRPC gives an attempt to connect: much, for a machine that is busy.
    ("grpc.min_reconnect_backoff_ms", _ATTEMPT_MILLISECONDS),
    ("grpc.max_reconnect_backoff_ms", _LAST_BACKOFF_MILLISECONDS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Credentials for a daemon over TCP: files in PEM form.

    `ca` are the roots to trust (default: the system's), `certificate` and `key` this client's own (for a daemon that
    asks for one).
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None


class Channel:
    """A gRPC channel. Every use of it passes the gate."""

    def __init__(self, target: str, tls: Tls | None) -> None:
        check_child_can_call()
        self._stubs: dict[str, Any] = {}
        with gate.inside():
            self._channel = _open(target, tls)

    def unary(self, rpc: Rpc[Request, Response], request: Request, seconds: float) -> Response:
        """Make a call and block until it is answered."""
        with gate.inside():
            response: Response = self._stub(rpc, self._channel.unary_unary)(request, timeout=seconds)
            return response

    def future(
        self, rpc: Rpc[Request, Response], request: Request, seconds: float, on_done: Callable[[], object]
    ) -> FutureCall[Response]:
        """Begin a call; `on_done` is called at its end, in gRPC's thread."""
        gate.enter()
        call: FutureCall[Response] = FutureCall()
        try:
            stub = self._stub(rpc, self._channel.unary_unary)
            call.begin(stub.future(request, timeout=seconds), on_done)
        except BaseException:
            gate.leave()
            raise
        gate.allow_cut(call.cut)
        return call

    def download(
        self, rpc: Rpc[Request, Response], request: Request, seconds: float, cancel: list[Callable[[], object]]
    ) -> list[Response]:
        """Make a call whose answer comes in pieces; how to cancel it is put into `cancel`."""
        with gate.inside():
            call = self._stub(rpc, self._channel.unary_stream)(request, timeout=seconds)
            cancel.append(call.cancel)
            return list(call)

    def upload(
        self,
        rpc: Rpc[Request, Response],
        requests: Iterable[Request],
        seconds: float,
        cancel: list[Callable[[], object]],
    ) -> Response:
        """Make a call whose request goes in pieces; how to cancel it is put into `cancel`."""
        with gate.inside():
            call = self._stub(rpc, self._channel.stream_unary).future(iter(requests), timeout=seconds)
            cancel.append(call.cancel)
            response: Response = call.result()
            return response

    def close(self) -> None:
        """Hang up; calls that are under way fail."""
        with gate.inside():
            self._channel.close()

    def _stub(self, rpc: Rpc[Request, Response], kind: Callable[..., Any]) -> Any:
        if (stub := self._stubs.get(rpc.name)) is None:
            encode, decode = rpc.request.SerializeToString, rpc.response.FromString
            stub = self._stubs[rpc.name] = kind(rpc.path, request_serializer=encode, response_deserializer=decode)
        return stub


class FutureCall(Generic[Response]):
    """A call under way, which any thread may cancel, and a fork cuts short."""

    def __init__(self) -> None:
        self._future: Any = None
        self._was_cut = False

    def begin(self, future: Any, on_done: Callable[[], object]) -> None:
        """Take over gRPC's future."""
        self._future = future

        def finish(_: object) -> None:
            # Here and not when result() returns: only now is gRPC's thread done with the call, which a fork waits for.
            gate.leave(self.cut)
            on_done()

        future.add_done_callback(finish)

    def cut(self) -> None:
        """Cancel it, to be made again."""
        self._was_cut = True
        self._future.cancel()

    def cancel(self) -> None:
        """Cancel it for good: the daemon takes it out of its queue."""
        self._future.cancel()

    def result(self) -> Response:
        """Return the answer, after `on_done`.

        Raises:
            Interrupted: it was cut short.
            grpc.RpcError: it failed.
        """
        try:
            response: Response = self._future.result()
        except grpc.FutureCancelledError:
            if self._was_cut:
                raise Interrupted from None
            raise
        return response


def _open(target: str, tls: Tls | None) -> grpc.Channel:
    secure = credentials(tls)
    if secure is None:
        return grpc.insecure_channel(target, CHANNEL_OPTIONS)
    return grpc.secure_channel(target, secure, CHANNEL_OPTIONS)


def credentials(tls: Tls | None) -> grpc.ChannelCredentials | None:
    """Return gRPC's form of the credentials, None for a connection in the clear.

    Raises:
        OSError: a file cannot be read.
    """
    if tls is None:
        return None
    return grpc.ssl_channel_credentials(_read(tls.ca), _read(tls.key), _read(tls.certificate))


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
