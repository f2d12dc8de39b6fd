"""Tables, and what may be written to a terminal."""

from __future__ import annotations

import io

from slabd.ctl.table import Column, facts, table
from slabd.ctl.terminal import PLAIN, Style, printable, style_for, width


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


COLUMNS: tuple[Column[tuple[str, int]], ...] = (
    Column("NAME", lambda row: row[0]),
    Column("BYTES", lambda row: str(row[1]), right=True),
    Column("NOTE", lambda row: "x" if row[1] else ""),
)


def test_columns_are_aligned_and_lines_have_no_blanks_at_their_end() -> None:
    """Text to the left, numbers to the right."""
    assert table(COLUMNS, [("a", 5), ("longer", 12345), ("none", 0)]) == [
        "NAME    BYTES  NOTE",
        "a           5  x",
        "longer  12345  x",
        "none        0",
    ]


def test_nothing_is_cut() -> None:
    """A long value makes its column wide."""
    name = "n" * 500
    assert name in table(COLUMNS, [(name, 1)])[1]


def test_an_empty_table_has_its_titles() -> None:
    """And nothing else."""
    assert table(COLUMNS, []) == ["NAME  BYTES  NOTE"]


def test_wide_characters_take_two_columns() -> None:
    """CJK names do not push the next column."""
    assert width("日本") == 4
    assert table(COLUMNS, [("日本", 1), ("abcd", 2)])[1:] == ["日本      1  x", "abcd      2  x"]


def test_control_characters_of_clients_never_reach_the_terminal() -> None:
    """A session may call itself anything."""
    assert printable("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\\nc\\u202e"
    assert "\x1b" not in "\n".join(table(COLUMNS, [("\x1b]0;title\x07", 1)]))


def test_paths_that_are_no_unicode_are_printable() -> None:
    """File names are bytes."""
    assert printable(b"caf\xe9".decode(errors="surrogateescape")) == "caf\\udce9"


def test_colours_do_not_change_the_width_of_a_column() -> None:
    """Padding comes before paint."""
    columns: tuple[Column[str], ...] = (
        Column("STATE", str, paint=lambda style, _row, text: style.bad(text)),
        Column("X", str),
    )
    assert table(columns, ["a"], Style(coloured=True))[1] == "\x1b[31;1ma    \x1b[0m  a"
    assert table(columns, ["a"])[1] == "a      a"


def test_colours_only_where_they_are_welcome() -> None:
    """On a terminal, without NO_COLOR, and not a dumb one."""
    assert style_for(Terminal(), {"TERM": "xterm"}).coloured
    assert not style_for(Terminal(), {"NO_COLOR": "1"}).coloured
    assert not style_for(Terminal(), {"TERM": "dumb"}).coloured
    assert not style_for(io.StringIO(), {"TERM": "xterm"}).coloured
    assert PLAIN.good("x") == "x"


def test_facts_stand_below_each_other() -> None:
    """Names to the left."""
    assert facts([("a", "1"), ("long", "2")]) == ["a     1", "long  2"]
