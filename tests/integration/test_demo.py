"""The demo over files of every kind, with children that lie, die and dawdle; and what it leaves behind: nothing.

Children are replaced through `Programs`, the way in which the demo finds them: a test writes a small program that runs
the real reader or worker with one thing wrong.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slabd.ctl.demo import run as demo_run
from slabd.ctl.demo.children import ChildFailed, Programs
from slabd.ctl.demo.files import scan
from slabd.ctl.demo.options import DemoOptions
from slabd.ctl.demo.progress import Lines
from slabd.ctl.demo.run import run_demo
from slabd.ctl.demo.work import Outcome
from slabd.ctl.exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slabd.ctl.demo.summary import Summary

    Start = Callable[..., subprocess.Popen[str]]

MIB = 1 << 20
HEAP = MIB


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory of files: many small, some large, one larger than the heap, empty ones, links."""
    root = tmp_path / "files"
    (root / "many").mkdir(parents=True)
    for at in range(200):
        (root / "many" / f"{at:03}").write_bytes(os.urandom(1 + at * 37 % 9000))
    for at in range(6):
        (root / f"large {at}").write_bytes(os.urandom(200_000 + at))
    (root / "larger than the heap").write_bytes(os.urandom(2 * HEAP + 12345))
    (root / "exactly the heap").write_bytes(os.urandom(HEAP))
    (root / "empty").touch()
    (root / "also empty").touch()
    (root / "link").symlink_to("empty")
    return root


def demo(tree: Path, **options: Any) -> tuple[Summary, str]:
    """Run the demo in this process; return its summary and what was shown."""
    shown = io.StringIO()
    options = {"heap_bytes": HEAP, "workers": 2, **options}
    return run_demo(DemoOptions(**options), scan([str(tree)]), Lines(shown)), shown.getvalue()


def program(directory: Path, source: str) -> tuple[str, ...]:
    """Return a child's program: `source` has `reader`, `worker`, `child`, `os`, `sys` and `marker`, a path."""
    path = directory / f"program {len(list(directory.iterdir()))}.py"
    head = f"""\
        import os, signal, sys, time
        from pathlib import Path
        from slabd.ctl.demo import child, reader, worker
        marker = Path({str(path.with_suffix(".marker"))!r})
        """
    path.write_text(textwrap.dedent(head) + textwrap.dedent(source))
    return (sys.executable, str(path))


def test_every_kind_of_file_matches(tree: Path) -> None:
    """And a worker dies on the way, holding blocks, and nobody else's block is touched."""
    summary, shown = demo(tree)
    assert summary.problems == []
    assert summary.exit_code is ExitCode.OK
    assert len(summary.work.outcome_of(Outcome.MATCHED)) == 210
    (killed,) = summary.killed
    assert killed.blocks > 0
    assert killed.reclaimed_bytes == killed.held_bytes > 0
    assert killed.bystander_blocks > 0
    assert summary.work.totals.read_again == killed.blocks
    assert f"(pid {killed.pid}) killed holding" in shown


def test_the_plain_summary_agrees_with_the_files(tree: Path) -> None:
    """Empty files, files in pieces and links are counted; every byte of the others went through the heap."""
    plain: Any = demo(tree, kill=False)[0].plain()
    assert (plain["ok"], plain["files"], plain["matched"]) == (True, 210, 210)
    assert (plain["empty"], plain["in_pieces"], plain["links_not_followed"]) == (2, 1, 1)
    files = [each for each in tree.rglob("*") if each.is_file() and not each.is_symlink()]
    assert plain["bytes_through_heap"] == sum(each.stat().st_size for each in files)
    assert plain["killed"] == []
    assert plain["leaks"] == {
        "used_bytes": 0,
        "leases": 0,
        "sessions": 0,
        "largest_free_block_bytes": HEAP,
        "total_bytes": HEAP,
    }
    assert plain["leases"] == 208 + 8  # one file is done in nine pieces


@pytest.mark.parametrize(("heap_bytes", "workers"), [(32 * 1024, 2), (HEAP, 1), (64 * MIB, 5)])
def test_any_heap_and_any_number_of_workers(tree: Path, heap_bytes: int, workers: int) -> None:
    """Down to the smallest heap, where nearly every file is larger than a share of it, and the reader waits."""
    summary, _ = demo(tree, workers=workers, heap_bytes=heap_bytes)
    assert summary.problems == []
    assert len(summary.killed) == 1
    assert summary.ending.used_peak_bytes <= heap_bytes


def test_a_full_heap_is_waited_for(tmp_path: Path) -> None:
    """Each file takes the whole heap, so the reader has to wait for each."""
    for at in range(8):
        (tmp_path / str(at)).write_bytes(os.urandom(HEAP))
    summary, _ = demo(tmp_path, kill=False)
    assert summary.problems == []
    assert summary.work.totals.waits > 0
    assert summary.ending.used_peak_bytes == HEAP


def test_a_single_file_is_enough(tmp_path: Path) -> None:
    """To kill a worker that holds it, and to do it again."""
    (tmp_path / "file").write_bytes(b"x")
    summary, _ = demo(tmp_path)
    assert summary.problems == []
    assert (summary.killed[0].blocks, summary.work.totals.leases) == (1, 2)


