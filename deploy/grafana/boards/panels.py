"""Panels, each a kind of picture with its defaults: what a dashboard says is what is asked, in which unit, and why.

A panel knows its width and height, not its place: `layout` gives it one.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from deploy.grafana.boards import thresholds
from deploy.grafana.boards.queries import DATASOURCE, Query, states

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Drawn = Literal["lines", "stack"]

# What the states, causes and codes look like, the same on every dashboard.
COLOURS: Final[Mapping[str, str]] = {
    "leased": "blue",
    "shared": "purple",
    "cached": "light-blue",
    "quarantined": "red",
    "free": "dark-green",
    "slab_free": "light-green",
    "size": "text",
    "released": "green",
    "recalled": "super-light-blue",
    "transferred": "purple",
    "session_closed": "dark-blue",
    "client_died": "red",
    "expired": "orange",
    "evicted": "yellow",
    "p50": "green",
    "p90": "yellow",
    "p99": "red",
    "used": "blue",
    "peak": "orange",
    "granted": "text",
    "hits": "green",
    "misses": "orange",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. `options` and `custom` are Grafana's, for its type."""

    title: str
    description: str
    type: str
    unit: str
    queries: Sequence[Query]
    width: int = 8
    height: int = 8
    thresholds: Mapping[str, Any] = field(default_factory=thresholds.none)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    transformations: Sequence[Mapping[str, Any]] = ()

    def model(self, number: int, x: int, y: int) -> dict[str, Any]:
        """Return it as Grafana has it, at a place."""
        refs = zip(self.queries, string.ascii_uppercase, strict=False)
        defaults = {"unit": self.unit, "thresholds": dict(self.thresholds), "mappings": [], **self.defaults}
        return {
            "id": number,
            "type": self.type,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "targets": [query.target(ref) for query, ref in refs],
            "fieldConfig": {"defaults": defaults, "overrides": list(self.overrides)},
            "options": dict(self.options),
            "transformations": list(self.transformations),
        }

    def sized(self, width: int, height: int) -> Panel:
        """Return it in another size."""
        return replace(self, width=width, height=height)


def stat(title: str, description: str, unit: str, query: Query, **more: Any) -> Panel:
    """Show one number, large."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": more.pop("fields", ""), "values": False},
        "colorMode": "value",
        "graphMode": "none" if query.instant else "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": more.pop("text", "auto"),
        "wideLayout": True,
        "showPercentChange": False,
    }
    defaults = {"color": {"mode": "thresholds"}, **more.pop("defaults", {})}
    made = {"width": 3, "height": 4, "options": options, "defaults": defaults, **more}
    return Panel(title=title, description=description, type="stat", unit=unit, queries=[query], **made)


def graph(title: str, description: str, unit: str, queries: Sequence[Query], **more: Any) -> Panel:
    """Show values over time: lines, or areas on top of each other (`drawn="stack"`)."""
    drawn: Drawn = more.pop("drawn", "lines")
    limited = "thresholds" in more
    top = more.pop("top", _just_above_red(more["thresholds"]) if limited else None)
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 60 if drawn == "stack" else 10 if len(queries) == 1 and "{{" not in queries[0].legend else 0,
        "gradientMode": "none",
        "showPoints": "never",
        "spanNulls": False,
        "axisBorderShow": False,
        "axisPlacement": "auto",
        **({} if top is None else {"axisSoftMax": top}),
        "stacking": {"mode": "normal" if drawn == "stack" else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if limited else "off"},
    }
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    defaults = {"color": {"mode": "palette-classic"}, "min": 0, "custom": custom, **more.pop("defaults", {})}
    overrides = [*_coloured(queries), *more.pop("overrides", ())]
    return Panel(
        title=title,
        description=description,
        type="timeseries",
        unit=unit,
        queries=queries,
        defaults=defaults,
        options=options,
        overrides=overrides,
        **more,
    )


def memory_by_state() -> Panel:
    """Show where every byte of the chosen heaps is, below their size."""
    return graph(
        "Memory by state",
        "Where every byte is. The states are disjoint and add up to the dashed line, always.",
        "bytes",
        [*states(), Query("sum(slabd_heap_size_bytes{HEAP})", "size")],
        drawn="stack",
        overrides=[limit("size")],
        width=12,
        height=9,
    )


def heatmap(title: str, description: str, unit: str, queries: Sequence[Query], **more: Any) -> Panel:
    """Show a histogram over time: the darker, the more of them."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": "ops"},
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "steps": 64,
            "exponent": 0.5,
            "fill": "dark-orange",
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }
    return Panel(
        title=title, description=description, type="heatmap", unit=unit, queries=queries, options=options, **more
    )


def bars(title: str, description: str, unit: str, queries: Sequence[Query], **more: Any) -> Panel:
    """Show the last values beside each other, as horizontal bars."""
    options = {
        "displayMode": "basic",
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showUnfilled": True,
        "minVizHeight": 16,
        "minVizWidth": 8,
        "valueMode": "color",
        "namePlacement": "left",
        "sizing": "auto",
    }
    defaults = {"color": {"mode": "thresholds"}, "min": 0, **more.pop("defaults", {})}
    return Panel(
        title=title,
        description=description,
        type="bargauge",
        unit=unit,
        queries=queries,
        options=options,
        defaults=defaults,
        **more,
    )


def limit(name: str) -> dict[str, Any]:
    """Draw one series as a dashed line that is not stacked: the limit of the others."""
    return by_name(
        name,
        custom_stacking={"mode": "none", "group": "A"},
        custom_lineStyle={"dash": [10, 8], "fill": "dash"},
        custom_fillOpacity=0,
        custom_lineWidth=2,
    )


def by_name(name: str, **properties: Any) -> dict[str, Any]:
    """Override properties of the field with this name; `custom_x` stands for `custom.x`."""
    listed = [{"id": key.replace("custom_", "custom."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": "byName", "options": name}, "properties": listed}


def _just_above_red(limits: Mapping[str, Any]) -> float:
    """Return how far an axis reaches at least, so that the line where an alert fires is on it."""
    return float(limits["steps"][-1]["value"]) * 1.25


def _coloured(queries: Sequence[Query]) -> list[dict[str, Any]]:
    """Give what has a colour everywhere that colour here: by the whole legend, or by the label that the legend is."""
    if any(query.legend in ("{{state}}", "{{cause}}") for query in queries):
        names = list(COLOURS)
    else:
        names = [query.legend for query in queries if query.legend in COLOURS]
    return [by_name(name, color={"mode": "fixed", "fixedColor": COLOURS[name]}) for name in names]
