"""What leases are for: equal texts are kept once, and forgotten with their last block."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from slabd_server.core.errors import InvariantBroken
from slabd_server.core.purposes import NO_PURPOSE, Purpose, Purposes, Texts

if TYPE_CHECKING:
    from collections.abc import Callable


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


@pytest.mark.parametrize("slot", [0, 63, 64, 1000])
def test_any_slot_can_have_a_text(slot: int) -> None:
    """There is room for a slot wherever it is; its neighbours have no text, and room comes 64 slots at a time."""
    texts = Texts()
    texts.put(slot, "a")
    assert [texts.get(each) for each in (slot - 1, slot, slot + 1) if each >= 0][-2:] == ["a", ""]
    texts.drop(slot)
    texts.put(slot, "a")
    assert len(texts._of_slot) == max(slot + 1, 64)
    texts.put(slot + 1, "b")
    assert (texts.get(slot), texts.get(slot + 1)) == ("a", "b")
    texts.check()
    for gone in (slot, slot + 1, slot + 1000):
        texts.drop(gone)
    texts.check()
    assert (texts.get(slot), texts.get(slot + 1), len(texts)) == ("", "", 0)


def test_numbers_of_texts_are_used_again() -> None:
    """However many different texts come and go, there is room for those that are there at once."""
    texts = Texts()
    for number in range(100):
        texts.put(0, f"label {number}")
        assert texts.get(0) == f"label {number}"
        texts.drop(0)
        texts.check()
    assert (texts._texts, texts._counts.tolist(), len(texts)) == (["", ""], [0, 0], 0)
    assert len(texts._of_slot) == 64


def name_number_0(texts: Texts) -> None:
    """Let number 0 be a text."""
    texts._texts[0] = "a"


def know_no_text(texts: Texts) -> None:
    """Let the empty text be known by name."""
    texts._numbers[""] = 0


def count_number_0(texts: Texts) -> None:
    """Let number 0 be counted."""
    texts._counts[0] = 1


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (name_number_0, "0 texts are known by name, 1 by number"),
        (know_no_text, "1 texts are known by name, 1 by number"),
        (count_number_0, "0 slots have a text, 1 are counted"),
    ],
)
def test_number_0_is_no_text(spoil: Callable[[Texts], None], found: str) -> None:
    """Number 0 has no text, no name and no count."""
    texts = Texts()
    texts.check()
    spoil(texts)
    with pytest.raises(InvariantBroken, match=found):
        texts.check()


def keep_a_text(texts: Texts) -> None:
    """Let a text be kept that no slot has."""
    texts._of_slot[0] = 0
    texts._counts[1] = 0


def keep_a_text_twice(texts: Texts) -> None:
    """Let two numbers be the same text."""
    texts._texts[2] = "a"
    texts._numbers = {"a": 2}


def free_a_number_in_use(texts: Texts) -> None:
    """Let a number be free that a slot has."""
    texts._free.append(1)


def lose_a_number(texts: Texts) -> None:
    """Let a number without a text not be free."""
    texts.drop(0)
    texts._free.pop()


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (keep_a_text, "2 texts are kept, 1 numbers have slots"),
        (keep_a_text_twice, "1 texts are kept, 2 numbers have slots"),
        (free_a_number_in_use, "1 numbers are free and 2 have slots, of 2"),
        (lose_a_number, "0 numbers are free and 1 have slots, of 2"),
    ],
)
def test_a_number_is_a_texts_or_free(spoil: Callable[[Texts], None], found: str) -> None:
    """No text is kept without a slot or twice, and what is not in use is free, once."""
    texts = Texts()
    texts.put(0, "a")
    texts.put(1, "b")
    texts.check()
    spoil(texts)
    with pytest.raises(InvariantBroken, match=found):
        texts.check()


def test_slots_with_a_purpose_are_listed() -> None:
    """The slots with a label come first, then those with a call site."""
    purposes = Purposes()
    purposes.put(3, Purpose("a", "x.py:1"))
    purposes.put(70, Purpose("", "x.py:1"))
    purposes.put(5, Purpose("a"))
    assert list(purposes.slots()) == [3, 5, 3, 70]
    purposes.drop(3)
    assert list(purposes.slots()) == [5, 70]
