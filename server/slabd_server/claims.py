"""What clients say in their lanes, and how much of it is believed.

A client writes into its lane what it keeps cached, how often that was of use, and what each of its blocks is for. It
may write anything: a claim is bounded by what the daemon knows itself, and is no more than something to show.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from slabd_proto.lane import State
from slabd_server.core.purposes import Purpose
from slabd_server.core.records import BlockState, SessionState
from slabd_server.core.sizes import MAX_CLASS
from slabd_server.core.tallies import NO_CLASS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slabd_server.core.engine import Engine
    from slabd_server.core.records import SlotId
    from slabd_server.core.stats import LeaseInfo
    from slabd_server.core.tallies import Tallies
    from slabd_server.session_lane import Lane

# No client leases from its cache more often than this.
_HITS_PER_SECOND: Final = 20_000_000
# How many lanes are looked at in one step: some hundreds of microseconds.
SLICE: Final = 16


def note_claims(engine: Engine, lanes: Iterable[Lane], now: float) -> Iterator[None]:
    """Note for all heaps what their clients say they have cached, and how often that was of use.

    In steps, between which anything may happen.
    """
    by_class: dict[str, dict[int, int]] = {name: {} for name in engine.heaps}
    for number, lane in enumerate(tuple(lanes), 1):
        if number % SLICE == 0:
            yield
        if lane.segment.is_closed:
            continue
        count(lane, engine.heaps[lane.heap].books.tallies, now)
        session = engine.sessions.find(lane.session)
        if session is not None and session.state is SessionState.ACTIVE:
            claimed = lane.segment.claimed_classes()
            session.books.claim(session, *lane.cached(claimed))
            for size, blocks in claimed:
                key = size if size <= MAX_CLASS else NO_CLASS
                by_class[lane.heap][key] = by_class[lane.heap].get(key, 0) + blocks
    for name, served in engine.heaps.items():
        known = {each.size: 0 for each in served.books.allocator.classes()}
        found = {size: min(blocks, served.books.blocks) for size, blocks in by_class[name].items() if size in known}
        served.books.tallies.cached_class_blocks = known | found


def count(lane: Lane, tallies: Tallies, now: float) -> None:
    """Count what a client says it had at hand, and for what it had to ask, unless that cannot be true."""
    most = int((now - lane.counted_at) * _HITS_PER_SECOND)
    hits, misses = lane.segment.counts()
    if 0 <= hits - lane.hits <= most:
        tallies.cache_hits = (tallies.cache_hits or 0) + hits - lane.hits
        lane.hits = hits
    if 0 <= misses - lane.misses <= most:
        tallies.cache_misses = (tallies.cache_misses or 0) + misses - lane.misses
        lane.misses = misses
    lane.counted_at = now


def described(lane: Lane, info: LeaseInfo, now: float) -> LeaseInfo:
    """Add what its client says of a block: what for, how much of it, since when, or that it is not in use."""
    if info.state is BlockState.LEASED and lane.is_untaken(info.block.ref):
        return replace(info, state=BlockState.CACHED, label="", call_site="")
    state, size, _, since = lane.segment.usage(info.block.ref.slot)
    if state == State.CACHED and info.state is BlockState.LEASED:
        return replace(info, state=BlockState.CACHED, label="", call_site="", age=_age(now, since, info))
    if state != State.IN_USE or not size:
        return info
    block = info.block._replace(requested_size=min(size, info.block.size))
    return replace(info, block=block, age=_age(now, since, info))


def purpose_of(lane: Lane, slot: SlotId) -> Purpose | None:
    """Return what a client says a block is for; None when it says nothing."""
    state, _, purpose, _ = lane.segment.usage(slot)
    return Purpose(*lane.segment.purpose(purpose)) if state == State.IN_USE and purpose else None


def _age(now: float, since: float, info: LeaseInfo) -> float:
    """Return the time since then; no lease is older than its block's grant."""
    return min(max(now - since, 0.0), info.age) if since == since else info.age  # noqa: PLR0124 - NaN
