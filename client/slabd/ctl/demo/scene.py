"""The scene: a worker is killed while the daemon says what it has open, and its blocks are watched coming back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from slabd_proto.v1 import admin_pb2

if TYPE_CHECKING:
    from slabd.ctl.connection import Connection
    from slabd.ctl.demo.children import Child

_PATIENCE_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.0005
_ALL: Final = 2**32 - 1


class Stage(Enum):
    """How far the scene has come.

    BEFORE ─half is read─► CLEARING ─no block in use─► STAGING ─two batches are shared─► HOLDING ─it holds─► AFTER
    """

    BEFORE = "before"
    CLEARING = "clearing"
    STAGING = "staging"
    HOLDING = "holding"
    AFTER = "after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """What the daemon said before and after. Sizes are in bytes; `milliseconds` is from the signal to the books."""

    name: str
    pid: int
    blocks: int
    held_bytes: int
    used_bytes_before: int
    used_bytes_after: int
    bystander_blocks: int
    milliseconds: float
    problem: str = ""

    @property
    def reclaimed_bytes(self) -> int:
        """How many bytes came back."""
        return self.used_bytes_before - self.used_bytes_after


@dataclass(frozen=True, slots=True)
class _Held:
    """Which blocks a process alone has open, and which others are in use."""

    blocks: frozenset[tuple[int, int]]
    held_bytes: int
    others: frozenset[tuple[int, int]]


def kill(connection: Connection, victim: Child, blocks: int) -> Killed:
    """Kill a worker that holds `blocks` blocks, while nothing else moves, and wait until they are back."""
    held = _held_by(connection, victim.pid)
    before = _used(connection)
    began = time.perf_counter()
    victim.kill()
    after = _wait_for(connection, before - held.held_bytes, began + _PATIENCE_SECONDS)
    milliseconds = (time.perf_counter() - began) * 1000
    return Killed(
        name=victim.name,
        pid=victim.pid,
        blocks=len(held.blocks),
        held_bytes=held.held_bytes,
        used_bytes_before=before,
        used_bytes_after=after,
        bystander_blocks=len(held.others),
        milliseconds=milliseconds,
        problem=_problem(connection, victim.pid, held, blocks, before - after),
    )


def _problem(connection: Connection, pid: int, held: _Held, blocks: int, reclaimed: int) -> str:
    """Return what is not as promised; nothing, one hopes."""
    if len(held.blocks) != blocks:
        return f"it had opened {blocks} blocks, but the daemon knew of {len(held.blocks)}"
    if reclaimed != held.held_bytes:
        return f"it held {held.held_bytes} bytes, but {reclaimed} came back within {_PATIENCE_SECONDS} s"
    left = _held_by(connection, pid)
    if left.blocks & held.blocks or left.others & held.blocks:
        return f"{len((left.blocks | left.others) & held.blocks)} of its blocks are still granted"
    if left.others != held.others:
        return f"{len(held.others - left.others)} blocks of others were taken with it"
    return ""


def _held_by(connection: Connection, pid: int) -> _Held:
    sessions = {session.id for session in connection.sessions().sessions if session.pid == pid}
    mine: set[tuple[int, int]] = set()
    others: set[tuple[int, int]] = set()
    held_bytes = 0
    for lease in connection.leases(limit=_ALL).leases:
        name = (lease.block.ref.slot, lease.block.ref.generation)
        openers = set(lease.opened_by)
        if openers and openers <= sessions and not lease.session_id and not lease.pending_opens:
            mine.add(name)
            held_bytes += lease.block.size
        elif lease.state != admin_pb2.BLOCK_STATE_CACHED:  # those come and go as others are done with them
            others.add(name)
    return _Held(frozenset(mine), held_bytes, frozenset(others))


def _used(connection: Connection) -> int:
    return sum(heap.used_bytes for heap in connection.books().heaps)


def _wait_for(connection: Connection, target: int, until: float) -> int:
    while (used := _used(connection)) > target and time.perf_counter() < until:
        time.sleep(_POLL_SECONDS)
    return used
