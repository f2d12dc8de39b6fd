"""Options: where values come from, what is refused and how, and what becomes of heaps."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import Any

import pytest

from slabd_server.config import ALL_OPTIONS, HEAP_OPTIONS, Config, HeapConfig, load, load_config
from slabd_server.core.access import Policy
from slabd_server.core.records import Access
from slabd_server.core.served import HeapSpec
from slabd_server.options.declare import Computed, ConfigError, Flags, Given, Option, Table
from slabd_server.options.kinds import NotAllowed, Switch, TcpAddress
from slabd_server.units import GIB, MIB

ELSEWHERE = {"RUNTIME_DIRECTORY": "/run/elsewhere"}


def write(directory: Path, text: str) -> str:
    """Write a configuration file and return the flag that names it."""
    (directory / "slabd.toml").write_text(text, encoding="utf-8")
    return f"--config={directory / 'slabd.toml'}"


def problems(*argv: str, environ: dict[str, str] | None = None) -> list[str]:
    """Load a configuration that cannot be used, and return what is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        load_config(argv, environ or {})
    return [str(problem) for problem in caught.value.problems]


def another_value(option: Option) -> Any:
    """Return a value for an option, as a file would have it, which is not its default."""
    if option.example is not None:
        return option.example
    special: dict[str, Any] = {
        "socket-mode": "0660",
        "admin-socket-mode": "0660",
        "metrics-listen": "off",
        "log-level": "debug",
        "log-format": "json",
        "heap-size": "64MiB",
        "huge-pages": "2MiB",
        "size-classes": "fine",
        "remote": "read-only",
        "give-back-seconds": 60,
        "clear": "sessions",
        "allow-gids": [5],
        "read-only-uids": [6],
        "read-only-gids": [7, 8],
        "config": "/dev/null",
    }
    if option.stem in special:
        return special[option.stem]
    return True if isinstance(option.kind, Switch) else option.default + 1


# -- every option, by every way


@pytest.mark.parametrize("option", ALL_OPTIONS, ids=lambda option: option.stem)
def test_an_option_means_the_same_in_every_source(option: Option, tmp_path: Path) -> None:
    """Flag, variable, top level and heap table give equal values, none of which is the default."""
    value = another_value(option)
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value).lower() if value is True else str(value)
    flag: Any = True if isinstance(option.kind, Switch) else [text] if option.kind.repeatable else text
    by_flag = Flags({option.stem: flag}).given(option)
    by_variable = Given(option.variable, text, is_text=True, base=tmp_path)
    by_file = Table(tmp_path / "slabd.toml", {option.key: value}).given(option)
    assert by_flag is not None
    values = [by_flag.read(option.kind), by_variable.read(option.kind)]
    if option.in_file:
        assert by_file is not None
        values.append(by_file.read(option.kind))
    if option in HEAP_OPTIONS:
        in_table = Table(tmp_path / "slabd.toml", {option.table_key: value}, "heaps.a").given(option)
        assert in_table is not None
        values.append(in_table.read(option.kind))
    assert values == [values[0]] * len(values)
    assert values[0] != option.default_in(ELSEWHERE)


@pytest.mark.parametrize("option", ALL_OPTIONS, ids=lambda option: option.stem)
def test_a_default_is_a_value_that_the_option_allows(option: Option) -> None:
    """What the sample file shows as the default is read as the default."""
    default = option.default_in(ELSEWHERE)
    if default is None and not option.kind.metavar.endswith("off"):
        return
    assert option.kind.from_toml(option.kind.written(default)) == default


@pytest.mark.parametrize("option", ALL_OPTIONS, ids=lambda option: option.stem)
@pytest.mark.parametrize("value", [{}, [[]], 1979.5e300, "\0"], ids=repr)
def test_no_option_takes_just_anything(option: Option, value: Any) -> None:
    """A table, a list of lists, an enormous number and a zero byte are refused everywhere, with what is allowed."""
    with pytest.raises(NotAllowed, match="is not "):
        option.kind.from_toml(value)


