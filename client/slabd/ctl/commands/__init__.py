"""The commands, one module for each noun of the contract, in the order in which `--help` lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from slabd.ctl.commands.check import CHECK
from slabd.ctl.commands.drain import DRAIN
from slabd.ctl.commands.heaps import CLASSES, HEAPS
from slabd.ctl.commands.leases import LEASES
from slabd.ctl.commands.sessions import EVICT, SESSIONS
from slabd.ctl.commands.status import HEALTH, STATUS

if TYPE_CHECKING:
    from slabd.ctl.command import Command

COMMANDS: Final[tuple[Command[Any], ...]] = (STATUS, SESSIONS, LEASES, HEAPS, CLASSES, CHECK, DRAIN, EVICT, HEALTH)
