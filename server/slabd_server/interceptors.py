"""What every gRPC call passes through, from the outside in: counting, logging, translating errors, guarding.

Meter       counts and times calls, with the names and labels of go-grpc-prometheus
Narrator    logs what failed
Translator  turns errors of the core into statuses, and anything unforeseen into INTERNAL, with its details in the
log and not on the wire
Guard       refuses AdminService, where it stands
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
from prometheus_client import Counter, Histogram

from slabd_proto.runtime import ADMIN_SOCKET
from slabd_server.core.errors import AccessDenied, CoreError
from slabd_server.status import to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from google.protobuf.descriptor import MethodDescriptor
    from prometheus_client import CollectorRegistry

    from slabd_server.wire import Context

_ADMIN_PREFIX: Final = "/slabd.v1.AdminService/"
# How calls end that alerts and panels are about. Every code and histogram of every method would be 700 lines more in a
# scrape, most of them zero for ever.
_CODES: Final = (
    grpc.StatusCode.OK,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
_TIMED_FROM_THE_START: Final = ("Lease", "Release")
_EDGES: Final = (25e-6, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0)

log = logging.getLogger(__name__)

Handler = Any  # grpc.RpcMethodHandler, whose fields grpc's stubs leave open


class Layer(Protocol):
    """What is done around each call of a method."""

    def around(self, method: str, kind: str, context: Context) -> AbstractAsyncContextManager[None, None]:
        """Return what to enter before one call and to leave after it."""
        ...


class Layers(grpc.aio.ServerInterceptor):
    """Passes every call through the layers, the first one outermost.

    A method's handler is wrapped once and kept: asking gRPC for it and wrapping it anew cost as much as a lease.
    """

    def __init__(self, *layers: Layer) -> None:
        self._layers = layers
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the method's handler, wrapped; None for a method that there is not."""
        method = str(handler_call_details.method)
        known = self._handlers.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        for layer in reversed(self._layers):
            handler = _wrap(handler, layer, method)
        self._handlers[method] = handler
        return handler


def _wrap(handler: Handler, layer: Layer, method: str) -> Handler:
    kind = _kind(handler)
    if handler.response_streaming:
        inner_stream = handler.unary_stream or handler.stream_stream

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            async with layer.around(method, kind, context):
                async for response in inner_stream(request, context):
                    yield response

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(stream, handler.request_deserializer, handler.response_serializer)
    inner = handler.unary_unary or handler.stream_unary

    async def unary(request: Any, context: Context) -> Any:
        async with layer.around(method, kind, context):
            return await inner(request, context)

    make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    return make(unary, handler.request_deserializer, handler.response_serializer)


def _kind(handler: Handler) -> str:
    return _kind_named(handler.request_streaming, handler.response_streaming)


def _kind_of(method: MethodDescriptor) -> str:
    return _kind_named(method.client_streaming, method.server_streaming)


def _kind_named(requests: bool, responses: bool) -> str:  # noqa: FBT001 - the two things that make a kind
    if responses:
        return "bidi_stream" if requests else "server_stream"
    return "client_stream" if requests else "unary"


class Translator:
    """Puts errors on the wire."""

    def around(self, method: str, kind: str, context: Context) -> _Translation:
        """Translate what one call raises."""
        return _Translation(method, context)


class _Translation:
    def __init__(self, method: str, context: Context) -> None:
        self._method = method
        self._context = context

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, CoreError):
            await self._context.abort_with_status(to_status(error))
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError) and not _broke_off(error):
            log.error("%s failed", self._method, exc_info=error)
            defect = CoreError(f"a defect of the daemon in {self._method}; its log has the details")
            await self._context.abort_with_status(to_status(defect))


class Guard:
    """Refuses AdminService to everybody: it stands in the server for those who are no operators (see `servers`)."""

    def around(self, method: str, kind: str, context: Context) -> _Guarding:
        """Look at which method is called."""
        return _Guarding(method)


