"""What one sees while the demo runs."""

from __future__ import annotations

import io

from slabd.ctl.demo.progress import Lines, Progress, Region, Silent, region_of
from slabd.ctl.painting import bar, fit
from slabd.ctl.terminal import PLAIN, Style


def progress(files_done: int = 50, *, waiting: bool = False) -> Progress:
    """Return progress of a demo over 100 files."""
    return Progress(
        files_done=files_done,
        files=100,
        done_bytes=5 << 20,
        total_bytes=10 << 20,
        seconds=2.0,
        used_bytes=12 << 20,
        available_bytes=4 << 20,
        waiting=waiting,
        workers=(("worker 1", "3 blocks"), ("worker 2", "starts")),
    )


def test_a_bar_is_full_only_when_all_is_done() -> None:
    """And empty only when nothing is."""
    assert [bar(0, 100).count("█"), bar(1, 10**6).count("█"), bar(999, 1000).count("█"), bar(5, 5).count("█")] == [
        0,
        1,
        31,
        32,
    ]
    assert bar(0, 0).count("█") == 32


def test_the_region_says_how_far_how_fast_and_how_full() -> None:
    """And who does what."""
    text = "\n".join(region_of(progress(), PLAIN))
    for part in ("50 of 100, 50 %", "5 MiB of 10 MiB", "12 MiB used, 4 MiB available", "worker 2: starts"):
        assert part in text
    assert "waits" not in text
    assert "the reader waits for room" in "\n".join(region_of(progress(waiting=True), PLAIN))


def test_a_region_is_painted_over_and_leaves_what_stays_above_it() -> None:
    """And at its end the cursor is back."""
    stream = io.StringIO()
    region = Region(stream, PLAIN)
    region.paint(progress(), last=False)
    lines = stream.getvalue().count("\n")
    stream.truncate(0)
    region.event("killed", loud=True)
    assert f"\x1b[{lines}A" in stream.getvalue()
    assert "killed\n" in stream.getvalue()
    region.close()
    assert stream.getvalue().endswith("\x1b[?25h")


def test_a_region_that_was_never_painted_leaves_the_terminal_alone() -> None:
    """No escape sequences for nothing."""
    stream = io.StringIO()
    Region(stream, PLAIN).close()
    assert stream.getvalue() == ""


def test_lines_come_for_every_tenth() -> None:
    """Logs stay short."""
    stream = io.StringIO()
    lines = Lines(stream)
    for done in range(101):
        lines.paint(progress(done), last=done == 100)
    lines.close()
    assert stream.getvalue().count("\n") == 11
    assert "\x1b" not in stream.getvalue()


def test_silence() -> None:
    """For -o json."""
    silent = Silent()
    silent.event("x")
    silent.paint(progress(), last=True)
    silent.close()


def test_lines_are_cut_to_the_terminal_and_colours_do_not_count() -> None:
    """A line that wraps would spoil the region."""
    assert fit("abcdef", 4) == "abc"
    assert fit("abc", 4) == "abc"
    coloured = Style(coloured=True).good("abcdef")
    assert fit(coloured, 7) == coloured
    assert fit(coloured, 4) == "\x1b[32mabc\x1b[0m"
