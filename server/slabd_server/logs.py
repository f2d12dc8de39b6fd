"""The daemon's log: one line to standard error for each message, as text or as JSON.

Messages carry their facts as `extra=`; text shows them as `key=value`, JSON as members. The handler counts what it
wrote, by level, for the metrics. Owns the root logger's handlers, and nothing else.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from collections import Counter
from typing import IO, TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Format = Literal["text", "json"]

# What every record has; anything more came by `extra=`.
_STANDARD: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
LEVELS: Final = ("debug", "info", "warning", "error", "critical")


class LogHandler(logging.StreamHandler[IO[str]]):
    """A handler that counts the messages it has written, by the level's name in small letters."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self.written: Counter[str] = Counter(dict.fromkeys(LEVELS, 0))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message and count it."""
        super().emit(record)
        self.written[record.levelname.lower()] += 1


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z info daemon: message key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by a traceback if there is one."""
        facts = "".join(f" {key}={value!r}" for key, value in _extra(record).items())
        line = f"{_time(record)} {record.levelname.lower()} {_logger(record)}: {record.getMessage()}{facts}"
        traceback = _traceback(record, self)
        return f"{line}\n{traceback}" if traceback else line


class JsonFormatter(logging.Formatter):
    """One JSON object to a line: `time`, `level`, `logger`, `message`, the facts, and `traceback` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object. What JSON does not know is shown as its repr."""
        content: dict[str, Any] = {
            **_extra(record),
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": _logger(record),
            "message": record.getMessage(),
        }
        if traceback := _traceback(record, self):
            content["traceback"] = traceback
        return json.dumps(content, default=repr)


def configure(level: str, form: Format, stream: IO[str] | None = None) -> LogHandler:
    """Send what is at least as severe as `level` to `stream`, standard error by default, and nowhere else."""
    handler = LogHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for other in [each for each in root.handlers if isinstance(each, LogHandler)]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    return handler


def adjust(level: str, form: Format) -> None:
    """Log at another level and in another form from now on; what has been counted stays."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    for handler in root.handlers:
        if isinstance(handler, LogHandler):
            handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())


def written() -> Mapping[str, int]:
    """Return how many messages have been written at each level since `configure`."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogHandler):
            return dict(handler.written)
    return dict.fromkeys(LEVELS, 0)


def _time(record: logging.LogRecord) -> str:
    moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _logger(record: logging.LogRecord) -> str:
    return record.name.removeprefix("slabd_server.")


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _traceback(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
