"""How options are declared, and how their values are found.

An option is one field of a frozen keyword-only dataclass, declared with `option(...)`. From its stem come its names:

    heap-size   ->   --heap-size   SLABD_HEAP_SIZE   heap_size = (TOML)

and the rest of the declaration gives what it may be, its default, its help, its lines in the sample file and in the
README. A value is taken from the first source that has one; a variable that is empty counts as not set. Whatever is
wrong is collected as a `Problem`, so that all of it is reported at once.

Must not know any option of slabd: those are in `config`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol

from slabd_server.options.kinds import Kind, NotAllowed, Switch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_METADATA: Final = "slabd option"
_ENVIRONMENT_PREFIX: Final = "SLABD_"
_DEFAULT: Final = "default"


class Problem(NamedTuple):
    """Something that is wrong: where it was given, and what is wrong with it."""

    source: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


class ConfigError(ValueError):
    """The configuration cannot be used. `problems` are all of its faults."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        super().__init__(lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} problems:", *lines]))


class Computed(NamedTuple):
    """A default that depends on who asks: how it is found in an environment, and what it is in words."""

    find: Callable[[Mapping[str, str]], Any]
    words: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A declared option. `key` is its name in the file's top level, `table_key` that in a table of its own."""

    field: str
    stem: str
    kind: Kind[Any]
    default: Any
    help: str
    section: str
    table_key: str
    example: Any
    in_file: bool

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return f"--{self.stem}"

    @property
    def variable(self) -> str:
        """The name in the environment."""
        return _ENVIRONMENT_PREFIX + self.stem.upper().replace("-", "_")

    @property
    def key(self) -> str:
        """The name in the file."""
        return self.stem.replace("-", "_")

    @property
    def default_words(self) -> str:
        """The default as people read it."""
        return self.default.words if isinstance(self.default, Computed) else self.kind.words(self.default)

    def default_in(self, environ: Mapping[str, str]) -> Any:
        """Return the default for an environment."""
        return self.default.find(environ) if isinstance(self.default, Computed) else self.default


def option(  # noqa: PLR0913 -- one line of declaration has to say everything
    stem: str,
    kind: Kind[Any],
    *,
    default: Any,
    help: str,  # noqa: A002 -- what argparse calls it
    section: str,
    table_key: str | None = None,
    example: Any = None,
    in_file: bool = True,
) -> Any:
    """Declare a field of a configuration dataclass as an option.

    `default` is a value or a `Computed`. `example` is what the sample file shows when the default says nothing.
    """
    declared = {
        "stem": stem,
        "kind": kind,
        "default": default,
        "help": help,
        "section": section,
        "table_key": table_key or stem.replace("-", "_"),
        "example": example,
        "in_file": in_file,
    }
    if isinstance(default, Computed):
        return dataclasses.field(default_factory=lambda: default.find(os.environ), metadata={_METADATA: declared})
    return dataclasses.field(default=default, metadata={_METADATA: declared})


def options_of(owner: type) -> tuple[Option, ...]:
    """List the options declared by a dataclass, in the order of their declaration."""
    return tuple(
        Option(field=field.name, **field.metadata[_METADATA])
        for field in dataclasses.fields(owner)
        if _METADATA in field.metadata
    )


class Given(NamedTuple):
    """A value as a source has it. Relative paths are relative to `base`."""

    source: str
    raw: object
    is_text: bool
    base: Path

    def read(self, kind: Kind[Any]) -> Any:
        """Return the value.

        Raises:
            NotAllowed: it is not what `kind` allows.
        """
        value = kind.from_text(str(self.raw)) if self.is_text else kind.from_toml(self.raw)
        if isinstance(value, Path):
            return Path(os.path.normpath(self.base / value))  # not resolve(), which would follow links
        return value


class Source(Protocol):
    """Where values come from."""

    def given(self, option: Option) -> Given | None:
        """Return the value that this source has for an option, if any."""
        ...


