"""What a scrape says: everything has help, no label is unbounded, and nothing is there that nobody counts."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tests.fixtures.engines import UID, make_heap
from tests.fixtures.registries import full_registry

from slabd_proto.lane import Verb
from slabd_server.core.engine import Engine
from slabd_server.core.figures import figures
from slabd_server.core.histogram import Histogram
from slabd_server.core.records import Access, LeaseItem, Peer, SessionKey
from slabd_server.metrics.heaps import HeapCollector
from slabd_server.metrics.lag import LoopLag
from slabd_server.metrics.snapshot import Snapshot
from slabd_server.metrics.table import exported_name, labels_of, markdown_table

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from slabd_server.core.served import ServedHeap

LABELS = {
    *("heap", "state", "size_class", "direction", "reason", "cause", "result", "op", "level", "version"),
    *("grpc_type", "grpc_service", "grpc_method", "grpc_code"),
    *("generation", "implementation", "major", "minor", "patchlevel"),
}


async def families(engine: Engine | None = None) -> dict[str, Metric]:
    """Return what a daemon exports, by name."""
    with full_registry(engine) as (registry, _):
        collected = await asyncio.to_thread(lambda: list(registry.collect()))
    return {exported_name(family): family for family in collected}


def session_of(engine: Engine, number: int) -> SessionKey:
    """Open a session of a process that is like no other."""
    secret = number.to_bytes(16, "little")
    session = engine.open_session(
        "",
        name=f"n{number}",
        access=Access.READ_WRITE,
        peer=Peer(pid=number, uid=UID),
        attached=True,
        secret=secret,
        now=0,
    )
    return SessionKey(session.id, secret)


async def test_every_metric_has_help_and_a_sample_and_known_labels() -> None:
    """From the start, so that the first event shows in rate()."""
    for name, family in (await families()).items():
        assert family.documentation.strip(), name
        assert family.samples, name
        assert set(labels_of(family)) <= LABELS, name


async def test_labels_do_not_grow_with_use() -> None:
    """Sessions and leases add no series."""
    engine = Engine([make_heap()])
    before = {name: len(family.samples) for name, family in (await families(engine)).items()}
    for number in range(20):
        engine.lease(session_of(engine, number), [LeaseItem(100 * number + 1)], now=0)
    after = {name: len(family.samples) for name, family in (await families(engine)).items()}
    assert after == before


async def test_several_heaps_are_apart() -> None:
    """Each has its own series."""
    found = await families(Engine([make_heap("a"), make_heap("b", size=64 * 1024)]))
    sizes = {sample.labels["heap"]: sample.value for sample in found["slabd_heap_size_bytes"].samples}
    assert sizes == {"a": 1024 * 1024, "b": 64 * 1024}


async def test_the_snapshot_is_taken_on_the_loop_and_nothing_else_is() -> None:
    """Rendering in the loop's thread would stall it; a snapshot in another would be torn."""
    taken: list[threading.Thread] = []
    with full_registry() as (registry, dispatcher):
        clock = dispatcher.now

        def noted() -> float:
            taken.append(threading.current_thread())
            return clock()

        dispatcher.now = noted  # type: ignore[misc]
        await asyncio.to_thread(generate_latest, registry)
    assert set(taken) == {threading.main_thread()}


async def test_openmetrics_can_be_read() -> None:
    """By the strict parser of the client library."""
    with full_registry() as (registry, _):
        text = (await asyncio.to_thread(generate_openmetrics, registry)).decode()
    found = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    assert {family.name for family in found} >= {"slabd_used_bytes", "slabd_build"}


async def test_serving_ends_with_draining() -> None:
    """The gauge follows the engine."""
    engine = Engine([make_heap()])
    assert (await families(engine))["slabd_serving"].samples[0].value == 1
    engine.drain()
    assert (await families(engine))["slabd_serving"].samples[0].value == 0


def test_lanes_are_exported_when_they_are_counted() -> None:
    """And not before: a constant zero would look like a lane that nobody uses."""
    heap = make_heap()
    without = collected(heap)
    tallies = heap.books.tallies
    tallies.lane_operations, tallies.lane_doorbells = {"share": 3}, 2
    tallies.cache_hits, tallies.cache_misses, tallies.cached_class_blocks = 9, 1, {}
    with_lane = collected(heap)
    assert set(with_lane) - set(without) == {
        *("slabd_class_cached_blocks", "slabd_lane_operations", "slabd_lane_doorbells"),
        *("slabd_cache_hits", "slabd_cache_misses"),
    }
    operations = {sample.labels["op"]: sample.value for sample in with_lane["slabd_lane_operations"].samples}
    assert operations == {**{verb.name.lower(): 0 for verb in Verb}, "share": 3}


def test_no_class_has_more_cached_than_granted() -> None:
    """Clients say how much they have cached, and of which sizes; what cannot be is not exported, nor is a new label."""
    heap = make_heap()
    engine = Engine([heap])
    engine.lease(session_of(engine, 1), [LeaseItem(64), LeaseItem(64), LeaseItem(64), LeaseItem(50_000)], now=0)
    heap.books.tallies.cached_class_blocks = {64: 2, 0: 7, 77: 1}
    found = {s.labels["size_class"]: s.value for s in collected(heap)["slabd_class_cached_blocks"].samples}
    assert {name: number for name, number in found.items() if number} == {"64": 2, "large": 1}
    assert set(found) == {"64", "128", "256", "512", "1024", "2048", "4096", "large"}


def collected(heap: ServedHeap) -> dict[str, Metric]:
    """Return the families of a snapshot of one heap."""
    snapshot = Snapshot((figures(heap, 0.0),), Histogram((1.0,)).copy(), serving=True, seconds=0.0)
    return {family.name: family for family in HeapCollector(lambda: snapshot, {}).collect()}


async def test_the_loops_lag_is_looked_at() -> None:
    """Again and again, until it is stopped; a loop that is held up is late."""
    lag = LoopLag(period=0.001)
    while not sum(lag.copy().counts):  # noqa: ASYNC110 - it counts, and tells nobody
        await asyncio.sleep(0.001)
    threading.Event().wait(0.05)
    while lag.copy().sum < 0.04:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    lag.stop()
    seen = lag.copy()
    await asyncio.sleep(0.02)
    assert lag.copy() == seen


async def test_the_table_has_a_row_for_each() -> None:
    """No cell breaks it."""
    found = await families()
    _, _, *rows = markdown_table(found.values()).splitlines()
    assert [row.split("`")[1] for row in rows] == list(dict.fromkeys(row.split("`")[1] for row in rows))
    assert {row.split("`")[1] for row in rows} == set(found)
    assert {row.count("|") for row in rows} == {5}
