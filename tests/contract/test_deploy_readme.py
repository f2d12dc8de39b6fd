"""deploy/README.md says what there is: the table of metrics, the files, the commands."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from tests.fixtures.exported import series
from tests.fixtures.registries import full_registry
from tests.fixtures.rules import README, alerts, sections

from slabd.ctl.parser import build_parser
from slabd_server.metrics.table import markdown_table

TEXT = README.read_text(encoding="utf-8")
DEPLOY = README.parent


async def test_the_table_of_metrics_is_made_from_what_is_exported() -> None:
    """If this fails: put what is expected here between the two comments."""
    with full_registry() as (registry, _):
        table = markdown_table(await asyncio.to_thread(lambda: list(registry.collect())))
    found = re.search(r"^<!-- metrics: .*?-->\n(.*?)<!-- /metrics -->$", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    assert found[1] == table


def test_what_is_said_to_be_missing_is_missing() -> None:
    """Whoever adds it says so."""
    _, missing = TEXT.split("**Not there yet**")
    assert set(re.findall(r"`(slabd_\w+)`", missing)) & set(series()) == {"slabd_lease_rejections_total"}
    assert "reason = quota" in missing
    assert "quota" not in series()["slabd_lease_rejections_total"]["reason"]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_links_lead_somewhere(target: str) -> None:
    """To a file that there is."""
    assert (DEPLOY / target).exists()


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([^)]+)\)", TEXT))))
def test_links_within_lead_somewhere(anchor: str) -> None:
    """To a section that there is."""
    assert anchor in sections()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b((?:deploy|tests)/[\w/.-]+\w)", TEXT))))
def test_paths_exist(path: str) -> None:
    """A file that is named is there."""
    assert (Path(DEPLOY).parent / path).exists()


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    """In the runbook."""
    assert {name for name in sections() if name.startswith("slabd")} == {alert["alert"].lower() for alert in alerts()}


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`slabctl ([^`]+)`", TEXT))))
def test_commands_can_be_typed(command: str) -> None:
    """As they stand, but for the number that is different each time."""
    build_parser().parse_args(command.replace(" N", " 7").split())
