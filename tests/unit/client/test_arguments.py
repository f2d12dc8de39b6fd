"""What users pass, and what they are told about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slabd import InvalidAlignment, InvalidArgument, InvalidSize, InvalidType, OutOfRange, arguments


@pytest.mark.parametrize("value", [True, 1.0, "1", None, b"1", np.float64(1)])
def test_what_is_no_integer(value: Any) -> None:
    """A ValueError and a TypeError at once; bool and float are refused."""
    with pytest.raises(InvalidType) as caught:
        arguments.size(value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", [0, -1, 2**64])
def test_sizes_that_cannot_be(value: int) -> None:
    """The message has the number."""
    with pytest.raises(InvalidSize, match=str(value)):
        arguments.size(value)


def test_integers_of_any_kind() -> None:
    """Numpy's too."""
    assert (arguments.size(np.uint64(4096)), arguments.alignment(np.int8(64))) == (4096, 64)


@pytest.mark.parametrize("value", [0, -2, 3, 96, 2**64])
def test_alignments_that_cannot_be(value: int) -> None:
    """Powers of two only."""
    with pytest.raises(InvalidAlignment, match=str(value)):
        arguments.alignment(value)


@pytest.mark.parametrize(("value", "expected"), [(None, None), (0, 0.0), (1.5, 1.5), (float("inf"), None)])
def test_times(value: Any, expected: float | None) -> None:
    """None and infinity are for ever."""
    assert arguments.seconds(value, "a timeout") == expected


@pytest.mark.parametrize("value", [-1, float("nan"), "soon"])
def test_times_that_cannot_be(value: Any) -> None:
    """Refused before anything waits."""
    with pytest.raises(InvalidArgument):
        arguments.seconds(value, "a timeout")


@pytest.mark.parametrize(
    ("offset", "length", "expected"), [(0, None, (0, 10)), (4, None, (4, 6)), (10, None, (10, 0)), (2, 3, (2, 3))]
)
def test_parts_of_a_block(offset: int, length: int | None, expected: tuple[int, int]) -> None:
    """A length of None is all the rest."""
    assert arguments.window(offset, length, 10) == expected


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (11, None), (0, 11), (10, 1), (5, -1)])
def test_parts_past_the_end(offset: int, length: int | None) -> None:
    """Never silently cut."""
    with pytest.raises(OutOfRange):
        arguments.window(offset, length, 10)


def test_labels() -> None:
    """At most 128 bytes of UTF-8."""
    assert arguments.label("decoder") == "decoder"
    with pytest.raises(InvalidArgument, match="130"):
        arguments.label("ä" * 65)
    with pytest.raises(InvalidType):
        arguments.label(b"bytes")


def test_the_call_site_is_the_callers() -> None:
    """The first line outside the package; its end is kept when it is too long."""
    assert arguments.caller().endswith("in test_the_call_site_is_the_callers")
    assert __file__ in arguments.caller()
    assert arguments.cut_call_site("x" * 300 + "end") == "x" * 253 + "end"
