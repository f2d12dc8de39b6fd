"""What is said at the end, and what makes a demo fail."""

from __future__ import annotations

import dataclasses
import json

import pytest

from slabd.ctl.demo.files import Found, Scan
from slabd.ctl.demo.messages import Stamp
from slabd.ctl.demo.scene import Killed
from slabd.ctl.demo.summary import Ending, Summary
from slabd.ctl.demo.work import Outcome, Work
from slabd.ctl.exits import ExitCode
from slabd.ctl.plain import to_json
from slabd.ctl.terminal import PLAIN

HEAP = 16 << 20
KILLED = Killed(
    name="worker 2",
    pid=42,
    blocks=3,
    held_bytes=12288,
    used_bytes_before=20480,
    used_bytes_after=8192,
    bystander_blocks=2,
    milliseconds=3.14159,
)
ENDING = Ending(
    used_bytes=0,
    leases=0,
    sessions=0,
    largest_free_block_bytes=HEAP,
    total_bytes=HEAP,
    used_peak_bytes=HEAP // 2,
    check_ok=True,
)


def summary(**changes: object) -> Summary:
    """Return the summary of a demo that went well, but for `changes`."""
    work = Work([Found("/a", Stamp(0, 0, 5, 0, 0)), Found("/b", Stamp(0, 0, 7, 0, 0))], HEAP)
    for file in work.files:
        file.outcome = Outcome.MATCHED
    work.totals.leases, work.totals.bytes_through_heap = 2, 12
    good = Summary(
        work=work,
        scan=Scan(),
        heap_bytes=HEAP,
        workers=2,
        seconds=0.5,
        killed=(KILLED,),
        kill_wanted=True,
        other_deaths=0,
        ending=ENDING,
    )
    return dataclasses.replace(good, **changes)  # type: ignore[arg-type]  # one builder for all fields


def test_all_is_well() -> None:
    """Exit code 0, and the lines say why."""
    text = "\n".join(summary().lines(PLAIN))
    assert summary().exit_code is ExitCode.OK
    assert "files    2 of 2 match" in text
    assert "worker 2 (pid 42): 12 KiB in 3 blocks free after 3.1 ms; 2 others kept" in text
    assert "leaks    0 bytes, 0 leases, 0 sessions left" in text
    assert text.endswith("Every digest matches the one computed directly, and nothing leaked.")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ending": dataclasses.replace(ENDING, used_bytes=4096)}, "leaked: 4 KiB used"),
        ({"ending": dataclasses.replace(ENDING, leases=1)}, "leaked: 1 lease"),
        ({"ending": dataclasses.replace(ENDING, sessions=2)}, "leaked: 2 sessions"),
        (
            {"ending": dataclasses.replace(ENDING, largest_free_block_bytes=HEAP // 2)},
            f"leaked: largest free block {HEAP // 2} of {HEAP} bytes",
        ),
        ({"ending": dataclasses.replace(ENDING, check_ok=False, check_problems=("sum",))}, "check: sum"),
        ({"ending": dataclasses.replace(ENDING, check_ok=False)}, "check: the daemon says that something is wrong"),
        ({"killed": ()}, "no worker could be killed while it held a block"),
        ({"killed": (dataclasses.replace(KILLED, problem="2 blocks short"),)}, "worker 2: 2 blocks short"),
    ],
)
def test_whatever_is_wrong_is_exit_code_1(changes: dict[str, object], problem: str) -> None:
    """And said."""
    bad = summary(**changes)
    assert bad.problems == [problem]
    assert bad.exit_code is ExitCode.WRONG
    assert bad.lines(PLAIN)[-2:] == ["1 problem:", f"  {problem}"]
    assert bad.plain()["ok"] is False


def test_a_wrong_digest_is_exit_code_1() -> None:
    """Whatever else went well."""
    bad = summary()
    bad.work.files[0].outcome, bad.work.files[0].reason = Outcome.WRONG, "differs"
    assert bad.problems == ["/a: differs"]


def test_nothing_verified_is_exit_code_1() -> None:
    """Skipping everything proves nothing."""
    bad = summary()
    for file in bad.work.files:
        file.outcome, file.reason = Outcome.SKIPPED, "unreadable"
    assert bad.problems == ["not one file could be verified"]


def test_without_a_wish_to_kill_nobody_has_to_die() -> None:
    """As with --no-kill, or when there are only empty files."""
    assert summary(killed=(), kill_wanted=False).problems == []
    only_empty = summary(killed=())
    only_empty.work.totals.leases = 0
    assert only_empty.problems == []


def test_what_was_skipped_is_named_and_the_rest_counted() -> None:
    """With its reason, made printable."""
    scan = Scan(unreadable={f"/x{at}\n": "no" for at in range(7)})
    lines = summary(scan=scan).lines(PLAIN)
    assert "  skipped: /x0\\n: no" in lines
    assert "  and 2 more; -o json lists all" in lines


def test_the_json_is_plain_and_complete() -> None:
    """Numbers are numbers."""
    plain = json.loads(to_json(summary().plain()))
    assert (plain["ok"], plain["matched"], plain["bytes_through_heap"], plain["bytes_per_second"]) == (True, 2, 12, 24)
    assert plain["killed"][0]["reclaimed_bytes"] == 12288
    assert plain["killed"][0]["milliseconds"] == 3.142
    assert plain["leaks"]["used_bytes"] == 0
