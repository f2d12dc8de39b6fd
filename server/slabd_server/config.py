"""What can be configured, and the loading of it.

The options of slabd are the fields of `Config` and `HeapConfig`, each declared once (see `options`). A value comes from
a flag, else from an environment variable, else from the TOML file that --config names, else it is the default.

Heaps. Without a `[heaps.NAME]` table there is one heap, called "default", made of the options below "Heaps". With such
tables there is one heap for each, and the options below "Heaps" say what a table does not.

Promises: a `Config` that `load_config` returned is consistent; every fault of a configuration is reported, each with
its source, the value, and what is allowed. Reads the configuration file and the names of users, nothing else.
"""

# ruff: noqa: RUF009 -- `option` is `dataclasses.field` with a declaration in its metadata

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from slabd_proto.runtime import default_runtime_dir, find_temporary_dir
from slabd_server.core.access import Policy
from slabd_server.core.records import Access
from slabd_server.core.served import HeapSpec
from slabd_server.core.shares import TTL_MAX_SECONDS
from slabd_server.core.sizes import MIN_HEAP
from slabd_server.options.checks import contradictions, heap_contradictions, remote_contradictions
from slabd_server.options.declare import (
    Computed,
    ConfigError,
    Environment,
    Flags,
    Option,
    Parser,
    Problem,
    Settings,
    Source,
    add_flags,
    find_settings,
    option,
    options_of,
)
from slabd_server.options.file import HEAPS, read_tables
from slabd_server.options.kinds import (
    GROUPS,
    USERS,
    Address,
    Choice,
    Count,
    FileMode,
    FilePath,
    OrOff,
    Seconds,
    Several,
    Size,
    Switch,
    TcpAddress,
)
from slabd_server.units import GIB

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from slabd_server.core.cleaner import Clear
    from slabd_server.core.sizes import SizeClasses
    from slabd_server.options.declare import Table
    from slabd_server.segments import HugePages

DEFAULT_HEAP: Final = "default"
_MAX_HEAP: Final = 1 << 46  # half of what a process of 47 bits can map
_DAY: Final = 86400.0
_YEAR: Final = 365 * _DAY
_REMOTE: Final = {"read-write": Access.READ_WRITE, "read-only": Access.READ_ONLY, "off": None}

