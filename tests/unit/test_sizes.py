"""Sizes, alignments and classes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from slabd_server.core.sizes import (
    MAX_CLASS,
    PAGE,
    SizeClasses,
    class_sizes,
    is_power_of_two,
    natural_alignment,
    page_rounded,
    pages_for,
    routes,
    slab_unit,
)

KINDS: tuple[SizeClasses, ...] = ("pow2", "fine")


def test_the_coarse_classes_are_the_seeds() -> None:
    """One class to a doubling, from 64 bytes to a page."""
    assert class_sizes("pow2") == (64, 128, 256, 512, 1024, 2048, 4096)


def test_the_fine_classes_are_four_to_a_doubling() -> None:
    """Twenty-five classes, the coarse ones among them, each at most a quarter above the last."""
    fine = class_sizes("fine")
    assert fine[:9] == (64, 80, 96, 112, 128, 160, 192, 224, 256)
    assert len(fine) == 25
    assert set(class_sizes("pow2")) <= set(fine)
    assert all(below < above <= below * 5 // 4 for below, above in pairwise(fine))


@pytest.mark.parametrize("kind", KINDS)
def test_every_small_layout_has_the_smallest_class_that_fits(kind: SizeClasses) -> None:
    """Brute force over each size and alignment up to a page agrees with the tables."""
    sizes = class_sizes(kind)
    table = routes(sizes)
    assert list(table) == [1 << shift for shift in range(13)]
    for alignment, route in table.items():
        for size in range(MAX_CLASS + 1):
            want = min(c for c in sizes if c >= size and c % alignment == 0)
            assert sizes[route[(size + 15) >> 4]] == want


@pytest.mark.parametrize("kind", KINDS)
def test_a_classes_alignment_is_that_of_its_offsets(kind: SizeClasses) -> None:
    """Multiples of a class size on top of a page have the alignment that the class is said to have."""
    for size in class_sizes(kind):
        alignment = natural_alignment(size)
        assert is_power_of_two(alignment)
        assert all(index * size % alignment == 0 for index in range(9))
        assert alignment <= PAGE


def test_only_powers_of_two_are_powers_of_two() -> None:
    """Zero, negatives and sums of powers are none."""
    assert [n for n in range(-4, 20) if is_power_of_two(n)] == [1, 2, 4, 8, 16]


def test_rounding_to_pages() -> None:
    """Nothing takes nothing, and a byte more than a page takes two."""
    assert [pages_for(n) for n in (0, 1, 4096, 4097, 8192)] == [0, 1, 1, 2, 2]
    assert [page_rounded(n) for n in (0, 1, 4096, 4097, 5 << 20)] == [0, 4096, 4096, 8192, 5 << 20]


@pytest.mark.parametrize("kind", KINDS)
def test_a_slab_unit_wastes_little(kind: SizeClasses) -> None:
    """No class wastes more than a thirty-second of its preferred slabs, and coarse classes nothing of one page."""
    for size in class_sizes(kind):
        whole = slab_unit(size) * PAGE
        assert whole % size * 32 <= whole
    assert {slab_unit(size) for size in class_sizes("pow2")} == {1}
    assert slab_unit(3072) == 3
