"""The configuration file: TOML, its top level and one `[heaps.NAME]` table for each heap.

Reads one file and nothing else. Keys it does not know are faults, with the likely spelling.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slabd_server.options.declare import Option, Problem, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAPS: Final = "heaps"
# Names become metric labels and file descriptor names.
_HEAP_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


def read_tables(
    file: Path | None, options: Sequence[Option], heap_options: Sequence[Option], problems: list[Problem]
) -> tuple[Table, list[Table]]:
    """Read the file, if any: its top level, and one table for each heap. What is wrong is added to `problems`."""
    if file is None:
        return Table(Path(), {}), []
    content = _read_toml(file, problems)
    top = Table(file, content)
    problems += top.unknown((*options, *heap_options), also=[HEAPS])
    heaps = content.get(HEAPS, {})
    if not isinstance(heaps, dict):
        problems.append(Problem(top.where(HEAPS), f"{heaps!r} is not a table; write [{HEAPS}.NAME]"))
        return top, []
    tables = [_heap_table(file, name, body, problems) for name, body in heaps.items()]
    for table in filter(None, tables):
        problems += table.unknown(heap_options)
    return top, [*filter(None, tables)]


def _heap_table(file: Path, name: str, body: object, problems: list[Problem]) -> Table | None:
    if not isinstance(body, dict):
        problems.append(Problem(f"{file}: {HEAPS}.{name}", f"{body!r} is not a table; write [{HEAPS}.NAME]"))
        return None
    table = Table(file, body, f"{HEAPS}.{name}")
    if not _HEAP_NAME.fullmatch(name):
        problems.append(
            Problem(
                f"{file}: {HEAPS}.{name}",
                "a heap's name has 1 to 63 of a-z, 0-9, '_', '.' and '-', and begins with a letter or a digit",
            )
        )
    return table


def _read_toml(file: Path, problems: list[Problem]) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(Problem(str(file), f"cannot be read: {error.strerror}"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(Problem(str(file), f"is not TOML: {error}"))
    return {}
