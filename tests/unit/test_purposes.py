"""What leases are for: equal texts are kept once, and forgotten with their last block."""

from __future__ import annotations

import random

import pytest

from slabd_server.core.errors import InvariantBroken
from slabd_server.core.purposes import NO_PURPOSE, Purpose, Purposes, Texts


def test_equal_texts_are_kept_once() -> None:
    """A thousand blocks with one label have one text, which goes with the last of them."""
    texts = Texts()
    for slot in range(1000):
        texts.put(slot, "frames")
    assert len(texts) == 1
    for slot in range(1000):
        assert texts.get(slot) == "frames"
        texts.drop(slot)
    assert len(texts) == 0
    texts.check()


def test_slots_without_a_purpose() -> None:
    """A slot that was never given one, or lost it, has none; losing it twice is no error."""
    purposes = Purposes()
    assert purposes.get(10**6) == NO_PURPOSE
    purposes.put(3, Purpose("label", ""))
    purposes.put(4, Purpose("", "a.py:1"))
    assert (purposes.get(3), purposes.get(4)) == (Purpose("label"), Purpose("", "a.py:1"))
    purposes.drop(3)
    purposes.drop(3)
    assert purposes.get(3) == NO_PURPOSE
    purposes.check()


def test_texts_against_a_dict() -> None:
    """After any history every slot has the text it was given last."""
    chance = random.Random(5)
    texts = Texts()
    model: dict[int, str] = {}
    for _ in range(3000):
        slot = chance.randrange(200)
        if slot in model:
            texts.drop(slot)
            del model[slot]
        else:
            model[slot] = f"label {chance.randrange(20)}"
            texts.put(slot, model[slot])
        assert texts.get(slot) == model.get(slot, "")
    texts.check()
    assert {slot: texts.get(slot) for slot in model} == model
    assert len(texts) == len(set(model.values()))


def test_check_sees_wrong_counts() -> None:
    """A count that is off, and a text under another name, are found."""
    texts = Texts()
    texts.put(0, "a")
    texts._counts[1] = 2
    with pytest.raises(InvariantBroken, match="are counted"):
        texts.check()
    texts._counts[1] = 1
    texts._numbers["b"] = 1
    with pytest.raises(InvariantBroken, match="known by name"):
        texts.check()