def test_the_dataclasses_have_the_same_defaults_as_loading() -> None:
    """`Config()` in a test is what `slabd serve` without options would use."""
    assert load_config([], os.environ) == Config()


# -- precedence


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    """Take one source away after the other."""
    file = write(tmp_path, "session_limit = 3")
    flag, variable = "--session-limit=1", {"SLABD_SESSION_LIMIT": "2"}
    assert load_config([file, flag], variable).session_limit == 1
    assert load_config([file], variable).session_limit == 2
    assert load_config([file], {}).session_limit == 3
    assert load_config([], {}).session_limit == 1024


def test_a_setting_says_where_it_came_from(tmp_path: Path) -> None:
    """The source is the flag, the variable, the file with the key, or the default."""
    write(tmp_path, "session_limit = 3\n[heaps.a]\nsize = 65536")
    path = str(tmp_path / "slabd.toml")
    loaded = load({"config": path, "prefault": True}, {"SLABD_LOG_LEVEL": "debug"})
    heap = loaded.heap_settings["a"]
    found = [loaded.settings[name].source for name in ("config_file", "log_level", "session_limit", "listen")]
    assert found == ["--config", "SLABD_LOG_LEVEL", f"{path}: session_limit", "default"]
    assert [heap[name].source for name in ("size_bytes", "prefault")] == [f"{path}: heaps.a.size", "--prefault"]


def test_the_file_can_be_named_by_a_variable(tmp_path: Path) -> None:
    """$SLABD_CONFIG does what --config does."""
    write(tmp_path, "session_limit = 3")
    assert load_config([], {"SLABD_CONFIG": str(tmp_path / "slabd.toml")}).session_limit == 3


def test_an_empty_variable_is_not_set() -> None:
    """As in compose files, where a variable cannot be absent."""
    assert load_config([], {"SLABD_HEAP_SIZE": "", "SLABD_LISTEN": ""}).heaps == (HeapConfig(),)


def test_an_empty_flag_overrides_a_list() -> None:
    """`--listen ''` means none at all."""
    assert load_config(["--listen", ""], {"SLABD_LISTEN": "127.0.0.1:1"}).listen == ()


def test_a_switch_can_be_turned_off_again() -> None:
    """`--no-prefault` beats the variable."""
    assert not load_config(["--no-prefault"], {"SLABD_PREFAULT": "yes"}).heaps[0].prefault


def test_a_list_flag_may_be_repeated_or_have_commas() -> None:
    """Both ways mix, in order."""
    config = load_config(["--listen", "127.0.0.1:1,localhost:2", "--listen", "[::1]:3", "--remote=off"], {})
    assert config.listen == (TcpAddress("127.0.0.1", 1), TcpAddress("localhost", 2), TcpAddress("::1", 3))
    assert [str(address) for address in config.listen] == ["127.0.0.1:1", "localhost:2", "[::1]:3"]


def test_the_runtime_directory_follows_the_environment() -> None:
    """The default is the one that clients compute too."""
    assert load_config([], {"RUNTIME_DIRECTORY": "/run/a:/run/b"}).runtime_dir == Path("/run/a")
    assert load_config([], {"SLABD_RUNTIME_DIR": "/x", "RUNTIME_DIRECTORY": "/run/a"}).runtime_dir == Path("/x")


