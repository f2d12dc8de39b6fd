"""The systemd unit: valid, hardened, and what comes with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.fixtures.rules import README

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = UNITS / "slabd.service"
# In tenths, where 100 is a unit that may do everything.
EXPOSURE_MAX = 20

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="needs systemd-analyze, of systemd; .ci/run installs it",
)


def said_of(tool: str, *arguments: str | Path) -> tuple[int, str]:
    """Run a tool of systemd; return its exit status and all that it said."""
    command = [tool, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


def verified(directory: Path, text: str) -> tuple[int, str]:
    """Have systemd verify a unit, with an executable that there is."""
    unit = directory / "slabd.service"
    unit.write_text(text.replace("/opt/slabd/bin/slabd", "/bin/true"), encoding="utf-8")
    return said_of("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit)


@needs_systemd
def test_systemd_finds_nothing_in_the_unit(tmp_path: Path) -> None:
    """Every key is known and has a value that it can have."""
    assert verified(tmp_path, UNIT.read_text(encoding="utf-8")) == (0, "")


@needs_systemd
def test_systemd_would_find_a_mistake(tmp_path: Path) -> None:
    """The test above can fail."""
    status, said = verified(tmp_path, UNIT.read_text(encoding="utf-8").replace("WatchdogSec", "WatchdogSecs"))
    assert (status, "WatchdogSecs" in said) == (1, True)


@needs_systemd
def test_the_unit_is_hardened() -> None:
    """By systemd's own score."""
    status, said = said_of("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", UNIT)
    assert status == 0, said


@needs_systemd
def test_an_unhardened_unit_would_be_noticed(tmp_path: Path) -> None:
    """The threshold is one."""
    kept = re.sub(
        r"^(Protect|Restrict|Private|SystemCall).*\n", "", UNIT.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    (tmp_path / "slabd.service").write_text(kept, encoding="utf-8")
    options = ("--offline=true", f"--threshold={EXPOSURE_MAX}")
    assert said_of("systemd-analyze", "security", *options, tmp_path / "slabd.service")[0] != 0


@pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None or os.geteuid() != 0, reason="needs systemd's tools, and root to use them"
)
def test_user_and_directory_are_made(tmp_path: Path) -> None:
    """In a root of its own."""
    (tmp_path / "etc").mkdir()
    root = f"--root={tmp_path}"
    assert said_of("systemd-sysusers", root, UNITS / "slabd.sysusers.conf")[0] == 0
    (user,) = [line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("slabd:")]
    assert said_of("systemd-tmpfiles", root, "--create", UNITS / "slabd.tmpfiles.conf") == (0, "")
    made = (tmp_path / "run/slabd").stat()
    assert (made.st_mode & 0o777, str(made.st_uid)) == (0o755, user.split(":")[2])


def test_files_are_installed_as_the_readme_says(tmp_path: Path) -> None:
    """On a machine where not even the directories are there."""
    lines = re.findall(r"^install .*$", README.read_text(encoding="utf-8"), re.MULTILINE)
    for line in lines:
        *command, destination = line.split()
        subprocess.run([*command, f"{tmp_path}{destination}"], cwd=README.parents[1], check=True)
    installed = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert installed == {"README.md", "slabd.toml", "slabd.service", "slabd.conf"}
    assert len(lines) == 5


def test_the_unit_promises_no_lease_over_a_restart() -> None:
    """The daemon cannot keep it yet."""
    settings = [line for line in UNIT.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert not [line for line in settings if line.startswith("FileDescriptorStore")]
