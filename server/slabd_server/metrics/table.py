"""Every metric in a table, as deploy/README.md has it: made from what a daemon exports, so that none is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

_HEAD: Final = "| metric | type | labels | meaning |\n|---|---|---|---|\n"
# Labels whose values are the same everywhere, and so are worth listing. Those of others depend on the configuration.
_LISTED: Final = frozenset({"state", "direction", "reason", "cause", "result", "op", "level"})
_SUFFIXES: Final = {"counter": "_total", "info": "_info"}


def markdown_table(families: Iterable[Metric]) -> str:
    """Return a row for each family: ours first, then those of gRPC, then those of the process and of Python."""
    rows = sorted((_group(family.name), index, _row(family)) for index, family in enumerate(families))
    return _HEAD + "".join(row for _, _, row in rows)


def exported_name(family: Metric) -> str:
    """Return the name under which Prometheus knows a family."""
    suffix = _SUFFIXES.get(family.type, "")
    return family.name if family.name.endswith(suffix) else family.name + suffix


def labels_of(family: Metric) -> dict[str, list[str]]:
    """Return a family's labels with the values that occur, in their order."""
    found: dict[str, dict[str, None]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            if label not in ("le", "quantile"):
                found.setdefault(label, {})[value] = None
    return {label: list(values) for label, values in found.items()}


def _group(name: str) -> int:
    return next((place for place, prefix in enumerate(("slabd_", "grpc_", "process_")) if name.startswith(prefix)), 3)


def _row(family: Metric) -> str:
    labels = ", ".join(_labels(family))
    return f"| `{exported_name(family)}` | {family.type} | {labels} | {family.documentation} |\n"


def _labels(family: Metric) -> Iterator[str]:
    for label, values in labels_of(family).items():
        yield f"{label} = {' or '.join(values)}" if label in _LISTED else label