def test_relative_paths_are_relative_to_who_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line to the working directory, in the file to the file."""
    (tmp_path / "etc").mkdir()
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "etc", 'runtime_dir = "../run"')
    assert load_config(["--config", "etc/slabd.toml"], {}).runtime_dir == tmp_path / "run"
    assert load_config(["--config", "etc/slabd.toml", "--runtime-dir", "run2"], {}).runtime_dir == tmp_path / "run2"


# -- what is refused


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("--heap-size=0", "--heap-size: '0' is not a multiple of 32KiB from 32KiB to 64TiB, such as 64MiB or 1GiB"),
        ("--heap-size=-1", "--heap-size: '-1' is not a multiple of 32KiB"),
        ("--heap-size=33KiB", "--heap-size: '33KiB' is not a multiple of 32KiB"),
        ("--heap-size=1GB", "--heap-size: '1GB' is not a multiple of 32KiB"),
        ("--heap-size=65TiB", "--heap-size: '65TiB' is not a multiple of 32KiB from 32KiB to 64TiB"),
        ("--session-limit=0", "--session-limit: 0 is not a whole number from 1 to 1000000"),
        ("--session-limit=1.5", "--session-limit: '1.5' is not a whole number"),
        ("--drain-seconds=nan", "--drain-seconds: 'nan' is not a number of seconds from 0 to 86400"),
        ("--handle-ttl-seconds=0", "--handle-ttl-seconds: '0' is not a number of seconds from 0.01 to 604800"),
        ("--socket-mode=0400", "--socket-mode: '0400' is not an octal mode"),
        ("--socket-mode=9", "--socket-mode: '9' is not an octal mode"),
        ("--listen=1234", "--listen: '1234' is not HOST:PORT"),
        ("--listen=::1:80", "--listen: '::1:80' is not HOST:PORT"),
        ("--listen=localhost:65536", "--listen: 'localhost:65536' is not HOST:PORT"),
        ("--metrics-listen=on", "--metrics-listen: 'on' is not HOST:PORT, such as"),
        ("--log-level=loud", "--log-level: 'loud' is not one of debug, info, warning, error"),
        ("--allow-uids=1,no-such-user", "--allow-uids: 'no-such-user' is not a number or the name of a user"),
        ("--allow-gids=4294967295", "--allow-gids: 4294967295 is not a number or the name of a group"),
        ("--runtime-dir=", "--runtime-dir: '' is not a path"),
        ("--heapsize=1", "command line: no such option: --heapsize=1; did you mean --heap-size?"),
        ("--listen", "command line: argument --listen: expected one argument"),
        ("--heap-siz=1GiB", "command line: no such option: --heap-siz=1GiB; did you mean --heap-size?"),
    ],
)
def test_a_flag_that_is_wrong_is_refused_with_what_is_allowed(argument: str, problem: str) -> None:
    """The message names the flag, the value and what would do."""
    (found,) = problems(argument)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("heap_sze = 1", "heap_sze: no such option; did you mean heap_size?"),
        ("config = 'x'", "config: no such option"),
        ("zzz = 1", "zzz: no such option; there are admin_socket_mode, allow_gids"),
        ("heap_size = true", "heap_size: True is not a multiple"),
        ("heap_size = 1.5", "heap_size: 1.5 is not a multiple"),
        ("prefault = 'yes'", "prefault: 'yes' is not true or false"),
        ("prefault = 1", "prefault: 1 is not true or false"),
        ("session_limit = '5'", "session_limit: '5' is not a whole number"),
        ("drain_seconds = inf", "drain_seconds: inf is not a number of seconds"),
        ("drain_seconds = true", "drain_seconds: True is not a number of seconds"),
        ("socket_mode = 660", "socket_mode: 660 is not an octal mode"),
        ("listen = '127.0.0.1:1'", "listen: '127.0.0.1:1' is not a list, each entry HOST:PORT"),
        ("listen = [1]", "listen: 1 is not HOST:PORT"),
        ("log_level = 3", "log_level: 3 is not one of"),
        ("allow_uids = [-1]", "allow_uids: -1 is not a number or the name of a user"),
        ("heaps = 3", "heaps: 3 is not a table; write [heaps.NAME]"),
        ("heaps.a = 3", "heaps.a: 3 is not a table; write [heaps.NAME]"),
        ("[heaps.a]\nheap_size = 1", "heaps.a.heap_size: no such option; did you mean size?"),
        ("[heaps.a]\nlisten = []", "heaps.a.listen: no such option"),
        ("[heaps.a]\nsize = '1'", "heaps.a.size: '1' is not a multiple of 32KiB"),
        ("[heaps.'A b']\n", "heaps.A b: a heap's name has 1 to 63 of a-z"),
        ("[heaps.'']\n", "heaps.: a heap's name has 1 to 63 of a-z"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_file_and_key(tmp_path: Path, line: str, problem: str) -> None:
    """The message names the file, the key, the value and what would do."""
    (found,) = problems(write(tmp_path, line))
    assert found.startswith(f"{tmp_path / 'slabd.toml'}: {problem}")


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    """From all sources, in one error of several lines."""
    file = write(tmp_path, "oops = 1\nprefault = 3\n[heaps.a]\nsize = 1\n[heaps.b]\nsize = 2")
    with pytest.raises(ConfigError) as caught:
        load_config([file, "--log-level=loud"], {"SLABD_SESSION_LIMIT": "many"})
    path = tmp_path / "slabd.toml"
    assert [problem.source for problem in caught.value.problems] == [
        f"{path}: oops",
        "SLABD_SESSION_LIMIT",
        "--log-level",
        f"{path}: heaps.a.size",
        f"{path}: prefault",
        f"{path}: heaps.b.size",
    ]
    assert str(caught.value).startswith(f"6 problems:\n  {path}: oops: no such option")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, a directory, not TOML, not text: each with the file's name, the rest of the problems besides."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    missing, *rest = problems(f"--config={tmp_path}/none", "--log-level=loud")
    assert missing == f"{tmp_path}/none: cannot be read: No such file or directory"
    assert len(rest) == 1
    assert problems(f"--config={tmp_path}") == [f"{tmp_path}: cannot be read: Is a directory"]
    assert problems(write(tmp_path, "a = "))[0].startswith(f"{tmp_path}/slabd.toml: is not TOML: Invalid value")
    assert problems(f"--config={tmp_path}/binary")[0].startswith(f"{tmp_path}/binary: is not TOML")


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "example.org:1"])
def test_other_machines_are_served_without_tls_only_on_demand(address: str) -> None:
    """Plain TCP beyond loopback needs TLS or a word."""
    (found,) = problems("--listen", address, "--remote=read-only")
    assert found.startswith(f"--listen: '{address}' would serve other machines without TLS")
    assert "--allow-insecure-listen" in found
    tls = ["--tls-cert=/c", "--tls-key=/k"]
    for more in (["--allow-insecure-listen"], tls):
        config = load_config(["--listen", address, "--remote=read-only", *more], {})
        assert [*map(str, config.listen)] == [address]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.1.2.3:0", "[::1]:1", "localhost:1", "LOCALHOST:1"])
def test_loopback_needs_no_tls(address: str) -> None:
    """No other machine can reach it."""
    assert str(load_config(["--listen", address, "--remote=read-write"], {}).listen[0]) == address


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--tls-cert=/c"], "--tls-cert: '/c' needs --tls-key too"),
        (["--tls-key=/k"], "--tls-key: '/k' needs --tls-cert too"),
        (["--tls-client-ca=/a"], "--tls-client-ca: '/a' needs --tls-cert too"),
    ],
)
def test_tls_files_come_together(argv: list[str], problem: str) -> None:
    """A certificate without its key, a key alone, and an authority alone are refused."""
    assert problems("--listen=localhost:1", "--remote=off", *argv) == [problem]


def test_tls_without_an_address_has_no_effect_and_says_so() -> None:
    """Somebody who configures TLS believes to be listening."""
    (found,) = problems("--tls-cert=/c", "--tls-key=/k")
    assert found.startswith("--tls-cert: '/c' has no effect without a TCP address")


def test_an_address_is_given_once() -> None:
    """Twice the same port, or that of the metrics, could not be bound; port 0 is a new one each time."""
    found = problems("--remote=off", "--listen=127.0.0.1:1,127.0.0.1:1")
    assert found == ["--listen: '127.0.0.1:1' is given twice"]
    found = problems("--remote=off", "--listen=127.0.0.1:9464")
    assert found == ["--listen: '127.0.0.1:9464' is the address of the metrics already"]
    config = load_config(["--remote=off", "--listen=127.0.0.1:0,127.0.0.1:0", "--metrics-listen=127.0.0.1:0"], {})
    assert len(config.listen) == 2


def test_the_metrics_can_be_off() -> None:
    """`off` is None."""
    assert load_config(["--metrics-listen=off"], {}).metrics_listen is None


def test_a_runtime_directory_too_long_for_sockets_is_refused() -> None:
    """Before the kernel says "AF_UNIX path too long"."""
    (found,) = problems(f"--runtime-dir=/{'x' * 100}")
    assert found.startswith("--runtime-dir: '/xxx")
    assert found.endswith("is too long: the path of a socket in it has 113 bytes, the kernel takes 107")


@pytest.mark.parametrize("mode", ["0660", "0606", "0666", "0777"])
def test_a_socket_open_to_others_needs_a_word_on_remote(mode: str) -> None:
    """Over gRPC alone nobody vouches for them, so the default is not taken for an answer."""
    (found,) = problems(f"--socket-mode={mode}")
    assert found.startswith(f"--socket-mode: '{mode}' lets other users connect")
    assert "say what they may do with heap default: remote = off" in found
    for remote in ("off", "read-only", "read-write"):
        assert load_config([f"--socket-mode={mode}", f"--remote={remote}"], {}).heaps[0].remote == remote


def test_tcp_without_client_certificates_needs_a_word_on_remote() -> None:
    """On loopback too: every user of the machine may connect there."""
    (found,) = problems("--listen=127.0.0.1:1")
    assert found.startswith("--listen: '127.0.0.1:1' lets other users connect")
    (found,) = problems("--listen=127.0.0.1:1", "--tls-cert=/c", "--tls-key=/k")
    assert "nobody vouches for them" in found
    tls = ["--tls-cert=/c", "--tls-key=/k", "--tls-client-ca=/ca"]
    assert load_config(["--listen=127.0.0.1:1", *tls], {}).heaps[0].remote == "read-write"


@pytest.mark.parametrize("argv", [["--socket-mode=0600"], ["--socket-mode=0700"], ["--admin-socket-mode=0666"]])
def test_a_socket_for_its_owner_needs_no_word_on_remote(argv: list[str]) -> None:
    """Its permissions vouch for whoever connects; those of admin.sock are about something else."""
    assert load_config(argv, {}).heaps[0].remote == "read-write"


def test_every_heap_needs_a_word_on_remote(tmp_path: Path) -> None:
    """From its table, or for all of them from anywhere else; the message names the heap and the mode's source."""
    tables = "socket_mode = '0660'\n{}[heaps.a]\nremote = 'off'\n[heaps.b]\n[heaps.c]\n"
    found = problems(write(tmp_path, tables.format("")))
    assert [text.partition(" lets ")[0] for text in found] == [f"{tmp_path}/slabd.toml: socket_mode: '0660'"] * 2
    assert ["heap b:" in found[0], "heap c:" in found[1]] == [True, True]
    config = load_config([write(tmp_path, tables.format("remote = 'read-only'\n"))], {})
    assert [heap.remote for heap in config.heaps] == ["off", "read-only", "read-only"]
    assert load_config([write(tmp_path, tables.format("")), "--remote=read-write"], {}).heaps[1].remote == "read-write"


