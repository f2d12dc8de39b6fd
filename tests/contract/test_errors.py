"""Every error of the core has one place on the wire, and every place on the wire is some error's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.rpc import error_details_pb2

from slabd_proto.v1 import error_pb2
from slabd_server import status
from slabd_server.core import errors

if TYPE_CHECKING:
    from collections.abc import Iterator


def every_error(base: type[errors.CoreError] = errors.CoreError) -> Iterator[type[errors.CoreError]]:
    """Walk the tree."""
    yield base
    for child in base.__subclasses__():
        yield from every_error(child)


@pytest.mark.parametrize("error", list(dict.fromkeys(every_error())))
def test_every_error_has_a_code_and_a_reason(error: type[errors.CoreError]) -> None:
    """The table is total."""
    code, reason = status.code_and_reason(error("why"))
    assert reason != error_pb2.ERROR_REASON_UNSPECIFIED
    made = status.to_status(error("why"))
    assert (made.code, made.details) == (code, "why")
    detail = error_details_pb2.ErrorInfo()
    (_, packed), *_ = made.trailing_metadata
    assert error_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_").encode() in packed
    assert detail.DESCRIPTOR.full_name.encode() in packed


def test_every_reason_is_used() -> None:
    """No reason is promised that no error has."""
    used = {status.code_and_reason(error(""))[1] for error in every_error()}
    assert used | {error_pb2.ERROR_REASON_UNSPECIFIED} == set(error_pb2.ErrorReason.values())


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Whoever adds an error draws it."""
    drawn = errors.__doc__ or ""
    for error in every_error():
        assert error.__name__ in drawn
