"""What is asked of Prometheus: targets, and the selectors that every query has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
HEAP: Final = 'job=~"$job",instance=~"$instance",heap=~"$heap"'
DAEMON: Final = 'job=~"$job",instance=~"$instance"'


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression. `HEAP` and `DAEMON` in it stand for the selectors of the variables."""

    expr: str
    legend: str = "{{instance}} {{heap}}"
    instant: bool = False
    heatmap: bool = False

    def target(self, ref: str) -> dict[str, Any]:
        """Return it as Grafana has it."""
        kind = {"instant": True, "range": False} if self.instant else {"instant": False, "range": True}
        table = self.instant and not self.legend
        return {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": self.expr.replace("HEAP", HEAP).replace("DAEMON", DAEMON),
            "format": "heatmap" if self.heatmap else "table" if table else "time_series",
            "legendFormat": "{{le}}" if self.heatmap else self.legend or "__auto",
            "refId": ref,
            **kind,
        }


def instant(expr: str, legend: str = "") -> Query:
    """Ask for the last value alone: for stats, and without a legend for tables."""
    return Query(expr, legend, instant=True)


def quantiles(metric: str, by: str = "", selector: str = "HEAP") -> list[Query]:
    """Ask for the median and the tails of a histogram."""
    within = f"le{by and ', '}{by}"
    rate = f"sum by ({within}) (rate({metric}_bucket{{{selector}}}[$__rate_interval]))"
    shares = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
    return [Query(f"histogram_quantile({share}, {rate})", name) for share, name in shares]


def states() -> list[Query]:
    """Ask for the bytes in each state: what is used first, so that it lies at the bottom of a stack."""
    names = ("leased", "shared", "cached", "quarantined", "slab_free", "free")
    return [Query(f'sum(slabd_heap_state_bytes{{HEAP,state="{name}"}})', name) for name in names]


def heat(metric: str) -> list[Query]:
    """Ask for a histogram's buckets over time."""
    return [Query(f"sum by (le) (rate({metric}_bucket{{HEAP}}[$__rate_interval]))", heatmap=True)]