_LISTENING: Final = "Where it listens"
_TLS: Final = "TLS, for the TCP addresses"
_LIMITS: Final = "Limits and stopping"
_LOGS: Final = "Logs"
_HEAPS_SECTION: Final = "Heaps"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeapConfig:
    """What one heap is to be."""

    name: str = DEFAULT_HEAP
    size_bytes: int = option(
        "heap-size",
        Size(minimum=MIN_HEAP, maximum=_MAX_HEAP, multiple_of=MIN_HEAP),
        default=GIB,
        help="Size of the heap. All of it is allocated at start.",
        section=_HEAPS_SECTION,
        table_key="size",
    )
    prefault: bool = option(
        "prefault",
        Switch(),
        default=False,
        help="Touch every page at start, so that no first use of a block has to wait for the kernel to clear it.",
        section=_HEAPS_SECTION,
    )
    huge_pages: HugePages = option(
        "huge-pages",
        Choice(("off", "transparent", "2MiB")),
        default="off",
        help="Pages the heap is made of. 2MiB takes them from the pool of vm.nr_hugepages; transparent needs "
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled, and implies prefault.",
        section=_HEAPS_SECTION,
    )
    size_classes: SizeClasses = option(
        "size-classes",
        Choice(("pow2", "fine")),
        default="pow2",
        help="Size classes of blocks up to 4 KiB: one to a doubling, or four.",
        section=_HEAPS_SECTION,
    )
    allow_uids: frozenset[int] = option(
        "allow-uids",
        USERS,
        default=Computed(lambda _: frozenset({os.geteuid()}), "the daemon's own user"),
        help="Users who may attach and write.",
        section=_HEAPS_SECTION,
        example=[1000],
    )
    allow_gids: frozenset[int] = option(
        "allow-gids",
        GROUPS,
        default=frozenset(),
        help="Groups whose members may attach and write.",
        section=_HEAPS_SECTION,
    )
    read_only_uids: frozenset[int] = option(
        "read-only-uids",
        USERS,
        default=frozenset(),
        help="Users who may attach for reading.",
        section=_HEAPS_SECTION,
    )
    read_only_gids: frozenset[int] = option(
        "read-only-gids",
        GROUPS,
        default=frozenset(),
        help="Groups whose members may attach for reading.",
        section=_HEAPS_SECTION,
    )
    remote: Literal["read-write", "read-only", "off"] = option(
        "remote",
        Choice(tuple(_REMOTE)),
        default="read-write",
        help="What sessions over gRPC alone may do, which map nothing and for which nobody vouches. Has to be set when "
        "socket_mode, or TCP without client certificates, lets other users connect.",
        section=_HEAPS_SECTION,
    )
    handle_ttl_seconds: float = option(
        "handle-ttl-seconds",
        Seconds(minimum=0.01, maximum=TTL_MAX_SECONDS),
        default=60.0,
        help="How long a handle stays good that nobody opens.",
        section=_HEAPS_SECTION,
    )
    session_ttl_seconds: float = option(
        "session-ttl-seconds",
        Seconds(minimum=0.01, maximum=_DAY),
        default=30.0,
        help="How long a session over gRPC alone lives without a sign of life.",
        section=_HEAPS_SECTION,
    )
    queue_limit: int = option(
        "queue-limit",
        Count(minimum=0, maximum=1_000_000),
        default=4096,
        help="How many requests may wait for memory; further ones are refused at once.",
        section=_HEAPS_SECTION,
    )

    give_back_seconds: float | None = option(
        "give-back-seconds",
        OrOff(Seconds(minimum=0.01, maximum=_YEAR)),
        default=None,
        help="How long memory stays free before it is given back to the system. It is taken again before it is leased; "
        "when the system has none left, that is an out-of-memory error of the lease.",
        section=_HEAPS_SECTION,
    )
    clear: Clear = option(
        "clear",
        Choice(("off", "users", "sessions")),
        default="users",
        help="Between whom blocks are cleared before they are leased again: nobody, different users, any two sessions.",
        section=_HEAPS_SECTION,
    )

    cache_percent: int = option(
        "cache-percent",
        Count(minimum=0, maximum=100),
        default=25,
        help="How much of the heap one client may keep at hand for its next leases, in percent. What is kept so counts "
        "as available: the daemon takes it back as soon as anybody needs it.",
        section=_HEAPS_SECTION,
    )

    def spec(self) -> HeapSpec:
        """Return what the core has to know of it."""
        return HeapSpec(
            name=self.name,
            size=self.size_bytes,
            policy=Policy(
                uids=self.allow_uids,
                gids=self.allow_gids,
                read_only_uids=self.read_only_uids,
                read_only_gids=self.read_only_gids,
                remote=_REMOTE[self.remote],
            ),
            size_classes=self.size_classes,
            handle_ttl=self.handle_ttl_seconds,
            session_ttl=self.session_ttl_seconds,
            queue_limit=self.queue_limit,
            give_back_seconds=self.give_back_seconds,
            clear=self.clear,
            cache_percent=self.cache_percent,
        )