# -- heaps


def test_without_tables_there_is_one_heap() -> None:
    """It is called default, and made of the options."""
    config = load_config(["--heap-size=64MiB", "--size-classes=fine"], {"SLABD_PREFAULT": "1"})
    assert config.heaps == (HeapConfig(size_bytes=64 * MIB, size_classes="fine", prefault=True),)


def test_tables_make_heaps_and_the_top_level_their_defaults(tmp_path: Path) -> None:
    """What a table says holds for its heap; what it does not say comes from flag, variable, top level, default."""
    file = write(
        tmp_path,
        "heap_size = '64MiB'\nqueue_limit = 7\n[heaps.a]\nsize = 65536\nremote = 'off'\n[heaps.b-2]\nprefault = false",
    )
    config = load_config([file, "--prefault"], {"SLABD_SIZE_CLASSES": "fine"})
    assert config.heaps == (
        HeapConfig(name="a", size_bytes=65536, queue_limit=7, remote="off", prefault=True, size_classes="fine"),
        HeapConfig(name="b-2", size_bytes=64 * MIB, queue_limit=7, size_classes="fine"),
    )


def test_a_flag_that_no_heap_heeds_is_refused(tmp_path: Path) -> None:
    """When every table has its own size, --heap-size would be ignored in silence."""
    file = write(tmp_path, "[heaps.a]\nsize = 65536\n[heaps.b]\nsize = 65536")
    expected = "--heap-size: has no effect: every [heaps.NAME] table has its own size"
    assert problems(file, "--heap-size=1GiB") == [expected]