class _Guarding:
    def __init__(self, method: str) -> None:
        self._method = method

    async def __aenter__(self) -> None:
        if self._method.startswith(_ADMIN_PREFIX):
            raise AccessDenied(
                f"AdminService is not answered here: use {ADMIN_SOCKET} in the daemon's runtime directory, or TCP with "
                f"client certificates (tls_client_ca)"
            )

    async def __aexit__(self, *_: object) -> None:
        pass


class Narrator:
    """Logs calls that failed: at INFO, since a refused request is the client's affair."""

    def around(self, method: str, kind: str, context: Context) -> _Narration:
        """Log how one call ended."""
        return _Narration(method, context)


class _Narration:
    def __init__(self, method: str, context: Context) -> None:
        self._method = method
        self._context = context

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, grpc.aio.AbortError) and log.isEnabledFor(logging.INFO):
            log.info("%s from %s: %s", self._method, self._context.peer(), self._context.details())


class Meter:
    """Counts and times calls."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("grpc_type", "grpc_service", "grpc_method")
        self._children: dict[tuple[Any, ...], Any] = {}
        self._started = Counter("grpc_server_started", "RPCs started on the server.", labels, registry=registry)
        self._handled = Counter(
            "grpc_server_handled",
            "RPCs completed on the server, by status code.",
            (*labels, "grpc_code"),
            registry=registry,
        )
        self._handling = Histogram(
            "grpc_server_handling_seconds",
            "How long the server handled RPCs; leases that wait included.",
            labels,
            buckets=_EDGES,
            registry=registry,
        )

    def expect(self, services: Iterable[Any]) -> None:
        """Begin to count all methods of these services, from zero: the first call and failure show in `rate()`.

        They are descriptors, which have another type in every implementation of protobuf.
        """
        for service in services:
            for method in service.methods:
                labels = (_kind_of(method), service.full_name, method.name)
                self._child(self._started, *labels)
                if method.name in _TIMED_FROM_THE_START:
                    self._child(self._handling, *labels)
                for code in _CODES:
                    self._child(self._handled, *labels, _code_name(code))

    def around(self, method: str, kind: str, context: Context) -> _Metering:
        """Count and time one call."""
        return _Metering(self, method, kind, context)

    def start(self, labels: tuple[str, str, str]) -> None:
        """Count a call's beginning."""
        self._child(self._started, *labels).inc()

    def end(self, labels: tuple[str, str, str], code: grpc.StatusCode, seconds: float) -> None:
        """Count a call's end."""
        self._child(self._handled, *labels, _code_name(code)).inc()
        self._child(self._handling, *labels).observe(seconds)

    def _child(self, metric: Any, *labels: str) -> Any:
        """Return a metric's child, kept: looking it up in the metric takes longer than counting."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child


class _Metering:
    def __init__(self, meter: Meter, method: str, kind: str, context: Context) -> None:
        _, service, name = method.split("/", 2)
        self._labels = (kind, service, name)
        self._meter = meter
        self._context = context
        self._began = 0.0

    async def __aenter__(self) -> None:
        self._meter.start(self._labels)
        self._began = time.perf_counter()

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            code = grpc.StatusCode.OK
        elif isinstance(error, asyncio.CancelledError | GeneratorExit) or _broke_off(error):
            code = grpc.StatusCode.CANCELLED
        else:
            code = _status_code(self._context.code())
        self._meter.end(self._labels, code, time.perf_counter() - self._began)


def _broke_off(error: BaseException) -> bool:
    """Tell whether gRPC itself ended a call from below: the server stopped while a client was still sending."""
    return isinstance(error, grpc.aio.BaseError) and not isinstance(error, grpc.aio.AbortError | grpc.aio.UsageError)


def _status_code(code: object) -> grpc.StatusCode:
    """Return a context's code as a member: grpc.aio stores either the member or its number."""
    if isinstance(code, grpc.StatusCode):
        return code
    return next((member for member in grpc.StatusCode if member.value[0] == code), grpc.StatusCode.UNKNOWN)


def _code_name(code: grpc.StatusCode) -> str:
    """Return a code's name as go-grpc-prometheus writes it: InvalidArgument, not INVALID_ARGUMENT."""
    return "OK" if code is grpc.StatusCode.OK else code.name.title().replace("_", "")
