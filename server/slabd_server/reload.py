"""Reading the configuration again while the daemon runs: what can change then does, and the rest is named.

What can change is how it logs. Everything else is about memory and sockets that clients have, and needs a restart.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Final

from slabd_server import logs
from slabd_server.notify import notify, notify_reloading
from slabd_server.options.declare import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from slabd_server.config import Config

RELOADABLE: Final = frozenset({"log_level", "log_format"})

log = logging.getLogger(__name__)


def reload(before: Config, read: Callable[[], Config]) -> Config:
    """Return the configuration that holds from now on; one that cannot be used changes nothing, and is logged."""
    notify_reloading()
    try:
        after = _adopted(before, read())
    except ConfigError as error:
        log.error("the configuration stays as it was: %s", error)  # noqa: TRY400 - the operator's mistake, not ours
        after = before
    notify(READY="1")
    return after


def _adopted(before: Config, wanted: Config) -> Config:
    changed = {field.name for field in dataclasses.fields(before) if _differ(before, wanted, field.name)}
    after = dataclasses.replace(before, **{name: getattr(wanted, name) for name in RELOADABLE})
    logs.adjust(after.log_level, after.log_format)
    log.info("the configuration was read again; changed: %s", ", ".join(sorted(changed & RELOADABLE)) or "nothing")
    if waiting := sorted(changed - RELOADABLE):
        log.warning("these change only with a restart: %s", ", ".join(waiting))
    return after


def _differ(one: Config, other: Config, name: str) -> bool:
    return bool(getattr(one, name) != getattr(other, name))
