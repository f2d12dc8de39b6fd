"""Runs of bits: each function against the same thing done bit by bit."""

from __future__ import annotations

import random

import pytest

from slabd_server.core import runs

BITMAPS = [random.Random(n).getrandbits(count) for count in (1, 5, 64, 300) for n in range(40)]
# Random bits have short runs only; these have long ones.
BITMAPS += [a & (a >> 1) | b << 90 for a, b in zip(BITMAPS[-40:], BITMAPS[-80:-40], strict=True)]
BITMAPS += [0, 1, runs.ones(300), runs.ones(300) ^ 1 << 150, runs.ones(299) << 1]


def text(bits: int, count: int) -> str:
    """Write bits with bit 0 first."""
    return f"{bits:0{count}b}"[::-1]


def length_at(bits: int, begin: int) -> int:
    """Count how many bits are set from one on."""
    length = 0
    while bits >> begin + length & 1:
        length += 1
    return length


@pytest.mark.parametrize("width", [1, 4, 5, 224])
def test_spreading_repeats_each_bit(width: int) -> None:
    """Each bit becomes as many as a slot has quanta, those that are not set too."""
    for bits in BITMAPS:
        assert text(runs.spread(bits, width), 400 * width) == "".join(c * width for c in text(bits, 400))


def test_the_ends_of_a_bitmap() -> None:
    """Runs from the first bit upwards and from the last one downwards, of full and of empty bitmaps too."""
    for bits in BITMAPS:
        count = max(bits.bit_length(), 1)
        for top in (count, count + 3):
            assert runs.low_run(bits) == length_at(bits, 0)
            assert runs.high_run(bits, top) == len(text(bits, top)) - len(text(bits, top).rstrip("1"))


def test_stretches_are_the_maximal_runs() -> None:
    """As a split of the text at its zeros finds them."""
    for bits in BITMAPS:
        found = list(runs.stretches(bits))
        assert [end - begin for begin, end in found] == [len(run) for run in text(bits, 400).split("0") if run]
        assert sum(runs.ones(end) ^ runs.ones(begin) for begin, end in found) == bits


@pytest.mark.parametrize("stride", [1, 2, 4, 64, 256, 4096])
@pytest.mark.parametrize("first", [0, 1, 63, 64, 65, 4095, 4096, 1 << 29])
def test_multiples_are_those_of_the_absolute_numbers(stride: int, first: int) -> None:
    """Bit n is set where `first + n` is a multiple."""
    behind = first + 600
    wanted = sum(1 << n - first for n in range(first, behind) if n % stride == 0)
    assert runs.multiples(stride, first, behind) == wanted


@pytest.mark.parametrize("stride", [1, 3, 16])
def test_the_longest_run_and_the_first_that_is_long_enough(stride: int) -> None:
    """Both from multiples on only; one more than the longest is found nowhere."""
    begins = runs.multiples(stride, 2, 400)
    for bits in BITMAPS:
        lengths = {n: length_at(bits, n) for n in range(400) if begins >> n & 1}
        longest = max(lengths.values())
        assert runs.longest(bits, begins) == longest
        assert runs.first(bits, longest + 1, begins) == runs.NONE
        for length in {1, 2, 3, longest} - {0}:
            wanted = next((n for n, has in lengths.items() if has >= length), runs.NONE)
            assert runs.first(bits, length, begins) == wanted
