"""The dashboards are what their generator makes, ask for what there is, and keep the rules of good ones."""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from deploy.grafana.boards.thresholds import RED_ABOVE
from deploy.grafana.generate import rendered
from tests.fixtures.dashboards import DASHBOARDS, FILES, everything_asked, load, panels, queries
from tests.fixtures.exported import strangers
from tests.fixtures.promql import parse
from tests.fixtures.rules import alerts

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.dashboards import Asked

every_dashboard = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
every_query = pytest.mark.parametrize("asked", everything_asked(), ids=lambda asked: asked.where)


def test_the_dashboards_are_made_by_their_generator() -> None:
    """If this fails: python -m deploy.grafana.generate."""
    assert {path.name: path.read_text(encoding="utf-8") for path in FILES} == rendered()
    assert len(FILES) == 4
    assert DASHBOARDS.is_dir()


@every_query
def test_queries_parse(asked: Asked) -> None:
    """By a real parser of PromQL, with Grafana's variables filled in."""
    parse(asked.filled())


@every_query
def test_queries_ask_for_what_there_is(asked: Asked) -> None:
    """A panel about a metric or a label that nobody exports is empty for ever."""
    assert strangers(asked.filled(), {}) == []


@every_query
def test_queries_are_about_what_is_chosen(asked: Asked) -> None:
    """Every selector follows the variables."""
    assert asked.expr.count("{") >= 1 or asked.where.endswith("$job")
    for selector in re.findall(r"\{([^}]*)\}", asked.expr):
        assert 'job=~"$job"' in selector


@every_query
def test_rates_follow_the_resolution(asked: Asked) -> None:
    """A fixed range is empty when the scrape interval is longer, and hides what happened when the panel is coarser."""
    for function in ("rate", "increase"):
        for span in re.findall(rf"\b{function}\([^\[]*\[([^\]]*)\]", asked.expr):
            assert span == "$__rate_interval"


@every_dashboard
def test_dashboards_keep_the_rules(path: Path) -> None:
    """What is the same for all: identity, tags, no editing, shared crosshair, links, and where data comes from."""
    model = load(path)
    assert path.stem == model["uid"]
    assert model["tags"] == ["slabd"]
    assert model["editable"] is False
    assert model["graphTooltip"] == 1
    assert model["links"][0]["tags"] == ["slabd"]
    assert [each["name"] for each in model["annotations"]["list"]] == ["Restarts", "Firing alerts"]
    assert "id" not in model
    names = [variable["name"] for variable in model["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "heap"]


@every_dashboard
def test_variables_can_be_all(path: Path) -> None:
    """With a value that matches everything that has the label, refreshed when the time changes."""
    for variable in load(path)["templating"]["list"][1:]:
        assert variable["refresh"] == 2
        assert variable["multi"] is variable["includeAll"]
        assert variable.get("allValue") == (".+" if variable["multi"] else None)


@every_dashboard
def test_panels_say_what_they_show(path: Path) -> None:
    """Each has a title of its own, a description, a unit, a data source that can be chosen, and a query."""
    model = load(path)
    shown = list(panels(model))
    assert len({panel["title"] for panel in shown}) == len(shown)
    for panel in shown:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
    assert len({panel["id"] for panel in model["panels"]}) == len(model["panels"])


@every_dashboard
def test_panels_do_not_overlap(path: Path) -> None:
    """They lie in the grid of 24 columns, and no two share a cell."""
    places = [panel["gridPos"] for panel in load(path)["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        assert not _overlap(one, other), (one, other)


@every_dashboard
def test_rows_are_full(path: Path) -> None:
    """A gap at the right of a row looks like a panel that failed to load."""
    ends: dict[int, int] = {}
    for panel in load(path)["panels"]:
        place = panel["gridPos"]
        ends[place["y"]] = ends.get(place["y"], 0) + place["w"]
    assert set(ends.values()) == {24}


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


@pytest.mark.parametrize("name", RED_ABOVE)
def test_red_begins_where_the_alert_does(name: str) -> None:
    """Panel and alert say the same."""
    assert f"> {RED_ABOVE[name]}" in _alert(name)["expr"]


def _alert(name: str) -> dict[str, Any]:
    return next(alert for alert in alerts() if alert["alert"] == name)


@every_dashboard
def test_every_panel_has_its_own_question(path: Path) -> None:
    """No query is asked twice by one panel."""
    asked = [(each.where.rsplit(" ", 1)[0], each.expr) for each in queries(path)]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("slabd_used_bits", "no metric slabd_used_bits"),
        ('slabd_used_bytes{pid="1"}', "no label pid of slabd_used_bytes"),
        ('slabd_sessions{state="asleep"}', "no state='asleep' of slabd_sessions"),
        ('slabd_sessions{state=~"active|asleep"}', "no state='asleep' of slabd_sessions"),
        ('slabd_sessions{state!="asleep"}', "no state='asleep' of slabd_sessions"),
        ("sum by (colour) (slabd_leases)", "no label colour to group by"),
        ("up / on (colour) up", "no label colour to group by"),
    ],
)
def test_what_there_is_not_is_noticed(expr: str, problem: str) -> None:
    """The tests above can fail."""
    assert strangers(expr, {}) == [problem]