def test_only_empty_files(tmp_path: Path) -> None:
    """Nothing to lease, so nothing to kill."""
    (tmp_path / "file").touch()
    summary, _ = demo(tmp_path)
    assert (summary.problems, summary.killed, summary.work.totals.leases) == ([], (), 0)


def test_a_file_that_cannot_be_read_is_skipped_with_its_reason(tree: Path) -> None:
    """/proc/self/mem is a regular file that cannot be read at 0, not even by root."""
    shown = Lines(io.StringIO())
    found = scan([str(tree), "/proc/self/mem"])
    summary = run_demo(DemoOptions(heap_bytes=HEAP, workers=2), found, shown)
    assert summary.problems == []
    (skipped,) = summary.work.outcome_of(Outcome.SKIPPED)
    assert skipped.path.endswith("/mem")
    assert skipped.reason in {"Input/output error", "Permission denied"}


def test_a_wrong_digest_fails_the_demo(tree: Path, tmp_path: Path) -> None:
    """A worker that digests one file wrongly is found out, and the file is named."""
    lying = program(
        tmp_path,
        """\
        honest = worker.digest_batch
        def digest_batch(pool, batch, handles):
            answer = honest(pool, batch, handles)
            first = min(answer.digests)
            if not marker.exists():
                marker.touch()
                answer.digests[first] = bytes(32)
            return answer
        worker.digest_batch = digest_batch
        child.main(worker.serve, read_only=True)
        """,
    )
    summary, _ = demo(tree, kill=False, programs=Programs(worker=lying))
    (wrong,) = summary.work.outcome_of(Outcome.WRONG)
    assert "through the heap " + "00" * 32 in wrong.reason
    assert summary.exit_code is ExitCode.WRONG
    assert any(wrong.path in problem for problem in summary.problems)


def test_one_flipped_bit_in_a_block_fails_the_demo(tree: Path, tmp_path: Path) -> None:
    """A reader that damages one byte of one block is found out too."""
    careless = program(
        tmp_path,
        """\
        honest = reader.fill
        def fill(piece, view):
            result = honest(piece, view)
            if piece.path.endswith("/100"):
                view[0] ^= 1
            return result
        reader.fill = fill
        child.main(reader.serve, read_only=False)
        """,
    )
    summary, _ = demo(tree, kill=False, programs=Programs(reader=careless))
    assert [Path(each.path).name for each in summary.work.outcome_of(Outcome.WRONG)] == ["100"]
    assert summary.exit_code is ExitCode.WRONG


CHANGED = ("changed since it was found", "changed while it was read", "has more bytes than its size says")


def test_a_file_that_never_stops_changing_is_skipped(tree: Path, tmp_path: Path) -> None:
    """It is read again a few times; one that changes once matches in the end."""
    writing = program(
        tmp_path,
        """\
        honest = reader.fill
        def fill(piece, view):
            name = Path(piece.path).name
            if name == "100" or (name == "101" and not marker.exists()):
                marker.touch() if name == "101" else None
                with open(piece.path, "ab") as file:
                    file.write(b"more")
            return honest(piece, view)
        reader.fill = fill
        child.main(reader.serve, read_only=False)
        """,
    )
    summary, _ = demo(tree, programs=Programs(reader=writing))
    assert summary.problems == []
    (skipped,) = summary.work.outcome_of(Outcome.SKIPPED)
    # Which of its reads notices first is a matter of time: it is being written to while it is checked.
    assert Path(skipped.path).name == "100"
    assert skipped.reason in {f"{why}, 5 times in a row" for why in CHANGED}
    assert len(summary.work.outcome_of(Outcome.MATCHED)) == 209


DEATHS = {
    "worker that has opened": (
        "worker",
        """\
        honest = worker.digest_batch
        def digest_batch(pool, batch, handles):
            if not marker.exists():
                marker.touch()
                pool.open_many(handles.values())
                os.kill(os.getpid(), signal.SIGKILL)
            return honest(pool, batch, handles)
        worker.digest_batch = digest_batch
        child.main(worker.serve, read_only=True)
        """,
    ),
    "worker that has not opened": (
        "worker",
        """\
        honest = worker.digest_batch
        def digest_batch(pool, batch, handles):
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return honest(pool, batch, handles)
        worker.digest_batch = digest_batch
        child.main(worker.serve, read_only=True)
        """,
    ),
    "reader in the middle of a file": (
        "reader",
        """\
        honest = reader.fill
        def fill(piece, view):
            if piece.path.endswith("/050") and not marker.exists():
                marker.touch()
                view[:1] = b"!"
                os.kill(os.getpid(), signal.SIGKILL)
            return honest(piece, view)
        reader.fill = fill
        reader.HANDLE_SECONDS = 15.0  # its other thread may have shared what it will never tell of
        child.main(reader.serve, read_only=False)
        """,
    ),
}