class Flags(NamedTuple):
    """The command line, as argparse parsed it."""

    values: Mapping[str, Any]

    def given(self, option: Option) -> Given | None:
        """Return what the flag was given, its repetitions joined."""
        raw = self.values.get(option.stem)
        if raw is None:
            return None
        text = ",".join(raw) if isinstance(raw, list) else raw
        return Given(option.flag, text, is_text=not isinstance(raw, bool), base=Path.cwd())


class Environment(NamedTuple):
    """Environment variables."""

    values: Mapping[str, str]

    def given(self, option: Option) -> Given | None:
        """Return what the variable is set to, unless to nothing."""
        raw = self.values.get(option.variable)
        return Given(option.variable, raw, is_text=True, base=Path.cwd()) if raw else None


class Table(NamedTuple):
    """A table of the configuration file: its top level, or the one called `name`."""

    file: Path
    values: Mapping[str, object]
    name: str = ""

    def given(self, option: Option) -> Given | None:
        """Return what the key is set to."""
        key = self.key(option)
        if not option.in_file or key not in self.values:
            return None
        return Given(self.where(key), self.values[key], is_text=False, base=self.file.absolute().parent)

    def key(self, option: Option) -> str:
        """Return the key that an option has in this table."""
        return option.table_key if self.name else option.key

    def where(self, key: str) -> str:
        """Return what messages call a key of this table."""
        return f"{self.file}: {self.name}.{key}" if self.name else f"{self.file}: {key}"

    def unknown(self, options: Iterable[Option], also: Iterable[str] = ()) -> list[Problem]:
        """List the keys that no option has."""
        known = [*(self.key(option) for option in options if option.in_file), *also]
        return [
            Problem(self.where(key), "no such option" + _likely(key, known)) for key in self.values if key not in known
        ]


def _likely(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(known))}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An option's value and where it came from."""

    option: Option
    value: Any
    source: str

    @property
    def is_default(self) -> bool:
        """Whether nobody has set it."""
        return self.source == _DEFAULT

    @property
    def words(self) -> str:
        """The value as people read it."""
        return self.option.kind.words(self.value)

    @property
    def plain(self) -> Any:
        """The value as JSON has it."""
        return self.option.kind.plain(self.value)


Settings = dict[str, Setting]


def find_settings(
    options: Iterable[Option], sources: Sequence[Source], environ: Mapping[str, str], problems: list[Problem]
) -> Settings:
    """Find each option's value in the first source that has one, by the name of its field.

    What is wrong is added to `problems`, and the option has its default.
    """
    return {option.field: _find(option, sources, environ, problems) for option in options}


def _find(option: Option, sources: Sequence[Source], environ: Mapping[str, str], problems: list[Problem]) -> Setting:
    for source in sources:
        given = source.given(option)
        if given is None:
            continue
        try:
            return Setting(option=option, value=given.read(option.kind), source=given.source)
        except NotAllowed as error:
            problems.append(Problem(given.source, str(error)))
            break
    return Setting(option=option, value=option.default_in(environ), source=_DEFAULT)


def add_flags(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Add a flag for every option to a parser, by section. The values stay text: `Flags` has them read."""
    groups: dict[str, Any] = {}
    for each in options:
        group = groups.get(each.section) or groups.setdefault(each.section, parser.add_argument_group(each.section))
        how: dict[str, Any] = {
            "dest": each.stem,
            "default": argparse.SUPPRESS,
            "help": f"{each.help} Default: {each.default_words}. [{each.variable}]".replace("%", "%%"),
        }
        if isinstance(each.kind, Switch):
            how["action"] = argparse.BooleanOptionalAction
        else:
            how["metavar"] = each.kind.metavar
            how["action"] = "append" if each.kind.repeatable else "store"
        group.add_argument(each.flag, **how)


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError, with the likely spelling, instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line."""
        raise ConfigError([Problem("command line", f"{message} (see {self.prog} --help)")])

    # argparse would report what is unknown from the outermost parser, which does not know what would have been right.
    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse all arguments, and refuse those that nobody knows."""
        namespace, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
            self.error(f"no such option: {' '.join(unknown)}" + (f"; did you mean {close[0]}?" if close else ""))
        return namespace, unknown
