"""`slabctl heaps` and `slabctl classes`: how full, how fragmented, in which sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from slabd.ctl.command import Command
from slabd.ctl.table import Column, facts, table
from slabd.ctl.units import human_bytes, human_count, percent
from slabd_proto.v1.admin_pb2 import ListHeapsResponse

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from slabd.ctl.terminal import Style
    from slabd_proto.v1.admin_pb2 import HeapInfo, SizeClassInfo
    from slabd_proto.v1.pool_pb2 import HeapStats, StateBytes

_BOOKS: tuple[Column[HeapStats], ...] = (
    Column("HEAP", lambda heap: heap.name),
    Column("SIZE", lambda heap: human_bytes(heap.total_bytes), right=True),
    Column("USED", lambda heap: human_bytes(heap.used_bytes), right=True),
    Column("USED %", lambda heap: percent(heap.used_bytes, heap.total_bytes), right=True),
    Column("AVAILABLE", lambda heap: human_bytes(heap.available_bytes), right=True),
    Column("PEAK", lambda heap: human_bytes(heap.used_peak_bytes), right=True),
    Column("LEASES", lambda heap: human_count(heap.leases), right=True),
    Column("WAITERS", lambda heap: human_count(heap.waiters), right=True),
    Column("SESSIONS", lambda heap: human_count(heap.sessions), right=True),
)


def books_table(heaps: Iterable[HeapStats], style: Style) -> list[str]:
    """Return the table of the heaps' books."""
    return table(_BOOKS, heaps, style)


def state_text(states: StateBytes) -> str:
    """Return the bytes by state, in one line."""
    parts = (
        ("leased", states.leased),
        ("shared", states.shared),
        ("cached", states.cached),
        ("quarantined", states.quarantined),
        ("free", states.free),
        ("free in slabs", states.slab_free),
    )
    return " · ".join(f"{human_bytes(count)} {name}" for name, count in parts)


def _heap_lines(answer: ListHeapsResponse, _arguments: argparse.Namespace, style: Style) -> list[str]:
    lines = books_table((heap.stats for heap in answer.heaps), style)
    for heap in answer.heaps:
        lines += ["", style.bold(heap.stats.name), *facts(_heap_facts(heap), style)]
    return lines


def _heap_facts(heap: HeapInfo) -> list[tuple[str, str]]:
    stats = heap.stats
    return [
        ("bytes", state_text(stats.states)),
        ("asked for", f"{human_bytes(stats.requested_bytes)} of the {human_bytes(stats.used_bytes)} used"),
        ("free ranges", f"{human_count(heap.free_ranges)}, the largest {human_bytes(stats.largest_free_block_bytes)}"),
        ("memory", f"{human_bytes(heap.resident_bytes)} resident, {heap.page_backing}{_prefaulted(heap)}"),
    ]


def _prefaulted(heap: HeapInfo) -> str:
    return ", touched at start" if heap.prefault else ""


HEAPS = Command(
    name="heaps",
    summary="list heaps: size, bytes by state, fragmentation, backing",
    answer=ListHeapsResponse,
    call=lambda connection, _: connection.heaps(),
    lines=_heap_lines,
)


class _ClassRow(NamedTuple):
    heap: str
    size_class: SizeClassInfo


_CLASSES: tuple[Column[_ClassRow], ...] = (
    Column("HEAP", lambda row: row.heap),
    Column("BLOCK SIZE", lambda row: human_bytes(row.size_class.size) if row.size_class.size else "pages", right=True),
    Column("SLABS", lambda row: human_count(row.size_class.slabs) if row.size_class.size else "-", right=True),
    Column("USED BLOCKS", lambda row: human_count(row.size_class.used_blocks), right=True),
    Column(
        "FREE BLOCKS", lambda row: human_count(row.size_class.free_blocks) if row.size_class.size else "-", right=True
    ),
    Column("USED", lambda row: human_bytes(_used(row)) if row.size_class.size else "-", right=True),
)


def _used(row: _ClassRow) -> int:
    return row.size_class.size * row.size_class.used_blocks


def _class_lines(answer: ListHeapsResponse, _arguments: argparse.Namespace, style: Style) -> list[str]:
    rows = (_ClassRow(heap.stats.name, each) for heap in answer.heaps for each in heap.size_classes)
    return table(_CLASSES, rows, style)


CLASSES = Command(
    name="classes",
    summary="list the size classes of each heap",
    answer=ListHeapsResponse,
    call=lambda connection, _: connection.heaps(),
    lines=_class_lines,
)
