"""The README's code runs, its table is what the declarations say, and its paths exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from slabd_server.options.text import markdown_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(code: str) -> None:
    """Each example is a program that ends well."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=550)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted((ROOT / "client/examples").glob("*.py")), ids=lambda path: path.name)
def test_client_examples_run(path: Path) -> None:
    """Each file of client/examples runs by itself and prints something."""
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False, timeout=550)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_table_of_options_is_made_from_the_declarations() -> None:
    """If this fails: put what markdown_table() returns between the two comments."""
    found = re.search(r"^<!-- options: .*?-->\n(.*?)<!-- /options -->$", README, re.MULTILINE | re.DOTALL)
    assert found is not None
    assert found[1] == markdown_table()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|client|deploy|proto|server)/[\w./]+)`", README))))
def test_paths_exist(path: str) -> None:
    """A file that the README names is there."""
    assert (ROOT / path).exists()
