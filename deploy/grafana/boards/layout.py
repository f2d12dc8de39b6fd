"""Dashboards: rows of panels in Grafana's grid of 24 columns, with variables, links and annotations around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploy.grafana.boards.queries import DATASOURCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.grafana.boards.panels import Panel

COLUMNS: Final = 24
TAG: Final = "slabd"


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading, from left to right."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One dashboard. `names` are the labels there are variables for; `many` says whether several can be chosen."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    names: Sequence[str] = ("job", "instance", "heap")
    many: bool = True
    since: str = "now-1h"

    def model(self) -> dict[str, Any]:
        """Return it as Grafana has it."""
        variables = [_variable(self.names, place, self.many) for place in range(len(self.names))]
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": 39,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": self.since, "to": "now"},
            "timepicker": {},
            "timezone": "",
            "fiscalYearStartMonth": 0,
            "weekStart": "",
            "liveNow": False,
            "links": [_LINK],
            "annotations": {"list": _ANNOTATIONS},
            "templating": {"list": [_SOURCE, *variables]},
            "panels": _placed(self.rows),
        }


def _placed(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Put the panels of each row beside each other, and onto a new line when there is no room left."""
    placed: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        placed.append(_heading(row.title, len(placed) + 1, y))
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            placed.append(panel.model(len(placed) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return placed


def _heading(title: str, number: int, y: int) -> dict[str, Any]:
    place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


_SOURCE: Final[dict[str, Any]] = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
    "hide": 0,
    "includeAll": False,
    "multi": False,
    "options": [],
    "refresh": 1,
    "regex": "",
    "skipUrlSync": False,
}


def _variable(names: Sequence[str], place: int, many: bool) -> dict[str, Any]:  # noqa: FBT001 - a dashboard's own
    """Return the variable for a label, whose values depend on those chosen before it; the job is always several."""
    name = names[place]
    several = many or name == "job"
    narrowed = ",".join(f'{before}=~"${before}"' for before in names[:place])
    chosen = {"current": {"selected": True, "text": ["All"], "value": ["$__all"]}, "allValue": ".+"}
    query = f"label_values(slabd_heap_size_bytes{f'{{{narrowed}}}' if narrowed else ''}, {name})"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": f"variable-{name}"},
        "hide": 0,
        "includeAll": several,
        "multi": several,
        "options": [],
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        **(chosen if several else {}),
    }


_LINK: Final = {
    "title": "slabd",
    "type": "dashboards",
    "tags": [TAG],
    "asDropdown": True,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "icon": "external link",
    "tooltip": "The other dashboards of slabd",
    "url": "",
}


def _annotation(name: str, colour: str, expr: str, title: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "expr": expr,
        "step": "60s",
        "titleFormat": title,
        "textFormat": text,
        "useValueForTime": "false",
    }


_ANNOTATIONS: Final = [
    _annotation(
        "Restarts",
        "purple",
        'changes(process_start_time_seconds{job=~"$job"}[1m]) > 0',
        "slabd has started",
        "{{instance}}",
    ),
    _annotation(
        "Firing alerts",
        "red",
        'ALERTS{alertstate="firing",alertname=~"Slabd.+",job=~"$job"}',
        "{{alertname}}",
        "{{instance}} {{heap}}",
    ),
]
