"""The first section of deploy/README.md, word by word: from a clean environment to an alert that fires and resolves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from tests.fixtures.namespaces import can_unshare
from tests.fixtures.prometheus import needs_prometheus
from tests.fixtures.rules import README

ROOT = Path(__file__).parents[2]
SECTION = re.search(r"^## From nothing to an alert$(.*?)^## ", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
# What a clone has and the commands use.
CLONED = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "proto", "server", "client", "deploy")
# A network and a /run of its own: others may use the ports and directories that the commands do not name.
APART = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
APART_SETUP = "ip link set lo up\nmount -t tmpfs tmpfs /run\n"
PATIENCE_SECONDS = 800

pytestmark = [needs_prometheus, pytest.mark.timeout(1800)]


def blocks() -> list[str]:
    """Return what the reader is told to type."""
    assert SECTION is not None
    return re.findall(r"^```sh\n(.*?)^```$", SECTION[1], re.MULTILINE | re.DOTALL)


def environment(home: Path) -> dict[str, str]:
    """Return what a new user has, and where Python packages come from on this machine."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_CERT")}
    return {**kept, "PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TMPDIR": str(home)}


def typed(script: str, clone: Path, *, apart: bool = False) -> str:
    """Type commands into one shell that stops at the first that fails; return what they said."""
    prefix = ("unshare", *APART, "--") if apart else ()
    script = f"set -eu\n{APART_SETUP if apart else ''}{script}"
    with (clone / "said").open("w+") as said:
        process = subprocess.Popen(
            [*prefix, "bash", "-c", script],
            cwd=clone,
            env=environment(clone.parent),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(PATIENCE_SECONDS)
        finally:
            with_children_gone(process)
        said.seek(0)
        text = said.read()
    assert status == 0, text
    return text


def with_children_gone(process: subprocess.Popen[bytes]) -> None:
    """End whatever the shell has started and not stopped."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the repository, without what grew in it."""
    place = tmp_path_factory.mktemp("journey") / "slabd"
    place.mkdir()
    for name in CLONED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
        else:
            shutil.copy(ROOT / name, place / name)
    return place


def test_the_journey(clone: Path) -> None:
    """Install, start, load, scrape, fill the heap until the alert fires, make room until it resolves, stop."""
    install, *rest = blocks()
    assert len(rest) == 6
    typed(install, clone)
    apart = can_unshare(*APART) and shutil.which("ip") is not None
    said = typed("".join(rest), clone, apart=apart)
    assert "heap:slabd_used:ratio" in said
    assert 'alertname="SlabdHeapFull"' in said
    assert "hog" in said
    assert "Traceback" not in said
