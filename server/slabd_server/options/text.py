"""The options in writing: the sample file, the README's table, and what `slabd check-config` prints.

All of it is made from the declarations; nothing here knows a single option by name. Pure: returns text, prints nothing.
"""

from __future__ import annotations

import json
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from slabd_server.config import ALL_OPTIONS, HEAP_OPTIONS, Loaded
from slabd_server.options.file import HEAPS
from slabd_server.options.kinds import FilePath, Switch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slabd_server.options.declare import Option, Setting

_WIDTH: Final = 110
_EXAMPLE_HEAP: Final = "frames"
_HEAD: Final = """\
# slabd.toml: every option of `slabd serve --config slabd.toml`, with its default or an example.
#
# Lines that begin with "#" and a letter are settings: take the "#" away and change them. A flag comes before an
# environment variable, that before this file. Made by `slabd check-config --print-sample`; do not edit this copy.
"""
_TABLE_HEAD: Final = f"""\
# ---- Several heaps ----

# With tables like this one there is a heap for each of them, and none called "default". What a table does not say
# is as said above.
#[{HEAPS}.{_EXAMPLE_HEAP}]
"""


def sample_toml() -> str:
    """Return a configuration file with every option commented out, with its help and its default."""
    in_file = [each for each in ALL_OPTIONS if each.in_file]
    sections = ["\n".join(_section(name, list(group))) for name, group in groupby(in_file, lambda each: each.section)]
    table = "".join(f"#{each.table_key} = {_toml(_shown(each))}\n" for each in HEAP_OPTIONS)
    return "\n".join([_HEAD, *sections, _TABLE_HEAD + table])


def markdown_table() -> str:
    """Return a table of every option for the README."""
    rows = [
        f"| `{each.flag}` | `{each.variable}` | {f'`{each.key}`' if each.in_file else ''} "
        f"| {each.default_words} | {each.help} |"
        for each in ALL_OPTIONS
    ]
    return "\n".join(["| flag | variable | in the file | default | meaning |", "|---|---|---|---|---|", *rows]) + "\n"


def settings_table(loaded: Loaded) -> str:
    """Return a table of every setting: its key, its value, where it came from."""
    rows = [("OPTION", "VALUE", "FROM"), *((key, each.words, each.source) for key, each in _settings(loaded))]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{key:{widths[0]}}  {value:{widths[1]}}  {source}\n" for key, value, source in rows)


def settings_json(loaded: Loaded) -> str:
    """Return every setting as JSON: `{key: {value, source}}`, sizes in bytes, the heaps by name below `heaps`."""
    content: dict[str, Any] = {each.option.key: _described(each) for each in loaded.settings.values()}
    content[HEAPS] = {
        name: {each.option.table_key: _described(each) for each in heap.values()}
        for name, heap in loaded.heap_settings.items()
    }
    return json.dumps(content, indent=2) + "\n"


def _described(setting: Setting) -> dict[str, Any]:
    return {"value": setting.plain, "source": setting.source}


def _settings(loaded: Loaded) -> Iterator[tuple[str, Setting]]:
    for each in loaded.settings.values():
        yield each.option.key, each
    for name, heap in loaded.heap_settings.items():
        for each in heap.values():
            yield f"{HEAPS}.{name}.{each.option.table_key}", each


def _section(name: str, options: list[Option]) -> Iterator[str]:
    yield f"# ---- {name} ----\n"
    for each in options:
        allowed = "" if isinstance(each.kind, Switch | FilePath) else f" Allowed: {each.kind.allowed}."
        text = f"{each.help} Default: {each.default_words}.{allowed} ({each.flag}, {each.variable})"
        yield from textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
        yield f"#{each.key} = {_toml(_shown(each))}\n"


def _shown(option: Option) -> Any:
    return option.kind.written(option.default) if option.example is None else option.example


def _toml(value: Any) -> str:
    """Write a string, a number, a boolean or a list of them as TOML; JSON's form of these is TOML's."""
    return json.dumps(value, ensure_ascii=False)
