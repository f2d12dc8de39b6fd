"""A real Prometheus scrapes a real daemon that is kept busy: what it is asked has answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemons import DaemonProcess, eventually
from tests.fixtures.dashboards import Asked, everything_asked
from tests.fixtures.exported import series
from tests.fixtures.prometheus import Prometheus, needs_prometheus, promtool
from tests.fixtures.rules import records
from tests.fixtures.samples import busy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = needs_prometheus

# These are about what need not happen: restarts, alerts, and ratios of nothing.
MAY_BE_EMPTY = {"Restarts", "Firing alerts"}


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """A daemon that is busy until the end of the module, with a heap that is full now and then."""
    with DaemonProcess(heap_size="24MiB") as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(daemon: DaemonProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the busy daemon for a while, in which a client has died."""
    meet: Path = tmp_path_factory.mktemp("meet") / "s"
    with Prometheus([daemon.status().metrics_address]) as running:
        eventually(lambda: running.query("slabd_serving"), "a first scrape, so that what follows shows in rates")
        with busy(daemon.address, meet):
            for what in ("slabd_sessions_ended_total", "slabd_lease_wait_duration_seconds_count"):
                eventually(lambda what=what: running.query(f"sum(increase({what}[20s])) > 0"), what)  # type: ignore[misc]
            yield running


def test_promtool_finds_nothing_to_blame(daemon: DaemonProcess) -> None:
    """Names, types, help and units are as Prometheus wants them."""
    assert promtool("check", "metrics", text=daemon.scrape()) == (0, "")


def test_a_busy_daemon_exports_what_an_empty_one_does(daemon: DaemonProcess, prometheus: Prometheus) -> None:
    """So what is held against an empty one's series is held against everybody's."""
    assert prometheus.query("up")
    names = {line.split("{")[0].split(" ")[0] for line in daemon.scrape().splitlines() if not line.startswith("#")}
    assert names == set(series())


@pytest.mark.parametrize("asked", everything_asked(), ids=lambda asked: asked.where)
def test_panels_have_data(prometheus: Prometheus, asked: Asked) -> None:
    """Each query of each panel, variable and annotation is answered, over time, and with numbers."""
    expr = asked.filled()
    if asked.where.rpartition(": ")[2] in MAY_BE_EMPTY:
        prometheus.query_range(expr)
        return
    eventually(
        lambda: any(point[1] != "NaN" for found in prometheus.query_range(expr) for point in found["values"]), expr
    )


@pytest.mark.parametrize("record", records(), ids=lambda record: record["record"])
def test_rules_are_recorded(prometheus: Prometheus, record: dict[str, str]) -> None:
    """Each recording rule has a value for a busy daemon."""
    eventually(lambda: prometheus.query(record["record"]), record["record"])


def test_a_healthy_daemon_fires_no_alert(prometheus: Prometheus) -> None:
    """Above all, its books balance in every scrape."""
    firing = {name for name, state in prometheus.alerts().items() if state == "firing"}
    assert firing <= {"SlabdClientsDying"}
    unbalanced = "sum without (state) (slabd_heap_state_bytes) != slabd_heap_size_bytes"
    assert not prometheus.query_range(unbalanced)
