"""What there is to say when a demo has ended, for people and for scripts, and whether it was as it should be. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from slabd.ctl.demo.work import Outcome
from slabd.ctl.exits import ExitCode
from slabd.ctl.table import facts
from slabd.ctl.terminal import printable
from slabd.ctl.units import human_bytes, human_count, human_rate, plural

if TYPE_CHECKING:
    from slabd.ctl.demo.files import Scan
    from slabd.ctl.demo.scene import Killed
    from slabd.ctl.demo.work import FileRecord, Work
    from slabd.ctl.plain import Json
    from slabd.ctl.terminal import Style

_NAMED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the daemon says when all clients are gone. Sizes are in bytes."""

    used_bytes: int
    leases: int
    sessions: int
    largest_free_block_bytes: int
    total_bytes: int
    used_peak_bytes: int
    check_ok: bool
    check_problems: tuple[str, ...] = ()

    @property
    def leaks(self) -> tuple[str, ...]:
        """What is left although nobody is; nothing, one hopes."""
        left = []
        if self.used_bytes:
            left.append(f"{human_bytes(self.used_bytes)} used")
        if self.leases:
            left.append(plural(self.leases, "lease"))
        if self.sessions:
            left.append(plural(self.sessions, "session"))
        if not left and self.largest_free_block_bytes != self.total_bytes:
            left.append(f"largest free block {self.largest_free_block_bytes} of {self.total_bytes} bytes")
        return tuple(left)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All of one demo."""

    work: Work
    scan: Scan
    heap_bytes: int
    workers: int
    seconds: float
    killed: tuple[Killed, ...]
    kill_wanted: bool
    other_deaths: int
    ending: Ending

    @property
    def problems(self) -> list[str]:
        """Everything that is not as it should be."""
        wrong = [f"{file.path}: {file.reason}" for file in self.work.outcome_of(Outcome.WRONG)]
        if not self.work.outcome_of(Outcome.MATCHED):
            wrong.append("not one file could be verified")
        if self.kill_wanted and not self.killed and self.work.totals.leases:
            wrong.append("no worker could be killed while it held a block")
        wrong += [f"{killed.name}: {killed.problem}" for killed in self.killed if killed.problem]
        wrong += [f"check: {problem}" for problem in self.ending.check_problems]
        if not self.ending.check_ok and not self.ending.check_problems:
            wrong.append("check: the daemon says that something is wrong")
        return wrong + [f"leaked: {left}" for left in self.ending.leaks]

    @property
    def exit_code(self) -> ExitCode:
        """OK only if everything matched and nothing leaked."""
        return ExitCode.WRONG if self.problems else ExitCode.OK

    def lines(self, style: Style) -> list[str]:
        """Return it for people."""
        problems = self.problems
        lines = facts(self._facts(style), style)
        lines += [f"  skipped: {printable(path)}: {printable(reason)}" for path, reason in self._skipped()[:_NAMED]]
        if (more := len(self._skipped()) - _NAMED) > 0:
            lines.append(f"  and {human_count(more)} more; -o json lists all")
        if not problems:
            return [*lines, "", style.good("Every digest matches the one computed directly, and nothing leaked.")]
        return [*lines, "", style.bad(f"{plural(len(problems), 'problem')}:"), *(f"  {printable(p)}" for p in problems)]

    def plain(self) -> dict[str, Json]:
        """Return it for scripts."""
        totals = self.work.totals
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "files": len(self.work.files),
            "matched": len(self.work.outcome_of(Outcome.MATCHED)),
            "wrong": [{"path": file.path, "reason": file.reason} for file in self.work.outcome_of(Outcome.WRONG)],
            "skipped": [{"path": path, "reason": reason} for path, reason in self._skipped()],
            "empty": len(self._empty),
            "in_pieces": len(self._in_pieces),
            "links_not_followed": self.scan.links,
            "special_files": self.scan.special,
            "limited": self.scan.limited,
            "heap_bytes": self.heap_bytes,
            "workers": self.workers,
            "bytes_through_heap": totals.bytes_through_heap,
            "seconds": round(self.seconds, 6),
            "bytes_per_second": round(totals.bytes_through_heap / self.seconds) if self.seconds else 0,
            "leases": totals.leases,
            "read_again": totals.read_again,
            "waits": totals.waits,
            "waited_seconds": round(totals.waited_seconds, 6),
            "killed": [_killed_plain(killed) for killed in self.killed],
            "other_deaths": self.other_deaths,
            "check": {"ok": self.ending.check_ok, "problems": list(self.ending.check_problems)},
            "leaks": {
                "used_bytes": self.ending.used_bytes,
                "leases": self.ending.leases,
                "sessions": self.ending.sessions,
                "largest_free_block_bytes": self.ending.largest_free_block_bytes,
                "total_bytes": self.ending.total_bytes,
            },
            "used_peak_bytes": self.ending.used_peak_bytes,
        }

    @property
    def _empty(self) -> list[FileRecord]:
        return [file for file in self.work.outcome_of(Outcome.MATCHED) if not file.stamp.size]

    @property
    def _in_pieces(self) -> list[FileRecord]:
        return [file for file in self.work.files if file.pieces > 1]

    def _skipped(self) -> list[tuple[str, str]]:
        files = [(file.path, file.reason) for file in self.work.outcome_of(Outcome.SKIPPED)]
        return [*self.scan.unreadable.items(), *files]

    def _facts(self, style: Style) -> list[tuple[str, str]]:
        totals, ending = self.work.totals, self.ending
        rate = human_rate(totals.bytes_through_heap, self.seconds)
        waits = (
            f"the heap was full {plural(totals.waits, 'time')}; the reader waited {totals.waited_seconds:.2f} s in all"
        )
        leaks = ", ".join(ending.leaks)
        return [
            ("files", self._files_text()),
            ("bytes", f"{human_bytes(totals.bytes_through_heap)} through the heap in {self.seconds:.2f} s, {rate}"),
            ("leases", f"{human_count(totals.leases)}, of which {human_count(totals.read_again)} were done again"),
            ("waiting", waits if totals.waits else "the heap was never full"),
            ("peak", f"{human_bytes(ending.used_peak_bytes)} of {human_bytes(self.heap_bytes)} used at once"),
            *((("killed", self._killed_text(killed))) for killed in self.killed),
            (
                "check",
                style.good("ok") if ending.check_ok else style.bad(plural(len(ending.check_problems), "problem")),
            ),
            ("leaks", style.bad(leaks) if leaks else f"{style.good('0')} bytes, 0 leases, 0 sessions left"),
        ]

    def _files_text(self) -> str:
        matched = len(self.work.outcome_of(Outcome.MATCHED))
        wrong = len(self.work.outcome_of(Outcome.WRONG))
        notes = [
            f"{human_count(len(self._empty))} empty" if self._empty else "",
            f"{human_count(len(self._in_pieces))} in pieces" if self._in_pieces else "",
            f"{human_count(wrong)} wrong" if wrong else "",
            f"{human_count(len(self._skipped()))} skipped" if self._skipped() else "",
            f"{plural(self.scan.links, 'link')} not followed" if self.scan.links else "",
            "more left out by --limit" if self.scan.limited else "",
        ]
        note = "; ".join(each for each in notes if each)
        return f"{human_count(matched)} of {human_count(len(self.work.files))} match" + (f" ({note})" if note else "")

    @staticmethod
    def _killed_text(killed: Killed) -> str:
        return (
            f"{killed.name} (pid {killed.pid}): {human_bytes(killed.held_bytes)} in {plural(killed.blocks, 'block')} "
            f"free after {killed.milliseconds:.1f} ms; {human_count(killed.bystander_blocks)} others kept"
        )


def _killed_plain(killed: Killed) -> dict[str, Any]:
    return {**asdict(killed), "milliseconds": round(killed.milliseconds, 3), "reclaimed_bytes": killed.reclaimed_bytes}
