"""How a pool behaves: the options of `connect`, checked once, in one frozen record."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slabd.errors import InvalidArgument

if TYPE_CHECKING:
    from slabd.address import Address
    from slabd.channels import Tls

CONNECT_SECONDS: Final = 5.0
CALL_SECONDS: Final = 30.0
_NAME_BYTES: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of one pool. Times are in seconds."""

    address: Address
    heap: str = ""
    name: str | None = None
    read_only: bool = False
    lease_timeout: float | None = 0.0
    connect_timeout: float = CONNECT_SECONDS
    call_timeout: float = CALL_SECONDS
    call_sites: bool = True
    lane: bool = True
    cache_bytes: int | None = None
    prefault: bool = True
    tls: Tls | None = None

    @property
    def session_name(self) -> str:
        """What operators see: the given name, else the script's; empty, which leaves it to the daemon, without one."""
        if self.name is not None:
            return self.name
        script = os.path.basename(sys.argv[0]) if sys.argv else ""  # noqa: PTH119  # argv may be no path at all
        return "" if script == "-c" else script.encode(errors="replace")[:_NAME_BYTES].decode(errors="ignore")

    def __post_init__(self) -> None:
        if self.name is not None and len(self.name.encode()) > _NAME_BYTES:
            raise InvalidArgument(f"a session's name has at most {_NAME_BYTES} bytes, not {len(self.name.encode())}")
        if self.cache_bytes is not None and self.cache_bytes < 0:
            raise InvalidArgument(f"cache_bytes is at least 0, not {self.cache_bytes!r}")
        for what, seconds in (("connect_timeout", self.connect_timeout), ("call_timeout", self.call_timeout)):
            if not seconds > 0:
                raise InvalidArgument(f"{what} is a number of seconds above 0, not {seconds!r}")