def _runtime_dir(environ: Mapping[str, str]) -> Path:
    return Path(default_runtime_dir(environ, os.geteuid(), find_temporary_dir()))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the daemon is to do."""

    config_file: Path | None = option(
        "config",
        FilePath(),
        default=None,
        help="TOML file to read options from.",
        section=_LISTENING,
        in_file=False,
    )
    runtime_dir: Path = option(
        "runtime-dir",
        FilePath(),
        default=Computed(
            _runtime_dir,
            "$RUNTIME_DIRECTORY, else /run/slabd for root, else $XDG_RUNTIME_DIR/slabd, else slabd-UID below the "
            "temporary directory",
        ),
        help="Directory of the daemon's sockets. Clients find it by the same rules.",
        section=_LISTENING,
        example="/run/slabd",
    )
    socket_mode: int = option(
        "socket-mode",
        FileMode(),
        default=0o600,
        help="Permissions of slabd.sock and attach.sock: which clients may connect at all.",
        section=_LISTENING,
    )
    admin_socket_mode: int = option(
        "admin-socket-mode",
        FileMode(),
        default=0o600,
        help="Permissions of admin.sock: who may operate the daemon, which is to drain it, end sessions, and see who "
        "holds what.",
        section=_LISTENING,
    )
    listen: tuple[TcpAddress, ...] = option(
        "listen",
        Several(Address()),
        default=(),
        help="TCP addresses to serve gRPC on, besides the unix sockets.",
        section=_LISTENING,
        example=["127.0.0.1:9465"],
    )
    allow_insecure_listen: bool = option(
        "allow-insecure-listen",
        Switch(),
        default=False,
        help="Serve TCP without TLS to other machines too. Whoever reaches the port may then do what `remote` allows.",
        section=_LISTENING,
    )
    metrics_listen: TcpAddress | None = option(
        "metrics-listen",
        OrOff(Address()),
        default=TcpAddress("127.0.0.1", 9464),
        help="Address of the Prometheus metrics over HTTP.",
        section=_LISTENING,
    )
    tls_cert: Path | None = option(
        "tls-cert",
        FilePath(),
        default=None,
        help="PEM file with the server's certificate chain.",
        section=_TLS,
        example="/etc/slabd/tls/server.crt",
    )
    tls_key: Path | None = option(
        "tls-key",
        FilePath(),
        default=None,
        help="PEM file with its private key, not encrypted.",
        section=_TLS,
        example="/etc/slabd/tls/server.key",
    )
    tls_client_ca: Path | None = option(
        "tls-client-ca",
        FilePath(),
        default=None,
        help="PEM file with the authorities of clients' certificates. Then every client over TCP needs one (mTLS).",
        section=_TLS,
        example="/etc/slabd/tls/clients-ca.crt",
    )
    session_limit: int = option(
        "session-limit",
        Count(minimum=1, maximum=1_000_000),
        default=1024,
        help="How many sessions there may be at once.",
        section=_LIMITS,
    )
    drain_seconds: float = option(
        "drain-seconds",
        Seconds(minimum=0.0, maximum=_DAY),
        default=10.0,
        help="How long to wait for blocks to come back when told to stop.",
        section=_LIMITS,
    )
    stop_on_eof: bool = option(
        "stop-on-eof",
        Switch(),
        default=False,
        help="Stop when standard input is closed: for a private daemon that must not outlive its parent.",
        section=_LIMITS,
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "log-level",
        Choice(("debug", "info", "warning", "error")),
        default="info",
        help="The least severe messages to log.",
        section=_LOGS,
    )
    log_format: Literal["text", "json"] = option(
        "log-format",
        Choice(("text", "json")),
        default="text",
        help="Form of the log on standard error: text, or one JSON object to a line.",
        section=_LOGS,
    )
    heaps: tuple[HeapConfig, ...] = (HeapConfig(),)


DAEMON_OPTIONS: Final = options_of(Config)
HEAP_OPTIONS: Final = options_of(HeapConfig)
ALL_OPTIONS: Final[tuple[Option, ...]] = (*DAEMON_OPTIONS, *HEAP_OPTIONS)
_CONFIG_OPTION: Final = next(each for each in DAEMON_OPTIONS if not each.in_file)


class Loaded(NamedTuple):
    """A configuration and, for each value of it, where it came from. `heap_settings` are by the heap's name."""

    config: Config
    settings: Settings
    heap_settings: dict[str, Settings]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flag of every option to a parser."""
    add_flags(parser, ALL_OPTIONS)


def load_config(argv: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration that flags, environment and file make together.

    Raises:
        ConfigError: it cannot be used; it lists every problem.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    add_arguments(parser)
    return load(vars(parser.parse_args(argv)), environ).config


def load(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Loaded:
    """Return the configuration, and where each value came from, for flags that are parsed already.

    Raises:
        ConfigError: it cannot be used; it lists every problem.
    """
    problems: list[Problem] = []
    given: list[Source] = [Flags(flags), Environment(environ)]
    file = find_settings([_CONFIG_OPTION], given, environ, problems)[_CONFIG_OPTION.field].value
    top, tables = read_tables(file, DAEMON_OPTIONS, HEAP_OPTIONS, problems)
    sources = [*given, top]
    settings = find_settings(DAEMON_OPTIONS, sources, environ, problems)
    heap_settings = {
        table.name.removeprefix(f"{HEAPS}."): find_settings(HEAP_OPTIONS, [table, *sources], environ, problems)
        for table in tables
    } or {DEFAULT_HEAP: find_settings(HEAP_OPTIONS, sources, environ, problems)}
    if not problems:
        problems += contradictions(settings)
        problems += [problem for heap in heap_settings.values() for problem in heap_contradictions(heap)]
        problems += remote_contradictions(settings, heap_settings)
        problems += _useless_flags(flags, tables)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    heaps = tuple(HeapConfig(name=name, **_values(each)) for name, each in heap_settings.items())
    return Loaded(Config(heaps=heaps, **_values(settings)), settings, heap_settings)


def _values(settings: Settings) -> dict[str, Any]:
    return {name: setting.value for name, setting in settings.items()}


def _useless_flags(flags: Mapping[str, Any], tables: Sequence[Table]) -> list[Problem]:
    """List the flags that nobody heeds: every heap's table knows better. Silence would surprise."""
    return [
        Problem(each.flag, f"has no effect: every [{HEAPS}.NAME] table has its own {each.table_key}")
        for each in HEAP_OPTIONS
        if tables and each.stem in flags and all(each.table_key in table.values for table in tables)
    ]
