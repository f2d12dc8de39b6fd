"""The sample configuration file is what the declarations say, and it works."""

from __future__ import annotations

import re
from pathlib import Path

from slabd_server.config import ALL_OPTIONS, HEAP_OPTIONS, Config, load_config
from slabd_server.options.kinds import TcpAddress
from slabd_server.options.text import markdown_table, sample_toml

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "deploy" / "slabd.toml.sample"


def uncommented(text: str) -> str:
    """Take the "#" off every line that is a setting or a table."""
    return re.sub(r"^#(?=[a-z\[])", "", text, flags=re.MULTILINE)


def test_the_sample_file_is_made_from_the_declarations() -> None:
    """If this fails: slabd check-config --print-sample > deploy/slabd.toml.sample."""
    assert SAMPLE.read_text(encoding="utf-8") == sample_toml()


def test_the_sample_as_it_is_changes_nothing() -> None:
    """Every line is commented out."""
    config = load_config(["--config", str(SAMPLE)], {})
    assert config.heaps == Config().heaps
    assert config.listen == ()


def test_the_sample_loads_with_every_line_uncommented(tmp_path: Path) -> None:
    """Every default and every example is allowed, and they go together."""
    file = tmp_path / "slabd.toml"
    file.write_text(uncommented(SAMPLE.read_text(encoding="utf-8")), encoding="utf-8")
    config = load_config(["--config", str(file)], {})
    assert [heap.name for heap in config.heaps] == ["frames"]
    assert config.listen == (TcpAddress("127.0.0.1", 9465),)
    assert config.tls_client_ca == Path("/etc/slabd/tls/clients-ca.crt")


def test_the_sample_has_every_option() -> None:
    """Those that can be in a file, at the top level; those of heaps in the table too."""
    lines = sample_toml().splitlines()
    top, table = "\n".join(lines[: lines.index("#[heaps.frames]")]), "\n".join(lines[lines.index("#[heaps.frames]") :])
    assert re.findall(r"^#([a-z_]+) = ", top, re.MULTILINE) == [each.key for each in ALL_OPTIONS if each.in_file]
    assert re.findall(r"^#([a-z_]+) = ", table, re.MULTILINE) == [each.table_key for each in HEAP_OPTIONS]


def test_the_readme_table_has_every_option() -> None:
    """One row for each, and no cell breaks the table."""
    _, _, *rows = markdown_table().splitlines()
    assert [row.split("|")[1].strip(" `") for row in rows] == [each.flag for each in ALL_OPTIONS]
    assert {row.replace(r"\|", "").count("|") for row in rows} == {6}


def test_every_option_has_names_of_its_own() -> None:
    """No two options share a flag, a field or a key, and each says what it is for."""
    for names in ([each.flag for each in ALL_OPTIONS], [each.field for each in ALL_OPTIONS]):
        assert len(set(names)) == len(names)
    assert len({each.table_key for each in HEAP_OPTIONS}) == len(HEAP_OPTIONS)
    assert all(each.help.endswith(".") for each in ALL_OPTIONS)
