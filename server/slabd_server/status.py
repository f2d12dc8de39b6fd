"""The one table from the core's errors to errors on the wire.

A refused call ends with a gRPC status whose details hold a `google.rpc.ErrorInfo`: domain "slabd", reason the name of
an ErrorReason. An item refused in an itemised batch carries the same reason in its `ItemResult`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc_status import rpc_status

from slabd_proto.v1 import error_pb2, pool_pb2
from slabd_server.core import errors

if TYPE_CHECKING:
    import grpc

DOMAIN: Final = "slabd"

_TABLE: Final[dict[type[errors.CoreError], tuple[StatusCode, error_pb2.ErrorReason.ValueType]]] = {
    errors.CoreError: (StatusCode.INTERNAL, error_pb2.ERROR_REASON_INTERNAL),
    errors.InvariantBroken: (StatusCode.INTERNAL, error_pb2.ERROR_REASON_INTERNAL),
    errors.InvalidArgument: (StatusCode.INVALID_ARGUMENT, error_pb2.ERROR_REASON_INVALID_ARGUMENT),
    errors.InvalidHeap: (StatusCode.INVALID_ARGUMENT, error_pb2.ERROR_REASON_INVALID_ARGUMENT),
    errors.InvalidSize: (StatusCode.INVALID_ARGUMENT, error_pb2.ERROR_REASON_INVALID_SIZE),
    errors.InvalidAlignment: (StatusCode.INVALID_ARGUMENT, error_pb2.ERROR_REASON_INVALID_ALIGNMENT),
    errors.NoMemory: (StatusCode.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_OUT_OF_MEMORY),
    errors.TooLarge: (StatusCode.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_TOO_LARGE),
    errors.OutOfMemory: (StatusCode.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_OUT_OF_MEMORY),
    errors.Fragmented: (StatusCode.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_FRAGMENTED),
    errors.Searching: (StatusCode.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_OUT_OF_MEMORY),
    errors.WaitTimeout: (StatusCode.DEADLINE_EXCEEDED, error_pb2.ERROR_REASON_TIMEOUT),
    errors.QueueFull: (StatusCode.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_QUEUE_FULL),
    errors.LedgerFull: (StatusCode.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_LEDGER_FULL),
    errors.UnknownBlock: (StatusCode.NOT_FOUND, error_pb2.ERROR_REASON_UNKNOWN_BLOCK),
    errors.OutOfRange: (StatusCode.OUT_OF_RANGE, error_pb2.ERROR_REASON_OUT_OF_RANGE),
    errors.StaleHandle: (StatusCode.FAILED_PRECONDITION, error_pb2.ERROR_REASON_STALE_HANDLE),
    errors.UnknownSession: (StatusCode.UNAUTHENTICATED, error_pb2.ERROR_REASON_UNKNOWN_SESSION),
    errors.NoSuchSession: (StatusCode.NOT_FOUND, error_pb2.ERROR_REASON_NO_SUCH_SESSION),
    errors.WrongSecret: (StatusCode.UNAUTHENTICATED, error_pb2.ERROR_REASON_WRONG_SECRET),
    errors.TooManySessions: (StatusCode.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_TOO_MANY_SESSIONS),
    errors.AccessDenied: (StatusCode.PERMISSION_DENIED, error_pb2.ERROR_REASON_ACCESS_DENIED),
    errors.ReadOnly: (StatusCode.PERMISSION_DENIED, error_pb2.ERROR_REASON_READ_ONLY),
    errors.UnknownHeap: (StatusCode.NOT_FOUND, error_pb2.ERROR_REASON_UNKNOWN_HEAP),
    errors.UnsupportedVersion: (StatusCode.FAILED_PRECONDITION, error_pb2.ERROR_REASON_UNSUPPORTED_VERSION),
    errors.Draining: (StatusCode.UNAVAILABLE, error_pb2.ERROR_REASON_DRAINING),
    errors.SequenceInFlight: (StatusCode.ABORTED, error_pb2.ERROR_REASON_SEQUENCE_IN_FLIGHT),
    errors.SequenceReused: (StatusCode.FAILED_PRECONDITION, error_pb2.ERROR_REASON_SEQUENCE_REUSED),
}


def code_and_reason(error: errors.CoreError) -> tuple[StatusCode, error_pb2.ErrorReason.ValueType]:
    """Return what an error is called on the wire."""
    return _TABLE[type(error)]


def item_result(error: errors.CoreError | None) -> pool_pb2.ItemResult:
    """Return the result of one item of an itemised batch."""
    if error is None:
        return pool_pb2.ItemResult()
    return pool_pb2.ItemResult(reason=code_and_reason(error)[1], message=str(error))


def to_status(error: errors.CoreError) -> grpc.Status:
    """Return the status with which a refused call ends."""
    code, reason = code_and_reason(error)
    name = error_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    info = Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=name, domain=DOMAIN))
    number: int = code.value[0]
    status: grpc.Status = rpc_status.to_status(status_pb2.Status(code=number, message=str(error), details=[info]))
    return status
