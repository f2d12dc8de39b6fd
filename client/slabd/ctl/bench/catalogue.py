"""The figures: what is measured, of whom, in which cases, and what each peer does in one round. Data.

The rounds themselves are in `peers/` and `handoff`; a test holds that each name here has its code there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slabd.ctl.bench.model import OURS, Case, Figure, Peer, Quantity, Unit
from slabd.ctl.units import human_bytes, human_count, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from slabd.ctl.bench.options import BenchOptions

FRAME_BYTES: Final = 1 << 20
CLIENT_BYTES: Final = 4096
BATCH: Final = 64
CLIENTS: Final = (1, 2, 4, 8)
IN_FLIGHT: Final = (1, 4)

_MEDIAN: Final = Quantity("median_us", "MEDIAN", Unit.MICROSECONDS)
_P99: Final = Quantity("p99_us", "P99", Unit.MICROSECONDS)
_CALLS: Final = Quantity("calls_per_round", "CALLS", Unit.COUNT)
_RATIO: Final = Quantity("ratio", "SLABD/PEER", Unit.TIMES)
_RANGE: Final = Quantity("ratio_range", "RANGE", Unit.RANGE)
_TIMED: Final = (_MEDIAN, _P99, _CALLS, _RATIO, _RANGE)


def figures(options: BenchOptions) -> list[Figure]:
    """Return the chosen figures."""
    return [_MAKERS[name](options) for name in options.names]


def _sizes(sizes: Iterable[int]) -> tuple[Case, ...]:
    return tuple(Case(human_bytes(size), size) for size in sizes)


def _turns(options: BenchOptions, cases: int, peers: int) -> int:
    return cases * peers * (options.pace.repeats + 1)


def _untouched(options: BenchOptions) -> Figure:
    peers = (
        Peer(OURS, "pool.lease(size), .view, release()"),
        Peer("shared_memory", "SharedMemory(create=True, size), .buf, close(), unlink()"),
        Peer(
            "manager",
            "the same by a SharedMemoryManager: .SharedMemory(size), .buf, close(), its process told to unlink",
        ),
        Peer("iceoryx2", "publisher.loan_slice_uninit(size), .payload(), delete(): nothing is sent"),
        Peer(
            "list pool",
            "floor: free.pop(), memory[at:at + size], its release(), free.append(at): one process, no safety",
        ),
    )
    return Figure(
        name="untouched",
        title="Lease, look at the view, release",
        what="A block of the size, whose bytes nobody touches.",
        case_title="SIZE",
        case_key="bytes",
        cases=_sizes(options.untouched_sizes),
        peers=peers,
        quantities=_TIMED,
        steps=_turns(options, len(options.untouched_sizes), len(peers)),
    )


def _miss(options: BenchOptions) -> Figure:
    peers = (
        Peer(OURS, "pool.lease(64), release(), with a cache of nothing: the daemon is woken for every lease"),
        Peer("by gRPC", "the same by a pool with lane=False: two calls"),
        Peer("bare echo", "two gRPC calls with messages as long, to a grpc.aio server that does nothing with them"),
        Peer("socket echo", "floor: 64 bytes through a unix socket to a process that does nothing else, and back"),
    )
    return Figure(
        name="miss",
        title="Lease and release, every one a miss",
        what="What it costs when nothing is at hand.",
        case_title="BLOCKS",
        case_key="blocks",
        cases=(Case("1", 1),),
        peers=peers,
        quantities=_TIMED,
        steps=_turns(options, 1, len(peers)),
    )


def _grpc(options: BenchOptions) -> Figure:
    peers = (
        Peer(OURS, f"lease() and release() of 64 B, or lease_many() and release_many() of {BATCH} of them, over gRPC"),
        Peer(
            "bare echo", "two calls with messages as long, to a grpc.aio server of its own that does nothing with them"
        ),
    )
    return Figure(
        name="grpc",
        title="Lease and release over gRPC",
        what="What slabd adds to what gRPC costs anyway.",
        case_title="BLOCKS",
        case_key="blocks",
        cases=(Case("1", 1), Case(str(BATCH), BATCH)),
        peers=peers,
        quantities=_TIMED,
        steps=_turns(options, 2, len(peers)),
    )


def _write(options: BenchOptions) -> Figure:
    peers = (
        Peer(OURS, "pool.lease(size), view[:] = data, release()"),
        Peer("shared_memory", "SharedMemory(create=True, size), buf[:] = data, close(), unlink()"),
        Peer("iceoryx2", "loan_slice_uninit(size), memmove to its pointer, delete()"),
        Peer(
            "memcpy, cold",
            "floor: the copy into memory that exists, by a new mapping of it, which is closed again",
        ),
        Peer("memcpy, warm", "floor: the copy into memory that is used again and again"),
    )
    return Figure(
        name="write",
        title="Lease, write all of it, release",
        what="A block of the size, filled with one copy from ordinary memory.",
        case_title="SIZE",
        case_key="bytes",
        cases=_sizes(options.write_sizes),
        peers=peers,
        quantities=_TIMED,
        steps=_turns(options, len(options.write_sizes), len(peers)),
    )


def _handoff(options: BenchOptions) -> Figure:
    peers = (
        Peer(OURS, "lease(), share(), release(), the handle through the pipe; open(), look, close()"),
        Peer("iceoryx2", "publish-subscribe: loan, send(), a byte through the pipe to wake; receive(), look, delete()"),
        Peer(
            "ideal pool", "floor: both processes map one memory, its free frames are a list; a number through the pipe"
        ),
        Peer("pipe", "the bytes themselves through the pipe: send_bytes(), recv_bytes()"),
        Peer("queue", "the bytes themselves through a multiprocessing.Queue: put(), get()"),
    )
    return Figure(
        name="handoff",
        title=f"Hand-off of {human_bytes(FRAME_BYTES)} from process to process",
        what="Each frame is numbered by the producer, in place; the consumer checks the number, gives the frame back "
        "and answers through the same multiprocessing.Pipe. CPU is seconds for 1000 frames.",
        case_title="IN FLIGHT",
        case_key="in_flight",
        cases=tuple(Case(str(count), count) for count in IN_FLIGHT),
        peers=peers,
        quantities=(
            Quantity("frames_per_second", "FRAMES/S", Unit.PER_SECOND),
            Quantity("producer_cpu_seconds", "PRODUCER", Unit.SECONDS),
            Quantity("consumer_cpu_seconds", "CONSUMER", Unit.SECONDS),
            Quantity("daemon_cpu_seconds", "DAEMON", Unit.SECONDS),
            _RATIO,
        ),
        steps=_turns(options, len(IN_FLIGHT), len(peers)),
    )


def _clients(options: BenchOptions) -> Figure:
    peers = (
        Peer(OURS, f"pool.lease({CLIENT_BYTES}), .view, release(), a pool in each process"),
        Peer("shared_memory", f"SharedMemory(create=True, {CLIENT_BYTES}), .buf, close(), unlink()"),
        Peer("iceoryx2", f"loan_slice_uninit({CLIENT_BYTES}), .payload(), delete(), a publisher in each process"),
    )
    return Figure(
        name="clients",
        title="Many clients at once",
        what=f"Blocks of {human_bytes(CLIENT_BYTES)}, a process for each client: pairs of lease and release, in all.",
        case_title="CLIENTS",
        case_key="clients",
        cases=tuple(Case(str(count), count) for count in CLIENTS),
        peers=peers,
        quantities=(Quantity("pairs_per_second", "PAIRS/S", Unit.PER_SECOND), _MEDIAN, _P99, _RATIO),
        steps=_turns(options, len(CLIENTS), len(peers)),
    )


def _calls(options: BenchOptions) -> Figure:
    return Figure(
        name="calls",
        title="gRPC calls in the steady state",
        what="By the daemon's own counters (grpc_server_started_total), after a warm-up.",
        case_title="LEASES AT MOST",
        case_key="leases_at_most",
        cases=(Case(human_count(options.pace.steady_leases), options.pace.steady_leases),),
        peers=(
            Peer(OURS, f"pool.lease({CLIENT_BYTES}), .view, release(), one after the other, for a few seconds at most"),
        ),
        quantities=(
            Quantity("leases", "LEASES", Unit.COUNT),
            Quantity("calls", "CALLS", Unit.COUNT),
            Quantity("calls_per_lease", "CALLS/LEASE", Unit.COUNT),
        ),
        steps=2,
    )


def _idle(_options: BenchOptions) -> Figure:
    return Figure(
        name="idle",
        title="Nobody does anything",
        what="CPU time of processes that wait, in percent of one core.",
        case_title="CLIENTS",
        case_key="clients",
        cases=(Case(str(CLIENTS[-1]), CLIENTS[-1]),),
        peers=(
            Peer(OURS, "the daemon, with this many connected pools in processes of their own, and these processes"),
        ),
        quantities=(
            Quantity("daemon_percent", "DAEMON", Unit.PERCENT),
            Quantity("clients_percent", "ALL CLIENTS", Unit.PERCENT),
        ),
        steps=1,
    )


def _live(options: BenchOptions) -> Figure:
    few, many = options.pace.live_blocks
    what = "pool.lease(64), kept, while the client holds so many others: nothing comes back, so no cache can serve it"
    return Figure(
        name="live",
        title="Many live blocks of one client",
        what=f"A lease that finds nothing to use again. The ratio is to {plural(few, 'live block')}; DAEMON and CLIENT "
        "are the memory that a live block takes in either process, the heap itself not counted.",
        case_title="LIVE",
        case_key="live_blocks",
        cases=(Case(human_count(few), few), Case(human_count(many), many)),
        peers=(Peer(OURS, what),),
        quantities=(
            _MEDIAN,
            _P99,
            Quantity("ratio", "RATIO", Unit.TIMES),
            _RANGE,
            Quantity("daemon_bytes_per_block", "DAEMON", Unit.BYTES),
            Quantity("client_bytes_per_block", "CLIENT", Unit.BYTES),
        ),
        steps=2 * (options.pace.repeats + 2),
    )


_MAKERS: Final[dict[str, Callable[[BenchOptions], Figure]]] = {
    "untouched": _untouched,
    "miss": _miss,
    "grpc": _grpc,
    "write": _write,
    "handoff": _handoff,
    "clients": _clients,
    "calls": _calls,
    "idle": _idle,
    "live": _live,
}
