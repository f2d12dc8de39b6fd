"""What a command is: a call, a way to show the answer, and a verdict on it. Data, so that each has the same face."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from google.protobuf.message import Message

from slabd.ctl.exits import ExitCode
from slabd.ctl.plain import descriptor_of, schema, to_plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from slabd.ctl.connection import Connection
    from slabd.ctl.plain import Json
    from slabd.ctl.terminal import Style

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a command, as argparse takes it."""

    flags: tuple[str, ...]
    options: dict[str, Any]


def argument(*flags: str, **options: Any) -> Argument:
    """Return an argument."""
    return Argument(flags, options)


def always_ok(_answer: object, _arguments: argparse.Namespace) -> ExitCode:
    """Return the verdict of a command whose answer cannot be bad news."""
    return ExitCode.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Generic[M]):
    """A command that asks the daemon one question.

    `lines` shows the answer, `verdict` makes the exit code of it; both are pure. With `exclusive`, only one of the
    arguments may be given.
    """

    name: str
    summary: str
    answer: type[M]
    call: Callable[[Connection, argparse.Namespace], M]
    lines: Callable[[M, argparse.Namespace, Style], list[str]]
    verdict: Callable[[M, argparse.Namespace], ExitCode] = field(default=always_ok)
    arguments: tuple[Argument, ...] = ()
    exclusive: bool = False
    description: str = ""

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare this command's arguments, and describe its JSON."""
        target = parser.add_mutually_exclusive_group() if self.exclusive else parser
        for each in self.arguments:
            target.add_argument(*each.flags, **each.options)
        descriptor = descriptor_of(self.answer)
        parser.epilog = "\n".join([f"-o json prints {descriptor.name}:", *schema(descriptor)])

    def plain(self, answer: M) -> Json:
        """Return the answer for `-o json`."""
        return to_plain(answer)
