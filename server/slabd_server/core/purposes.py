"""What leases are for, as their owners say: a label and a call site for each block, at eight bytes a block.

Thousands of leases share a label and come from the same few lines of code, so a text is kept once, counted by the
blocks that have it, and forgotten with the last of them. A slot's label is `_labels[slot]`, the number of a text; 0 is
none.

Invariants: a text's count is how many slots have it; no text with a count of 0 is kept; number 0 is no text; each other
number is a text's, or free.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from slabd_server.core.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a lease is for, as its owner says."""

    label: str = ""
    call_site: str = ""


NO_PURPOSE: Final = Purpose()


class Texts:
    """One text a slot, equal ones kept once."""

    def __init__(self) -> None:
        self._of_slot = array("I")
        self._numbers: dict[str, int] = {}
        self._texts = [""]
        self._counts = array("I", [0])
        self._free = array("I")

    def __len__(self) -> int:
        return len(self._numbers)

    def get(self, slot: int) -> str:
        """Return a slot's text, empty when it has none."""
        return self._texts[self._of_slot[slot]] if slot < len(self._of_slot) else ""

    def put(self, slot: int, text: str) -> None:
        """Give a slot that has no text one that is not empty."""
        missing = slot + 1 - len(self._of_slot)
        if missing > 0:
            self._of_slot.frombytes(bytes(self._of_slot.itemsize * max(missing, 64)))
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = self._number(text)
        self._counts[number] += 1
        self._of_slot[slot] = number

    def _number(self, text: str) -> int:
        if self._free:
            number = self._free.pop()
            self._texts[number] = text
        else:
            number = len(self._texts)
            self._texts.append(text)
            self._counts.append(0)
        return number

    def drop(self, slot: int) -> None:
        """Take a slot's text away; one that has none is no error."""
        number = self._of_slot[slot] if slot < len(self._of_slot) else 0
        if not number:
            return
        self._of_slot[slot] = 0
        self._counts[number] -= 1
        if not self._counts[number]:
            del self._numbers[self._texts[number]]
            self._texts[number] = ""
            self._free.append(number)

    def slots(self) -> Iterator[int]:
        """Walk over the slots that have a text. Linear in the slots."""
        return (slot for slot, number in enumerate(self._of_slot) if number)

    def check(self) -> None:
        """Raise InvariantBroken when an invariant does not hold. Linear in the slots."""
        found = [0] * len(self._texts)
        for number in self._of_slot:
            found[number] += 1
        found[0] = 0
        if found != self._counts.tolist():
            raise InvariantBroken(f"{sum(found)} slots have a text, {sum(self._counts)} are counted")
        if self._numbers != {text: number for number, text in enumerate(self._texts) if text}:
            raise InvariantBroken(f"{len(self._numbers)} texts are known by name, {len(self._texts)} by number")
        used = [number for number, count in enumerate(found) if count]
        if sorted(self._numbers.values()) != used:
            raise InvariantBroken(f"{len(self._numbers)} texts are kept, {len(used)} numbers have slots")
        if sorted([*self._free, *used]) != list(range(1, len(self._texts))):
            raise InvariantBroken(
                f"{len(self._free)} numbers are free and {len(used)} have slots, of {len(self._texts) - 1}"
            )


class Purposes:
    """What each slot's block is for."""

    def __init__(self) -> None:
        self._labels = Texts()
        self._call_sites = Texts()

    def get(self, slot: int) -> Purpose:
        """Return what a block is for."""
        return Purpose(self._labels.get(slot), self._call_sites.get(slot))

    def put(self, slot: int, purpose: Purpose) -> None:
        """Note what a block that has just been granted is for."""
        if purpose.label:
            self._labels.put(slot, purpose.label)
        if purpose.call_site:
            self._call_sites.put(slot, purpose.call_site)

    def drop(self, slot: int) -> None:
        """Forget it."""
        self._labels.drop(slot)
        self._call_sites.drop(slot)

    def slots(self) -> Iterator[int]:
        """Walk over the slots whose blocks have a label, then those with a call site. Linear in the slots."""
        return chain(self._labels.slots(), self._call_sites.slots())

    def check(self) -> None:
        """Raise InvariantBroken when the texts are counted wrong. Linear in the slots."""
        self._labels.check()
        self._call_sites.check()