def test_an_empty_table_of_heaps_is_none(tmp_path: Path) -> None:
    """`[heaps]` alone leaves the default heap."""
    assert [heap.name for heap in load_config([write(tmp_path, "[heaps]\n")], {}).heaps] == ["default"]


def test_a_heap_of_2_mib_pages_is_a_multiple_of_them(tmp_path: Path) -> None:
    """Checked for each heap, and named by where the size came from."""
    assert problems("--huge-pages=2MiB", "--heap-size=1MiB") == [
        "--heap-size: '1MiB' is not a multiple of 2MiB, as huge_pages asks for"
    ]
    file = write(tmp_path, "huge_pages = '2MiB'\n[heaps.a]\nsize = '2MiB'\n[heaps.b]\nsize = 32768")
    assert problems(file)[0].endswith("heaps.b.size: '32KiB' is not a multiple of 2MiB, as huge_pages asks for")


@pytest.mark.parametrize("pages", ["2MiB", "transparent"])
def test_huge_pages_are_not_given_back(pages: str, tmp_path: Path) -> None:
    """The ones are reserved anyway, and of the others only small pages would come again."""
    file = write(tmp_path, f"huge_pages = '{pages}'\n[heaps.a]\nsize = '2MiB'\ngive_back_seconds = 5")
    assert f"does not go with {pages}" in problems(file)[0]


