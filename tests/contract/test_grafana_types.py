"""The dashboards are what Grafana's own types say, by the TypeScript compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.fixtures.dashboards import FILES

HERE = Path(__file__).parent / "grafana_types"
COMPILE = (
    "node_modules/.bin/tsc",
    "--strict",
    "--noEmit",
    "--skipLibCheck",
    "--module",
    "nodenext",
    "--target",
    "es2022",
)

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js and npm for @grafana/schema")


# What is right in the overview, and what would be wrong in its place.
WRONGS = {
    '"graphTooltip": 1': '"graphTooltip": 7',
    '"drawStyle": "line"': '"drawStyle": "lines"',
    '"showLegend": true': '"showLegends": true',
    '"expr":': '"query":',
}


def test_the_dashboards_have_grafanas_types(tmp_path: Path) -> None:
    """Every property is one that Grafana knows, with a value that it understands; what is wrong would be noticed."""
    place = tmp_path / "types"
    shutil.copytree(HERE, place)
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run(install, cwd=place, check=True, timeout=550)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in FILES}
    overview = texts["slabd-overview"]
    assert all(right in overview for right in WRONGS)
    wrong = {f"wrong{index}": overview.replace(*pair, 1) for index, pair in enumerate(WRONGS.items())}
    said = compiled(place, {**texts, **wrong})
    assert {line.split(".ts(")[0] for line in said.splitlines() if "error TS" in line} == set(wrong), said


def compiled(place: Path, boards: dict[str, str]) -> str:
    """Compile each board, a JSON text, as a constant of Grafana's type; return what the compiler says."""
    for name, text in boards.items():
        source = f"import type {{ Board }} from './types.js';\nexport const board: Board = {text};\n"
        (place / f"{name}.ts").write_text(source, encoding="utf-8")
    files = [f"{name}.ts" for name in boards]
    done = subprocess.run([*COMPILE, *files], cwd=place, capture_output=True, text=True, timeout=550, check=False)
    return done.stdout + done.stderr