@pytest.mark.parametrize("death", DEATHS)
def test_who_dies_unexpectedly_is_replaced(tree: Path, tmp_path: Path, death: str) -> None:
    """At any moment, beside the one that is killed on purpose."""
    role, source = DEATHS[death]
    summary, shown = demo(tree, programs=Programs(**{role: program(tmp_path, source)}))
    assert summary.problems == []
    assert summary.other_deaths == 1
    assert "was ended by SIGKILL: others do its work" in shown
    assert len(summary.work.outcome_of(Outcome.MATCHED)) == 210


def test_a_child_with_a_defect_ends_the_demo_with_what_it_said(tree: Path, tmp_path: Path) -> None:
    """And leaves nobody behind."""
    broken = program(tmp_path, "sys.exit('the disk is on fire')")
    with pytest.raises(ChildFailed, match="the disk is on fire"):
        demo(tree, programs=Programs(reader=broken))


def test_workers_that_always_die_end_the_demo(tree: Path, tmp_path: Path) -> None:
    """They are not replaced for ever."""
    with pytest.raises(ChildFailed, match="ended by SIGKILL"):
        demo(tree, programs=Programs(worker=program(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")))


def test_somebody_who_stays_is_a_leak(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker leaves a forked child behind that holds its connection: the count at the end says so."""
    monkeypatch.setattr(demo_run, "_LEAVING_SECONDS", 0.2)
    forking = program(
        tmp_path,
        """\
        def serve(pool, pipe):
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                pass  # the other worker was first
            else:
                os.dup(pool._session._attachment.connection.fileno())
                if (pid := os.fork()) == 0:
                    time.sleep(600)
                    os._exit(0)
                marker.write_text(str(pid))
            try:
                worker.serve(pool, pipe)
            except EOFError:
                os._exit(0)  # without a word to the daemon, which would end the session
        child.main(serve, read_only=True)
        """,
    )
    try:
        summary, _ = demo(tree, kill=False, programs=Programs(worker=forking))
    finally:
        (marker,) = tmp_path.glob("*.marker")
        os.kill(int(marker.read_text()), signal.SIGKILL)
    assert "leaked: 1 session" in summary.problems
    assert summary.exit_code is ExitCode.WRONG


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `slabctl demo` as a process of its own, its temporary directory in `tmp_path`."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "t").mkdir()

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "slabd.ctl", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(tmp_path / "t")},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def alive(pids: list[int]) -> list[int]:
    """Return those that still run; zombies do not."""
    running = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        running += [pid] if state not in "ZX" else []
    return running


def under_way(process: subprocess.Popen[str]) -> list[int]:
    """Wait until a demo has done a part of its work; return the pids of its daemon and its children."""
    assert process.stdout is not None
    pids: list[int] = []
    for line in process.stdout:
        pids += [int(each) for each in re.findall(r" (\d+)(?:,|$)", line)] if "pids: daemon" in line else []
        if re.match(r"[1-9][\d,]* of", line):
            return pids
    raise AssertionError(f"the demo ended: {process.communicate()[1]}")


def test_on_the_command_line_with_json(tree: Path, start: Start) -> None:
    """One object on stdout, nothing on stderr, exit code 0."""
    process = start("-o", "json", "--heap-size", "1MiB", "--workers", "2", str(tree))
    out, err = process.communicate()
    assert (process.returncode, err) == (ExitCode.OK, "")
    plain = json.loads(out)
    assert (plain["ok"], plain["matched"], len(plain["killed"])) == (True, 210, 1)


def test_on_the_command_line_for_people(tree: Path, start: Start) -> None:
    """Progress, then the summary; --limit is said."""
    process = start("--heap-size", "1MiB", "--limit", "20", str(tree))
    out, err = process.communicate()
    assert (process.returncode, err) == (ExitCode.OK, "")
    assert "more than the heap: done in 9 pieces" in out or "20 of 20 match" in out
    assert "more left out by --limit" in out
    assert out.endswith("Every digest matches the one computed directly, and nothing leaked.\n")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, ExitCode.INTERRUPTED),
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGHUP, 128 + signal.SIGHUP),
    ],
)
def test_interrupted_it_leaves_nothing_behind(tmp_path: Path, start: Start, number: signal.Signals, code: int) -> None:
    """No process, no directory, no traceback; the whole foreground group hears Ctrl-C."""
    process = start("--workers", "2")
    pids = under_way(process)
    os.killpg(process.pid, number)
    _, err = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in err
    assert alive(pids) == []
    assert list((tmp_path / "t").iterdir()) == []


def test_killed_it_leaves_no_process_behind(start: Start) -> None:
    """SIGKILL cannot be handled, so the kernel ends its children, and the daemon sees its pipe close."""
    process = start("--workers", "2")
    pids = under_way(process)
    assert len(pids) == 5
    process.kill()
    while alive(pids):
        time.sleep(0.01)


def test_a_daemon_that_dies_is_exit_code_3(start: Start) -> None:
    """With its last words."""
    process = start("--workers", "2")
    os.kill(under_way(process)[0], signal.SIGKILL)
    _, err = process.communicate()
    assert err.startswith("slabctl: the private daemon has ended; its log ends with: ")
    assert process.returncode == ExitCode.UNREACHABLE