def test_users_go_by_name_or_number() -> None:
    """Names are looked up on this machine."""
    heap = load_config([f"--allow-uids={getpass.getuser()},7", "--allow-gids=8"], {}).heaps[0]
    assert (heap.allow_uids, heap.allow_gids) == (frozenset({os.getuid(), 7}), frozenset({8}))


def test_the_core_gets_what_it_has_to_know() -> None:
    """The heap's spec has its policy, times and limits."""
    heap = HeapConfig(
        name="frames",
        size_bytes=GIB,
        allow_uids=frozenset({1}),
        read_only_gids=frozenset({2}),
        remote="read-only",
        size_classes="fine",
        handle_ttl_seconds=1.5,
        session_ttl_seconds=2.5,
        queue_limit=3,
    )
    assert heap.spec() == HeapSpec(
        name="frames",
        size=GIB,
        policy=Policy(uids=frozenset({1}), read_only_gids=frozenset({2}), remote=Access.READ_ONLY),
        size_classes="fine",
        handle_ttl=1.5,
        session_ttl=2.5,
        queue_limit=3,
    )
    assert HeapConfig(remote="off").spec().policy.remote is None
    assert HeapConfig().spec().policy.uids == {os.geteuid()}


def test_computed_defaults_are_described_in_words() -> None:
    """What depends on the machine is not shown as it happens to be on this one."""
    computed = {option.stem for option in ALL_OPTIONS if isinstance(option.default, Computed)}
    assert computed == {"runtime-dir", "allow-uids"}
    assert all(option.example for option in ALL_OPTIONS if option.stem in computed)
