"""Tables: several instant queries, joined by the labels they have in common, a column each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.grafana.boards.panels import Panel, by_name
from deploy.grafana.boards.queries import instant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, the query behind it, and the unit. With `limits` its cells are coloured."""

    title: str
    expr: str
    unit: str = "short"
    limits: Mapping[str, Any] | None = None
    gauge: bool = False


def table(
    title: str, description: str, keys: Mapping[str, str], columns: Sequence[Column], *, sort: str, **more: Any
) -> Panel:
    """Join the columns by the labels in `keys`, which maps them to their headings."""
    refs = [chr(ord("A") + index) for index in range(len(columns))]
    renamed = {
        **keys,
        **{f"Value #{ref}": column.title for ref, column in zip(refs, columns, strict=True)},
    }
    order = {name: index for index, name in enumerate(renamed)}
    hidden = {"Time": True, **{name: True for name in ("__name__", "job") if name not in keys}}
    organise = {"excludeByName": hidden, "indexByName": order, "renameByName": renamed, "includeByName": {}}
    return Panel(
        title=title,
        description=description,
        type="table",
        unit="short",
        queries=[instant(column.expr) for column in columns],
        transformations=[{"id": "merge", "options": {}}, {"id": "organize", "options": organise}],
        defaults={
            # Grafana's own least width, 150, would have these scroll.
            "custom": {
                "align": "auto",
                "cellOptions": {"type": "auto"},
                "inspect": False,
                "filterable": False,
                "minWidth": 80,
            },
            "color": {"mode": "thresholds"},
        },
        # Labels that look like numbers are still names.
        overrides=[*(by_name(title, unit="string") for title in keys.values()), *map(_formatted, columns)],
        options={
            "showHeader": True,
            "cellHeight": "sm",
            "sortBy": [{"displayName": sort, "desc": True}],
        },
        **more,
    )


def _formatted(column: Column) -> dict[str, Any]:
    properties: dict[str, Any] = {"unit": column.unit}
    if column.limits is not None:
        properties["thresholds"] = dict(column.limits)
        properties["custom_cellOptions"] = {"type": "color-text"}
    if column.gauge:
        properties |= {"min": 0, "max": 1, "custom_cellOptions": {"type": "gauge", "mode": "basic"}}
    return by_name(column.title, **properties)
