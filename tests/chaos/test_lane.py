"""The lane under fire: killed, interrupted, forked and scribbled over, no block is lost, and none is in two hands."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemons import PATIENCE_SECONDS, DaemonProcess, eventually
from tests.fixtures.programs import program, run

import slabd

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.fixtures.puppets import Puppet

# Hands blocks on to whoever reads the next line, and opens those of others: each is full of one byte, and stays so.
TRADER = """
    import random

    pool = slabd.connect(sys.argv[1])
    dice = random.Random(os.getpid())
    seen = 0
    print("ready", flush=True)
    for line in sys.stdin:
        for text in line.split():
            try:
                with pool.open(text) as ref:
                    byte = ref.view[0]
                    for _ in range(3):
                        if bytes(ref.view) != bytes([byte]) * len(ref.view):
                            print("torn", flush=True)
                        time.sleep(0)
                    seen += 1
            except slabd.StaleHandle:
                pass
        handles = []
        for _ in range(10):
            size = dice.choice((64, 500, 3000, 20_000))
            try:
                lease = pool.lease(size)
            except slabd.OutOfMemory:
                continue
            byte = dice.randrange(256)
            lease.view[:] = bytes([byte]) * size
            handles.append(str(lease.share(opens=2, ttl=5.0)))
            if dice.random() < 0.7:
                lease.release()
            elif bytes(lease.view) != bytes([byte]) * size:
                print("torn", flush=True)
        print(*handles, flush=True)
"""


def start(daemon: DaemonProcess, tmp_path: Path) -> subprocess.Popen[str]:
    """Start a trader."""
    trader = program(daemon, tmp_path, TRADER)
    assert trader.stdout is not None
    assert trader.stdout.readline() == "ready\n", trader.stderr
    return trader


def test_killing_traders_at_any_moment(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Processes that hand blocks around are killed at random and replaced: no block is torn, none is lost."""
    dice = random.Random(1)
    traders = [start(daemon, tmp_path) for _ in range(3)]
    handles: list[str] = []
    for turn in range(60):
        trader = dice.choice(traders)
        assert trader.stdin is not None
        assert trader.stdout is not None
        trader.stdin.write(" ".join(dice.sample(handles, min(len(handles), 15))) + "\n")
        trader.stdin.flush()
        if turn % 10 == 9:
            time.sleep(dice.random() * 0.01)
            trader.kill()
            trader.communicate()
            traders.remove(trader)
            traders.append(start(daemon, tmp_path))
            daemon.check()
            continue
        answer = trader.stdout.readline()
        assert "torn" not in answer, answer
        assert answer, trader.stderr.read() if trader.stderr else ""
        handles = (handles + answer.split())[-60:]
    for trader in traders:
        trader.kill()
        out, _ = trader.communicate()
        assert "torn" not in out
    eventually(lambda: not daemon.leases(), "every block is back")
    daemon.check()
    assert "is ended:" not in daemon.log_text


def test_noise_over_a_lane(daemon: DaemonProcess, puppet: Callable[..., Puppet]) -> None:
    """A client that overwrites all memory it shares with the daemon, lane included, is the only one who suffers."""
    for _ in range(3):
        noisy = puppet()
        for size in (64, 5000):
            noisy.do("lease", size)
        noisy.do("fill_cache", 100_000, 1000)
        noisy.do("scribble")
        with slabd.connect(daemon.address) as pool:
            lease = pool.lease(100_000)
            lease.view[:5] = b"hello"
            ref = pool.open(lease.share())
            assert bytes(ref.view[:5]) == b"hello"
            ref.release()
            lease.release()
            daemon.leases()
            daemon.check()
            with pool.lease(15 << 20, timeout=0):
                noisy.kill()
    eventually(lambda: not daemon.leases())
    assert "Traceback" not in daemon.log_text


STORM = """
    import random

    struck = 0
    armed = False

    class Struck(KeyboardInterrupt):
        pass

    def strike(_number, _frame):
        global struck
        if armed:
            struck += 1
            raise Struck

    signal.signal(signal.SIGALRM, strike)
    sys.unraisablehook = lambda _unraisable: None
    maker, reader = slabd.connect(sys.argv[1]), slabd.connect(sys.argv[1])
    dice = random.Random(int(sys.argv[2]))
    end = time.monotonic() + 4.0
    done = 0
    while time.monotonic() < end:
        lease = ref = handle = None
        signal.setitimer(signal.ITIMER_REAL, dice.random() * 0.001 + 1e-6)
        try:
            armed = True
            size = dice.choice((64, 900, 1000, 5000))
            lease = maker.lease(size)
            lease.view[:4] = b"mine"
            if dice.random() < 0.5:
                handle = lease.share(ttl=0.2)
                ref = reader.open(handle)
                assert bytes(ref.view[:4]) == b"mine", bytes(ref.view[:4])
                ref.release()
            lease.release()
            armed = False
            done += 1
        except Struck:
            armed = False
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        del lease, ref, handle
    gc.collect()
    print(done, struck, flush=True)
    # What nobody uses is in a cache, or on its way back.
    deadline = time.monotonic() + 60
    while maker.stats().used_bytes and time.monotonic() < deadline:
        time.sleep(0.05)
    print(maker.stats().used_bytes, flush=True)
    maker.lease(16 << 20, timeout=60).release()
    print("all of it", flush=True)
    maker.close()
    reader.close()
"""


