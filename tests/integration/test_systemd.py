"""The systemd unit under a real `systemd --user`: started, used, reloaded, hung, restarted and stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.namespaces import can_make_cgroups, can_unshare

FIXTURES = Path(__file__).parents[1] / "fixtures"
# The last is a file, as the daemon of systemd is in no PATH.
TOOLS = ("systemctl", "/lib/systemd/systemd")

pytestmark = [
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in TOOLS), reason="needs systemd, which .ci/run installs"
    ),
    pytest.mark.skipif(
        not can_make_cgroups() or not can_unshare("--cgroup", "--mount", "--pid", "--fork", "--mount-proc"),
        reason="needs to make namespaces and a cgroup, as root may",
    ),
]


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, Any]]:
    """What came of each step."""
    command = [str(FIXTURES / "user_systemd.sh"), sys.executable, str(FIXTURES / "systemd_main.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=550)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {each["step"]: each for each in found}


def test_it_starts(steps: dict[str, dict[str, Any]]) -> None:
    """Ready means that a client can lease; the status says how it goes."""
    started = steps["started"]
    assert (started["ActiveState"], started["SubState"], started["used"]) == ("active", "running", 64)
    assert started["StatusText"].startswith("serving ")
    assert "heap default 0% of 4 MiB in use" in started["StatusText"]


def test_it_reloads(steps: dict[str, dict[str, Any]]) -> None:
    """In the same process, which keeps its leases."""
    reloaded = steps["reloaded"]
    assert (reloaded["ActiveState"], reloaded["same"], reloaded["used"]) == ("active", True, 64)


def test_one_that_hangs_is_started_again(steps: dict[str, dict[str, Any]]) -> None:
    """By the watchdog."""
    hung = steps["hung"]
    assert (hung["ActiveState"], hung["restarts"], hung["same"]) == ("active", "1", False)


def test_it_restarts(steps: dict[str, dict[str, Any]]) -> None:
    """As another process."""
    assert (steps["restarted"]["ActiveState"], steps["restarted"]["same"]) == ("active", False)


def test_it_stops(steps: dict[str, dict[str, Any]]) -> None:
    """Of its own accord, and takes its sockets with it."""
    stopped = steps["stopped"]
    assert (stopped["ActiveState"], stopped["Result"], stopped["sockets"]) == ("inactive", "success", False)
