"""Runs of set bits in an integer, where bit n stands for the n-th quantum of something.

Owns the arithmetic on bitmaps with which free bytes are looked for. Promises a number of steps that grows with the
logarithm of the lengths, not with how many runs there are: a step works on all bits at once. Must not know what a bit
stands for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

NONE: Final = -1


def ones(count: int) -> int:
    """Return the bitmap of the bits [0, count)."""
    return (1 << count) - 1


def spread(bits: int, width: int) -> int:
    """Return the bitmap in which `width` bits stand for each of `bits`."""
    if not bits & (bits + 1):
        return ones(bits.bit_length() * width)
    # By way of text: a loop over the bits takes thirty times as long, and twos to the n are parsed in linear time.
    return int(f"{bits:b}".replace("0", "0" * width).replace("1", "1" * width), 2)


def multiples(stride: int, first: int, behind: int) -> int:
    """Return the bitmap of the multiples of `stride` in [first, behind), with bit 0 standing for `first`."""
    gap = -first % stride
    count = -(-(behind - first - gap) // stride)
    if count <= 1:  # a stride can have a hundred million bits
        return 1 << gap if count == 1 else 0
    return ones(count * stride) // ones(stride) << gap


def lowest(bits: int) -> int:
    """Return the number of the lowest bit that is set, or -1."""
    return (bits & -bits).bit_length() - 1


def low_run(bits: int) -> int:
    """Return how many bits are set from bit 0 on."""
    return lowest(~bits)


def high_run(bits: int, count: int) -> int:
    """Return how many bits are set from bit `count - 1`, the last there is, downwards."""
    return count - (bits ^ ones(count)).bit_length()


def stretches(bits: int) -> Iterator[tuple[int, int]]:
    """Yield every maximal run [begin, end) of bits that are set, the lowest first: one step for each."""
    begin = 0
    while bits:
        gap = lowest(bits)
        length = low_run(bits >> gap)
        begin += gap
        yield begin, begin + length
        begin += length
        bits >>= gap + length


def first(bits: int, length: int, begins: int) -> int:
    """Return the lowest bit of `begins` from which on `length` bits are set, or -1."""
    have = 1
    while have < length and bits:
        more = min(have, length - have)
        bits &= bits >> more
        have += more
    return lowest(bits & begins)


def longest(bits: int, begins: int) -> int:
    """Return how many bits are set from some bit of `begins` on, at most."""
    powers = [bits]  # bit n of powers[k]: from n on, 2 ** k bits are set
    while shorter := powers[-1] & powers[-1] >> (1 << len(powers) - 1):
        powers.append(shorter)
    length = 0
    for power in reversed(range(len(powers))):
        longer = begins & powers[power] >> length
        if longer:
            begins = longer
            length += 1 << power
    return length
