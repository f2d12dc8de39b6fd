"""What the value of an option may be: read from text or from TOML, refused with what is allowed, written back.

A kind's `from_text` reads flags and environment variables, its `from_toml` a value of the configuration file. Both
raise `NotAllowed`, which carries the offending value and says in words what would do. `plain` gives a value as JSON has
it, `written` as a person would put it into the file.
"""

from __future__ import annotations

import grp
import ipaddress
import math
import pwd
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

from slabd_server.units import exact_size, parse_size

T = TypeVar("T")
V = TypeVar("V")

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_MAX_PORT: Final = 65535
_OWNER: Final = 0o600


class NotAllowed(ValueError):
    """A value that an option may not have, and in words what it may."""

    def __init__(self, value: object, allowed: str) -> None:
        super().__init__(f"{value!r} is not {allowed}")
        self.value = value
        self.allowed = allowed


class TcpAddress(NamedTuple):
    """A host, by name or by number, and a port; 0 lets the kernel choose."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine can reach it. A name other than localhost could mean anything."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Kind(Generic[T]):
    """What an option's value may be."""

    metavar: str
    repeatable: bool = False

    @property
    def allowed(self) -> str:
        """What is allowed, in words that follow "is not"."""
        raise NotImplementedError

    def from_text(self, text: str) -> T:
        """Read a value from a flag or a variable.

        Raises:
            NotAllowed: `text` is none.
        """
        raise NotImplementedError

    def from_toml(self, value: object) -> T:
        """Read a value from the configuration file: unless a kind knows better, from a string.

        Raises:
            NotAllowed: `value` is none.
        """
        if isinstance(value, str):
            return self.from_text(value)
        raise self.refused(value)

    def plain(self, value: T) -> Any:
        """Return `value` as JSON has it."""
        return value

    def written(self, value: T) -> Any:
        """Return `value` as a person would write it into the file."""
        return self.plain(value)

    def words(self, value: T) -> str:
        """Return `value` in words, for help and tables."""
        written = self.written(value)
        if isinstance(written, list):
            return ", ".join(map(str, written)) or "none"
        if written is None:
            return "none"
        return str(written).lower() if isinstance(written, bool) else str(written)

    def refused(self, value: object) -> NotAllowed:
        """Return the error for `value`."""
        return NotAllowed(value, self.allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size(Kind[int]):
    """Bytes, with or without a unit."""

    minimum: int
    maximum: int
    multiple_of: int = 1
    metavar = "SIZE"

    @property
    def allowed(self) -> str:
        """What is allowed."""
        multiple = f"a multiple of {exact_size(self.multiple_of)}" if self.multiple_of > 1 else "a size"
        return f"{multiple} from {exact_size(self.minimum)} to {exact_size(self.maximum)}, such as 64MiB or 1GiB"

    def from_text(self, text: str) -> int:
        """Read `1GiB` or `1048576`."""
        try:
            return self._checked(parse_size(text), text)
        except ValueError:
            raise self.refused(text) from None

    def from_toml(self, value: object) -> int:
        """Read a string as from a flag, or a number of bytes."""
        if isinstance(value, int) and not isinstance(value, bool):
            return self._checked(value, value)
        return super(Size, self).from_toml(value)

    def written(self, value: int) -> str:
        """Write it with its unit."""
        return exact_size(value)

    def _checked(self, size: int, given: object) -> int:
        if not self.minimum <= size <= self.maximum or size % self.multiple_of:
            raise self.refused(given)
        return size


@dataclass(frozen=True, slots=True, kw_only=True)
class Count(Kind[int]):
    """A whole number."""

    minimum: int
    maximum: int
    metavar = "N"

    @property
    def allowed(self) -> str:
        """What is allowed."""
        return f"a whole number from {self.minimum} to {self.maximum}"

    def from_text(self, text: str) -> int:
        """Read decimal digits."""
        if not re.fullmatch(r"-?\d{1,18}", text.strip()):
            raise self.refused(text)
        return self.from_toml(int(text))

    def from_toml(self, value: object) -> int:
        """Read an integer."""
        if not isinstance(value, int) or isinstance(value, bool) or not self.minimum <= value <= self.maximum:
            raise self.refused(value)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds(Kind[float]):
    """A duration."""

    minimum: float
    maximum: float
    metavar = "SECONDS"

    @property
    def allowed(self) -> str:
        """What is allowed."""
        return f"a number of seconds from {self.minimum:g} to {self.maximum:.0f}"

    def from_text(self, text: str) -> float:
        """Read a decimal number."""
        try:
            return self._checked(float(text), text)
        except ValueError:
            raise self.refused(text) from None

    def from_toml(self, value: object) -> float:
        """Read an integer or a float."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refused(value)
        return self._checked(float(value), value)

    def _checked(self, seconds: float, given: object) -> float:
        if not math.isfinite(seconds) or not self.minimum <= seconds <= self.maximum:
            raise self.refused(given)
        return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch(Kind[bool]):
    """On or off: `--flag`, `--no-flag`."""

    metavar = ""
    allowed = "true or false"

    def from_text(self, text: str) -> bool:
        """Read true, false and their like."""
        word = text.strip().lower()
        if word not in _TRUE | _FALSE:
            raise self.refused(text)
        return word in _TRUE

    def from_toml(self, value: object) -> bool:
        """Read a boolean, and nothing that merely resembles one."""
        if not isinstance(value, bool):
            raise self.refused(value)
        return value


@dataclass(frozen=True, slots=True)
class Choice(Kind[str]):
    """One of a few words."""

    choices: tuple[str, ...]

    @property
    def metavar(self) -> str:  # type: ignore[override]  # follows from the choices
        """The choices themselves."""
        return "{" + ",".join(self.choices) + "}"

    @property
    def allowed(self) -> str:
        """What is allowed."""
        return "one of " + ", ".join(self.choices)

    def from_text(self, text: str) -> str:
        """Read one of the words, exactly."""
        if text not in self.choices:
            raise self.refused(text)
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePath(Kind[Path | None]):
    """A path, or None for no path.

    A relative one is relative to the working directory, or, in the configuration file, to the directory of that file.
    """

    metavar = "PATH"
    allowed = "a path"

    def from_text(self, text: str) -> Path:
        """Read a path; `~` is the home directory."""
        if not text or "\0" in text:
            raise self.refused(text)
        try:
            return Path(text).expanduser()
        except RuntimeError:  # no such user
            raise self.refused(text) from None

    def plain(self, value: Path | None) -> str | None:
        """Return it as a string."""
        return None if value is None else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address(Kind[TcpAddress]):
    """A TCP address."""

    metavar = "HOST:PORT"
    allowed = "HOST:PORT, such as 127.0.0.1:9465, [::1]:9465 or 0.0.0.0:0"

    def from_text(self, text: str) -> TcpAddress:
        """Read `host:port`; a number with colons is in brackets."""
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s/]+)):(\d{1,5})", text.strip())
        if match is None or int(match[3]) > _MAX_PORT:
            raise self.refused(text)
        return TcpAddress(match[1] or match[2], int(match[3]))

    def plain(self, value: TcpAddress) -> str:
        """Return it as a string."""
        return str(value)


@dataclass(frozen=True, slots=True)
class OrOff(Kind[T | None]):
    """What another kind allows, or `off`, which is None."""

    kind: Kind[T]

    @property
    def metavar(self) -> str:  # type: ignore[override]  # follows from the other kind
        """The other kind's, or off."""
        return f"{self.kind.metavar}|off"

    @property
    def allowed(self) -> str:
        """What is allowed."""
        return f"{self.kind.allowed}, or off"

    def from_text(self, text: str) -> T | None:
        """Read `off`, or what the other kind reads."""
        if text.strip() == "off":
            return None
        return self._inner(self.kind.from_text, text)

    def from_toml(self, value: object) -> T | None:
        """Read `off`, or what the other kind reads."""
        return None if value == "off" else self._inner(self.kind.from_toml, value)

    def _inner(self, read: Callable[[V], T], value: V) -> T:
        try:
            return read(value)
        except NotAllowed as error:
            raise self.refused(error.value) from None

    def plain(self, value: T | None) -> Any:
        """Return `off` for None."""
        return "off" if value is None else self.kind.plain(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMode(Kind[int]):
    """Permission bits in octal. In TOML a string: 660 without quotes would be a decimal number."""

    metavar = "MODE"
    allowed = 'an octal mode from "0600" to "0777" that lets the owner read and write, such as "0660"'

    def from_text(self, text: str) -> int:
        """Read three or four octal digits."""
        if not re.fullmatch(r"(0o|0)?[0-7]{3}", text.strip()) or int(text, 8) & _OWNER != _OWNER:
            raise self.refused(text)
        return int(text, 8)

    def plain(self, value: int) -> str:
        """Return four octal digits."""
        return f"{value:04o}"


@dataclass(frozen=True, slots=True)
class _Id(Kind[int]):
    """A user or a group of this machine, by number or by name."""

    what: str
    metavar = "ID"

    @property
    def allowed(self) -> str:
        """What is allowed."""
        return f"a number or the name of a {self.what} of this machine"

    def from_text(self, text: str) -> int:
        """Read a number or look a name up."""
        word = text.strip()
        if word.isdecimal():
            return self.from_toml(int(word))
        try:
            return pwd.getpwnam(word).pw_uid if self.what == "user" else grp.getgrnam(word).gr_gid
        except (KeyError, ValueError):
            raise self.refused(text) from None

    def from_toml(self, value: object) -> int:
        """Read a number, or a name as from a flag."""
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < (1 << 32) - 1:
            return value
        return super(_Id, self).from_toml(value)


@dataclass(frozen=True, slots=True)
class Several(Kind[Any]):
    """Several values as a tuple or a frozenset: a repeated flag, commas in a variable, an array in TOML."""

    kind: Kind[Any]
    collect: type[tuple[Any, ...] | frozenset[Any]] = tuple
    repeatable = True

    @property
    def metavar(self) -> str:  # type: ignore[override]  # follows from the other kind
        """The metavar of one."""
        return self.kind.metavar

    @property
    def allowed(self) -> str:
        """What is allowed."""
        return f"a list, each entry {self.kind.allowed}"

    def from_text(self, text: str) -> Any:
        """Read values with commas between them."""
        return self.collect(self.kind.from_text(part) for part in text.split(",") if part.strip())

    def from_toml(self, value: object) -> Any:
        """Read an array."""
        if not isinstance(value, list):
            raise self.refused(value)
        return self.collect(self.kind.from_toml(entry) for entry in value)

    def plain(self, value: Any) -> list[Any]:
        """Return a list, sorted when the order does not matter."""
        entries = [self.kind.plain(entry) for entry in value]
        return entries if self.collect is tuple else sorted(entries)


USERS: Final = Several(_Id("user"), frozenset)
GROUPS: Final = Several(_Id("group"), frozenset)
