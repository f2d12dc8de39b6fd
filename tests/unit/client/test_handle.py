"""Handles: plain data that survives every road."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slabd import Handle, InvalidHandle
from slabd_proto.handle import HANDLE_BYTES

handles = st.builds(
    Handle,
    heap_id=st.integers(0, 2**64 - 1),
    slot=st.integers(0, 2**32 - 1),
    generation=st.integers(1, 2**32 - 1),
    offset=st.integers(0, 2**64 - 1),
    size=st.integers(1, 2**64 - 1),
    transfer=st.booleans(),
)
HANDLE = Handle(heap_id=7, slot=3, generation=2, offset=4096, size=100, transfer=False)


@given(handles)
def test_every_form_leads_back(handle: Handle) -> None:
    """Bytes, text, pickle, copies and the contract's message."""
    forms = [
        Handle.from_bytes(bytes(handle)),
        Handle.parse(str(handle)),
        Handle.from_proto(handle.to_proto()),
        pickle.loads(pickle.dumps(handle)),
        copy.deepcopy(handle),
    ]
    assert forms == [handle] * len(forms)
    assert {hash(form) for form in forms} == {hash(handle)}


def test_it_is_small_and_frozen() -> None:
    """48 bytes, 64 characters, and nothing to change."""
    assert (len(bytes(HANDLE)), len(str(HANDLE))) == (HANDLE_BYTES, 64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        HANDLE.size = 1  # type: ignore[misc]


@given(st.integers(0, HANDLE_BYTES - 1), st.integers(1, 255))
def test_a_damaged_handle_is_refused(position: int, flip: int) -> None:
    """One wrong byte anywhere is found."""
    damaged = bytearray(bytes(HANDLE))
    damaged[position] ^= flip
    with pytest.raises(InvalidHandle):
        Handle.from_bytes(damaged)


@given(st.one_of(st.binary(), st.text(), st.integers(), st.none()))
def test_what_is_no_handle_is_refused(value: object) -> None:
    """Any bytes, any text, any object: one typed error, which is a ValueError."""
    with pytest.raises(InvalidHandle) as caught:
        Handle.coerce(value)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)


def test_its_repr_says_what_it_is() -> None:
    """For logs."""
    assert repr(HANDLE) == "<slabd.Handle share of 100 bytes at 0x1000, block 3.2>"
