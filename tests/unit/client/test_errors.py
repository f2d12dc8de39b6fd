"""The tree of errors, and the one table from the contract's reasons to it."""

from __future__ import annotations

import inspect
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from slabd import errors
from slabd.failures import CLASS_OF_REASON, error_of_item, error_of_reason, error_of_rpc, is_ambiguous, is_transient
from slabd_proto.v1 import error_pb2, pool_pb2

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.SlabdError)]


class FailedCall(grpc.RpcError):
    """What gRPC raises, without a network."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: tuple[Any, ...] = ()) -> None:
        self._code, self._details, self._metadata = code, details, metadata

    def code(self) -> grpc.StatusCode:
        """See grpc.Call."""
        return self._code

    def details(self) -> str:
        """See grpc.Call."""
        return self._details

    def trailing_metadata(self) -> tuple[Any, ...]:
        """See grpc.Call."""
        return self._metadata


def refused(code: grpc.StatusCode, reason: str, message: str, domain: str = "slabd") -> FailedCall:
    """Return the failure of a call that the daemon refused."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=message, details=[detail])
    return FailedCall(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


def test_every_reason_has_a_class() -> None:
    """The table is total: a reason added to the contract fails here until it has a class."""
    assert set(CLASS_OF_REASON) == set(error_pb2.ErrorReason.values()) - {error_pb2.ERROR_REASON_UNSPECIFIED}


@pytest.mark.parametrize("error", ALL)
def test_every_error_says_what_it_was_told(error: type[errors.SlabdError]) -> None:
    """Some builtins (KeyError, OSError) dress up their message; none of ours does."""
    assert str(error("asked 4096, largest free block 1024")) == "asked 4096, largest free block 1024"


@pytest.mark.parametrize("error", ALL)
def test_the_docstring_draws_every_error(error: type[errors.SlabdError]) -> None:
    """The tree in the module's docstring is complete."""
    assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.OutOfMemory, MemoryError),
        (errors.TooLarge, MemoryError),
        (errors.LeaseTimeout, MemoryError),
        (errors.LeaseTimeout, TimeoutError),
        (errors.StaleHandle, LookupError),
        (errors.UnknownBlock, LookupError),
        (errors.NoSuchSession, LookupError),
        (errors.InvalidArgument, ValueError),
        (errors.InvalidType, TypeError),
        (errors.OutOfRange, IndexError),
        (errors.DaemonUnavailable, ConnectionError),
        (errors.SessionEnded, ConnectionError),
        (errors.AccessDenied, PermissionError),
        (errors.LeaseReleased, ValueError),
        (errors.NotMapped, BufferError),
        (errors.DeadlineExceeded, TimeoutError),
    ],
)
def test_errors_are_caught_by_the_builtin_one_would_try(
    error: type[errors.SlabdError], builtin: type[Exception]
) -> None:
    """`except MemoryError` catches a full heap."""
    assert issubclass(error, builtin)


def test_a_refusal_is_told_by_its_reason() -> None:
    """The class comes from ErrorInfo, whatever the status code and the message are."""
    error = error_of_rpc(refused(grpc.StatusCode.INTERNAL, "FRAGMENTED", "3 free, largest 1"), "unix:/x")
    assert (type(error), str(error), error.reason) == (errors.Fragmented, "3 free, largest 1", "FRAGMENTED")


def test_a_reason_of_another_domain_is_not_ours() -> None:
    """A proxy's ErrorInfo is no refusal of the daemon's."""
    error = error_of_rpc(refused(grpc.StatusCode.UNAVAILABLE, "OUT_OF_MEMORY", "busy", domain="proxy"), "host:1")
    assert type(error) is errors.DaemonUnavailable


def test_a_reason_from_a_newer_daemon_is_an_internal_error() -> None:
    """It is still a SlabdError, and keeps its words."""
    error = error_of_rpc(refused(grpc.StatusCode.ABORTED, "SOMETHING_NEW", "words"), "host:1")
    assert (type(error), str(error)) == (errors.InternalError, "words")
    assert type(error_of_reason(9999, "words")) is errors.InternalError


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.DaemonUnavailable),
        (grpc.StatusCode.CANCELLED, errors.DaemonUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.UNIMPLEMENTED, errors.UnsupportedVersion),
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
    ],
)
def test_the_transports_own_failures_have_classes_too(code: grpc.StatusCode, expected: type[errors.SlabdError]) -> None:
    """No raw RpcError ever gets through."""
    error = error_of_rpc(FailedCall(code, "details"), "host:1")
    assert (type(error), error.reason) == (expected, None)
    assert "host:1" in str(error)


def test_details_that_contradict_the_status_are_ignored() -> None:
    """grpc_status raises ValueError for them."""
    failure = refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", "full")
    lying = FailedCall(grpc.StatusCode.UNAVAILABLE, "other", failure.trailing_metadata())
    assert type(error_of_rpc(lying, "host:1")) is errors.DaemonUnavailable


def test_items_succeed_or_have_an_error() -> None:
    """An unspecified reason is success."""
    assert error_of_item(pool_pb2.ItemResult()) is None
    failed = error_of_item(pool_pb2.ItemResult(reason=error_pb2.ERROR_REASON_UNKNOWN_BLOCK, message="no block 3.1"))
    assert (type(failed), str(failed)) == (errors.UnknownBlock, "no block 3.1")


def test_what_is_tried_again_and_what_is_settled() -> None:
    """Silence may be tried again and may have succeeded; a refusal is final."""
    silence, refusal = errors.DaemonUnavailable("gone"), error_of_reason(error_pb2.ERROR_REASON_OUT_OF_MEMORY, "full")
    in_flight = error_of_reason(error_pb2.ERROR_REASON_SEQUENCE_IN_FLIGHT, "wait")
    assert (is_transient(silence), is_transient(in_flight), is_transient(refusal)) == (True, True, False)
    assert (is_ambiguous(silence), is_ambiguous(in_flight), is_ambiguous(refusal)) == (True, True, False)