@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_storm_of_interrupts_loses_nothing(daemon: DaemonProcess, tmp_path: Path, seed: str) -> None:
    """Struck hundreds of times while it leases, shares, opens and releases, a client loses no block."""
    first, used, all_of_it = run(daemon, tmp_path, STORM, seed).splitlines()
    done, struck = map(int, first.split())
    assert done > 10
    assert struck > 10
    assert (used, all_of_it) == ("0", "all of it")
    eventually(lambda: not daemon.leases())
    assert "is ended:" not in daemon.log_text


def test_forks_during_lane_traffic(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Children see what their parent had in use at the fork, unchanged, while its threads lease and release."""
    out = run(
        daemon,
        tmp_path,
        """
        pool = slabd.connect(sys.argv[1])
        over = threading.Event()
        sys.setswitchinterval(1e-4)
        current = {}

        def work(number):
            turn = 0
            while not over.is_set():
                turn += 1
                lease = pool.lease(1000)
                lease.view[:] = bytes([number * 50 + turn % 50]) * 1000
                current[number] = lease.view
                if turn % 3 == 0:
                    lease.share(ttl=0.1)
                del current[number]
                lease.release()
                del lease

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        wrong = 0
        children = []
        for _ in range(30):
            time.sleep(0.002)
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                views = []
                for view in list(current.values()):
                    try:
                        views.append((view, bytes(view)))
                    except ValueError:
                        pass
                time.sleep(0.05)
                torn = 0
                for view, before in views:
                    try:
                        torn += len(set(before)) == 1 and bytes(view) != before
                    except ValueError:
                        pass
                with pool.lease(64) as own:
                    own.view[:1] = b"x"
                os._exit(3 if torn else 0)
            children.append(pid)
            if len(children) > 4:
                wrong += os.waitpid(children.pop(0), 0)[1] != 0
        for pid in children:
            wrong += os.waitpid(pid, 0)[1] != 0
        over.set()
        for thread in threads:
            thread.join()
        print(wrong)
        pool.close()
        """,
    )
    assert out == "0"
    eventually(lambda: not daemon.leases())


def test_two_pools_of_one_process_hand_to_each_other(daemon: DaemonProcess) -> None:
    """Ping and pong in one process, both ways at once and in bursts that the daemon reads in any order."""
    failures: list[BaseException] = []
    with slabd.connect(daemon.address) as one, slabd.connect(daemon.address) as two:

        def play(mine: slabd.Pool, other: slabd.Pool, mark: bytes) -> None:
            try:
                for turn in range(300):
                    leases = [mine.lease(300) for _ in range(turn % 7 + 1)]
                    for lease in leases:
                        lease.view[:1] = mark
                    refs = [other.open(lease.share()) for lease in leases]
                    for lease in leases:
                        lease.release()
                    assert {bytes(ref.view[:1]) for ref in refs} == {mark}
                    for ref in refs:
                        ref.release()
            except BaseException as error:  # noqa: BLE001 - the test shows it
                failures.append(error)

        threads = [threading.Thread(target=play, args=arguments) for arguments in ((one, two, b"1"), (two, one, b"2"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE_SECONDS)
        assert failures == []
        eventually(lambda: daemon.used == 0)
        assert len(daemon.sessions()) == 2
    assert "is ended:" not in daemon.log_text


def test_a_daemon_that_stops_and_goes_on(daemon: DaemonProcess) -> None:
    """Hand-offs go on while the daemon is stopped and continued at random; its books are right in the end."""
    over = threading.Event()

    def torment() -> None:
        dice = random.Random(3)
        while not over.is_set():
            daemon.stop()
            time.sleep(dice.random() * 0.02)
            daemon.cont()
            time.sleep(dice.random() * 0.02)

    tormentor = threading.Thread(target=torment)
    with slabd.connect(daemon.address) as maker, slabd.connect(daemon.address) as reader:
        tormentor.start()
        try:
            for turn in range(300):
                with maker.lease(1000) as lease:
                    lease.view[:2] = turn.to_bytes(2, "little")
                    handle = lease.share()
                with reader.open(handle) as ref:
                    assert bytes(ref.view[:2]) == turn.to_bytes(2, "little")
        finally:
            over.set()
            tormentor.join()
        eventually(lambda: daemon.used == 0)
        assert len(daemon.sessions()) == 2
