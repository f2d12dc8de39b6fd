"""Messages of the contract as JSON that scripts can rely on.

Not protobuf's own JSON mapping, which makes strings of 64-bit numbers and leaves zeros out. Here every field is
present under its name in the .proto, numbers are numbers, durations are seconds, enums are their names in lower case
without the prefix, and what is absent is null. The schema in `--help` is made from the same descriptors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor
    from google.protobuf.message import Message

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | dict[str, Json] | None"

_NANO: Final = 1e-9
_TYPE_NAMES: Final = {
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "hex string",
}


def to_plain(message: Message) -> dict[str, Json]:
    """Return a message as plain data."""
    return {field.name: _value(message, field) for field in descriptor_of(type(message)).fields}


def descriptor_of(kind: type[Message]) -> Descriptor:
    """Return what describes a kind of message."""
    return cast("Descriptor", kind.DESCRIPTOR)  # protobuf's stubs know two classes of the same descriptor


def to_json(data: Json) -> str:
    """Return plain data as text."""
    return json.dumps(data, indent=2, ensure_ascii=False)


def seconds(duration: Duration) -> float:
    """Return a duration in seconds."""
    return round(duration.seconds + duration.nanos * _NANO, 9)


def enum_name(descriptor: EnumDescriptor, number: int) -> str:
    """Return an enum's value as JSON has it: "quarantined", not "SESSION_STATE_QUARANTINED"."""
    value = descriptor.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(_prefix(descriptor)).lower()


def schema(descriptor: Descriptor, indent: str = "  ") -> list[str]:
    """Return the lines that describe a message's JSON."""
    empty = GetMessageClass(descriptor)()
    lines: list[str] = []
    for field in descriptor.fields:
        many = "list of " if _is_repeated(getattr(empty, field.name)) else ""
        lines.append(f"{indent}{field.name}: {many}{_kind(field)}")
        if field.message_type is not None and field.message_type != Duration.DESCRIPTOR:
            lines += schema(field.message_type, indent + "  ")
    return lines


def _is_repeated(value: object) -> bool:
    # The descriptor says so too, but under names that differ between the versions of protobuf we support.
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _kind(field: FieldDescriptor) -> str:
    absent = ", or null" if field.has_presence and field.containing_oneof is not None else ""
    if field.message_type == Duration.DESCRIPTOR:
        return "seconds, or null"
    if field.message_type is not None:
        return "object"
    if field.enum_type is not None:
        return " | ".join(enum_name(field.enum_type, value.number) for value in field.enum_type.values[1:])
    return _TYPE_NAMES.get(field.type, "number") + absent


def _value(message: Message, field: FieldDescriptor) -> Json:
    value = getattr(message, field.name)
    if _is_repeated(value):
        return [_single(field, each) for each in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _single(field, value)


def _single(field: FieldDescriptor, value: object) -> Json:
    if isinstance(value, Duration):
        return seconds(value)
    if field.message_type is not None:
        return to_plain(value)  # type: ignore[arg-type]  # the descriptor says that it is a message
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)  # type: ignore[arg-type]  # an enum's value is an int
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{field.full_name}: {type(value).__name__} has no JSON form")


def _prefix(descriptor: EnumDescriptor) -> str:
    """Return what the values of an enum begin with: SESSION_STATE_ for SessionState, by buf's rule."""
    return descriptor.values[0].name.removesuffix("UNSPECIFIED")
