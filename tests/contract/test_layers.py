"""The layers that the folder names promise are those that the imports have."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE_FORBIDS = {"asyncio", "grpc", "os", "mmap", "threading", "time", "socket", "selectors", "prometheus_client"}


@pytest.mark.skipif(
    shutil.which("lint-imports", path=str(Path(sys.executable).parent)) is None, reason="needs the dev extra"
)
def test_import_linter() -> None:
    """The contracts in pyproject.toml are kept."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=550)
    assert done.returncode == 0, done.stdout


def imports_of(path: Path) -> set[str]:
    """Return the top-level packages that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("server/slabd_server/core", PURE_FORBIDS | {"slabd", "slabd_proto"}),
        ("server/slabd_server", {"slabd"}),
        ("client/slabd", {"slabd_server"}),
        ("proto/slabd_proto", {"slabd", "slabd_server"}),
    ],
)
def test_no_forbidden_import(package: str, forbidden: set[str]) -> None:
    """No module imports upwards, and nothing in the core reaches the world outside."""
    for path in (ROOT / package).rglob("*.py"):
        assert not imports_of(path) & forbidden, path
