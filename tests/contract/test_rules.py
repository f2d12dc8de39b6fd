"""Alerts and recording rules: valid, tested one by one, about what there is, each with a runbook."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tests.fixtures.exported import TARGET, strangers
from tests.fixtures.prometheus import needs_prometheus, promtool
from tests.fixtures.rules import DEPLOY, RULE_TESTS, alerts, records, rules, sections

every_rule = pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
every_alert = pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
RECORDED = {
    record["record"]: TARGET | ({"heap"} if record["record"].startswith("heap:") else set()) for record in records()
}


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "config", "prometheus.compose.yml"),
        ("check", "rules", "slabd.rules.yml"),
    ],
)
def test_promtool_finds_nothing(arguments: tuple[str, ...]) -> None:
    """In the configuration and in the rules."""
    status, said = promtool(*arguments, cwd=DEPLOY / "prometheus")
    assert status == 0, said


@needs_prometheus
def test_the_rules_do_what_their_tests_say() -> None:
    """By promtool's unit tests: with what each fires, and with what it does not."""
    status, said = promtool("test", "rules", RULE_TESTS)
    assert status == 0, said


@every_alert
def test_every_alert_is_tested_both_ways(alert: dict[str, Any]) -> None:
    """When it fires, with every annotation, and when it does not."""
    cases = [case for test in _tests() for case in test.get("alert_rule_test", ())]
    mine = [case for case in cases if case["alertname"] == alert["alert"]]
    assert {bool(case.get("exp_alerts")) for case in mine} == {True, False}


@pytest.mark.parametrize("record", records(), ids=lambda record: record["record"])
def test_every_recording_rule_is_tested(record: dict[str, Any]) -> None:
    """With a value that it has."""
    cases = [case for test in _tests() for case in test.get("promql_expr_test", ())]
    assert any(record["record"] in case["expr"] and case["exp_samples"] for case in cases if "exp_samples" in case)


def _tests() -> list[dict[str, Any]]:
    return list(yaml.safe_load(RULE_TESTS.read_text(encoding="utf-8"))["tests"])


@every_rule
def test_rules_are_about_what_there_is(rule: dict[str, Any]) -> None:
    """An alert on a metric or a label value that nobody exports looks healthy for ever."""
    assert strangers(rule["expr"], RECORDED) == []


@every_alert
def test_alerts_say_what_is_the_matter_and_what_to_do(alert: dict[str, Any]) -> None:
    """In a sentence, in a few, and in a section of the runbook that names the command to run."""
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert notes["description"].endswith(".")
    assert alert["labels"]["severity"] in ("critical", "warning")
    page, _, anchor = notes["runbook_url"].partition("#")
    assert page == "deploy/README.md"
    assert anchor == alert["alert"].lower()
    assert "slabctl " in sections()[anchor]
