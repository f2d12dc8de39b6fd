"""From what the wire says to what the user catches: one total table, and the reading of gRPC's failures.

Owns the translation and nothing else: no I/O. The reason travels in `google.rpc.ErrorInfo` (domain "slabd"); a failure
without one is the transport's own and becomes DaemonUnavailable, DeadlineExceeded or InternalError by its status code.
"""

from __future__ import annotations

from typing import Final, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from slabd import errors
from slabd_proto.v1 import error_pb2, pool_pb2

DOMAIN: Final = "slabd"
_PREFIX: Final = "ERROR_REASON_"

CLASS_OF_REASON: Final[dict[error_pb2.ErrorReason.ValueType, type[errors.SlabdError]]] = {
    error_pb2.ERROR_REASON_INVALID_ARGUMENT: errors.InvalidArgument,
    error_pb2.ERROR_REASON_INVALID_SIZE: errors.InvalidSize,
    error_pb2.ERROR_REASON_INVALID_ALIGNMENT: errors.InvalidAlignment,
    error_pb2.ERROR_REASON_TOO_LARGE: errors.TooLarge,
    error_pb2.ERROR_REASON_OUT_OF_MEMORY: errors.OutOfMemory,
    error_pb2.ERROR_REASON_FRAGMENTED: errors.Fragmented,
    error_pb2.ERROR_REASON_TIMEOUT: errors.LeaseTimeout,
    error_pb2.ERROR_REASON_QUEUE_FULL: errors.QueueFull,
    error_pb2.ERROR_REASON_UNKNOWN_BLOCK: errors.UnknownBlock,
    error_pb2.ERROR_REASON_STALE_HANDLE: errors.StaleHandle,
    error_pb2.ERROR_REASON_UNKNOWN_SESSION: errors.SessionEnded,
    error_pb2.ERROR_REASON_WRONG_SECRET: errors.SessionEnded,
    error_pb2.ERROR_REASON_ACCESS_DENIED: errors.AccessDenied,
    error_pb2.ERROR_REASON_READ_ONLY: errors.ReadOnly,
    error_pb2.ERROR_REASON_UNKNOWN_HEAP: errors.UnknownHeap,
    error_pb2.ERROR_REASON_UNSUPPORTED_VERSION: errors.UnsupportedVersion,
    error_pb2.ERROR_REASON_OUT_OF_RANGE: errors.OutOfRange,
    error_pb2.ERROR_REASON_DRAINING: errors.Draining,
    error_pb2.ERROR_REASON_SEQUENCE_IN_FLIGHT: errors.InternalError,
    error_pb2.ERROR_REASON_SEQUENCE_REUSED: errors.InternalError,
    error_pb2.ERROR_REASON_LEDGER_FULL: errors.LedgerFull,
    error_pb2.ERROR_REASON_TOO_MANY_SESSIONS: errors.TooManySessions,
    error_pb2.ERROR_REASON_INTERNAL: errors.InternalError,
    error_pb2.ERROR_REASON_NO_SUCH_SESSION: errors.NoSuchSession,
}
"""Every reason but UNSPECIFIED, which means success; a test holds it against the enum."""

# What a status code means when the daemon itself has said nothing: the failure is the transport's.
_CLASS_OF_CODE: Final[dict[grpc.StatusCode, type[errors.SlabdError]]] = {
    grpc.StatusCode.UNAVAILABLE: errors.DaemonUnavailable,
    # The call was cut by the other side: a daemon that stops abruptly does this.
    grpc.StatusCode.CANCELLED: errors.DaemonUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: errors.UnsupportedVersion,
    grpc.StatusCode.PERMISSION_DENIED: errors.AccessDenied,
    grpc.StatusCode.UNAUTHENTICATED: errors.AccessDenied,
}


def error_of_reason(reason: int, message: str) -> errors.SlabdError:
    """Return the error for a reason of the contract; a reason this client does not know is an InternalError."""
    known = cast("error_pb2.ErrorReason.ValueType", reason)
    try:
        name = error_pb2.ErrorReason.Name(known).removeprefix(_PREFIX)
    except ValueError:
        name = str(reason)
    error = CLASS_OF_REASON.get(known, errors.InternalError)(message or name)
    error.reason = name
    return error


def error_of_item(result: pool_pb2.ItemResult) -> errors.SlabdError | None:
    """Return the error of one item of an itemised batch, None when it succeeded."""
    if result.reason == error_pb2.ERROR_REASON_UNSPECIFIED:
        return None
    return error_of_reason(result.reason, result.message)


def error_of_rpc(failure: grpc.RpcError, target: str) -> errors.SlabdError:
    """Return the error for a failed call to `target`, from a blocking or an asyncio channel alike."""
    call = cast("grpc.Call", failure)
    code, message = call.code(), call.details() or ""
    if (reason := _reason_of(call)) is not None:
        return error_of_reason(reason, message)
    error_class = _CLASS_OF_CODE.get(code, errors.InternalError)
    return error_class(f"{target}: {code.name}: {message or 'no details'}")


def is_transient(failure: errors.SlabdError) -> bool:
    """Return whether the same call may succeed in a moment, with the same sequence number."""
    return isinstance(failure, errors.DaemonUnavailable) or failure.reason == "SEQUENCE_IN_FLIGHT"


def is_silence(failure: errors.SlabdError) -> bool:
    """Return whether the daemon has said nothing final: the same call is still to be made."""
    return failure.reason in {None, "SEQUENCE_IN_FLIGHT"}


def is_ambiguous(failure: errors.SlabdError) -> bool:
    """Return whether the daemon may have done what was asked although the call failed."""
    return is_silence(failure) or failure.reason == "INTERNAL"


def _reason_of(call: grpc.Call) -> int | None:
    """Return the contract's reason that a failed call carries, None when it carries none."""
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # the details contradict the status: they are not the daemon's
        return None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return _REASON_OF_NAME.get(info.reason, error_pb2.ERROR_REASON_INTERNAL)
    return None


_REASON_OF_NAME: Final = {name.removeprefix(_PREFIX): number for name, number in error_pb2.ErrorReason.items()}
