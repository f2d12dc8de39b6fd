"""The daemon's log: its two forms, its level, and what it counts."""

from __future__ import annotations

import io
import json
import logging
import re
from typing import TYPE_CHECKING

import pytest

from slabd_server import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("slabd_server.daemon")


@pytest.fixture(autouse=True)
def root_logger_as_it_was() -> Iterator[None]:
    """Put the root logger back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def test_text_has_time_level_logger_message_and_facts() -> None:
    """One line, in UTC, with the facts behind the message."""
    stream = io.StringIO()
    logs.configure("info", "text", stream)
    log.info("session %d ended", 3, extra={"cause": "client_died", "blocks": 2})
    expected = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info daemon: session 3 ended cause='client_died' blocks=2\n"
    assert re.fullmatch(expected, stream.getvalue())


def test_json_has_the_same_as_members() -> None:
    """One object to a line, even for what JSON does not know and for messages of several lines."""
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    log.warning("two\nlines", extra={"blocks": 2, "who": {1}})
    log.info("next")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert {key: value for key, value in first.items() if key != "time"} == {
        "level": "warning",
        "logger": "daemon",
        "message": "two\nlines",
        "blocks": 2,
        "who": "{1}",
    }
    assert second["message"] == "next"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_is_shown(form: logs.Format) -> None:
    """Defects leave their traceback in the log."""
    stream = io.StringIO()
    logs.configure("info", form, stream)
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        log.exception("internal error")
    shown = stream.getvalue() if form == "text" else json.loads(stream.getvalue())["traceback"]
    assert "Traceback (most recent call last)" in shown
    assert "ZeroDivisionError: " in shown


def test_what_is_written_is_counted_by_level() -> None:
    """What is below the level is neither written nor counted."""
    logs.configure("warning", "text", io.StringIO())
    log.info("no")
    log.warning("one")
    log.warning("two")
    log.error("three")
    assert logs.written() == {"debug": 0, "info": 0, "warning": 2, "error": 1, "critical": 0}


def test_without_a_handler_nothing_was_written() -> None:
    """Before `configure` all counts are zero."""
    root = logging.getLogger()
    root.handlers[:] = [each for each in root.handlers if not isinstance(each, logs.LogHandler)]
    assert set(logs.written().values()) == {0}


def test_configuring_again_replaces_the_handler() -> None:
    """No line is written twice."""
    first, second = io.StringIO(), io.StringIO()
    logs.configure("info", "text", first)
    logs.configure("info", "text", second)
    log.info("once")
    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)
