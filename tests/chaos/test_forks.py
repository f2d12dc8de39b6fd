"""Forks in every order and at bad moments: no child takes its parent's session for its own, and nothing piles up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fixtures.daemons import DaemonProcess, eventually
from tests.fixtures.programs import living, run

if TYPE_CHECKING:
    from pathlib import Path


def test_forking_while_other_threads_lease(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Every child leases in a session of its own, though its siblings die and threads lease and release meanwhile."""
    out = run(
        daemon,
        tmp_path,
        """
        pool = slabd.connect(sys.argv[1])
        ours = pool.session_id
        over = threading.Event()

        def work():
            while not over.is_set():
                pool.lease(64).release()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        bad = 0
        for _ in range(60):
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                with pool.lease(64):
                    os._exit(pool.session_id == ours)
            bad += os.waitpid(pid, 0)[1] != 0
        over.set()
        for thread in threads:
            thread.join()
        pool.close()
        print(bad)
        """,
    )
    assert out == "0"
    eventually(lambda: daemon.used == 0)


def test_forking_again_and_again_costs_no_descriptors(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Neither with a lease held, nor with pools that were closed with one."""
    out = run(
        daemon,
        tmp_path,
        """
        pool = slabd.connect(sys.argv[1])
        lease = pool.lease(64)
        closed = []
        for _ in range(5):
            other = slabd.connect(sys.argv[1])
            closed.append((other, other.lease(64)))
            other.close()

        def descriptors():
            return len(os.listdir("/proc/self/fd"))

        before = descriptors()
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        print(descriptors() - before <= 1)
        lease.release()
        pool.close()
        """,
    )
    assert out == "True"


def test_signals_that_raise_while_forking_leave_the_pool_usable(daemon: DaemonProcess, tmp_path: Path) -> None:
    """However often a handler raises in the middle of a fork's hooks, as Ctrl-C does, no lock stays taken."""
    out = run(
        daemon,
        tmp_path,
        """
        pools = [slabd.connect(sys.argv[1]) for _ in range(3)]
        leases = [pool.lease(64) for pool in pools]
        struck = []

        class Alarm(Exception):
            pass

        def strike(_number, frame):
            files = []
            while frame is not None:
                files.append(os.path.basename(frame.f_code.co_filename))
                frame = frame.f_back
            if "forking.py" in files and "threading.py" not in files:  # whose locks no handler may interrupt
                struck.append(1)
                raise Alarm

        sys.unraisablehook = lambda unraisable: None
        signal.signal(signal.SIGALRM, strike)
        for round in range(400):
            signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0005)
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.waitpid(pid, 0)
            if round >= 30 and len(struck) >= 20:
                break
        answers = []
        threads = [threading.Thread(target=lambda p=p: answers.append(p.stats().leases), daemon=True) for p in pools]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        print(answers)
        os._exit(0)
        """,
    )
    assert out == "[3, 3, 3]"


def test_a_daemonised_child_keeps_its_own_files(daemon: DaemonProcess, tmp_path: Path) -> None:
    """It closes every descriptor and opens others at the same numbers; letting go of views closes none of these."""
    out = run(
        daemon,
        tmp_path,
        """
        pool = slabd.connect(sys.argv[1])
        lease = pool.lease(64)
        pipe = os.pipe()
        pid = os.fork()
        if pid == 0:
            says = 900
            os.dup2(pipe[1], says)
            os.closerange(3, says)
            mine = [os.open(sys.argv[2], os.O_CREAT | os.O_RDWR) for _ in range(40)]
            del lease
            gc.collect()
            still_open = sum(os.path.exists(f"/proc/self/fd/{number}") for number in mine)
            os.write(says, str(still_open).encode())
            os._exit(0)
        os.close(pipe[1])
        print(os.read(pipe[0], 10).decode())
        os.waitpid(pid, 0)
        """,
        str(tmp_path / "own"),
    )
    assert out == "40"


def test_a_child_of_a_tcp_pool_keeps_nothing(tmp_path: Path) -> None:
    """It maps nothing, so what the parent releases is free at once."""
    with DaemonProcess("--listen", "127.0.0.1:0", "--remote", "read-write") as daemon:
        _, address = daemon.status().addresses
        out = run(
            daemon,
            tmp_path,
            """
            pool = slabd.connect("tcp://" + sys.argv[2])
            lease = pool.lease(64)
            pid = os.fork()
            if pid == 0:
                signal.pause()
            lease.release()
            print(pool.stats().used_bytes)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            """,
            address,
        )
    assert out == "0"


def test_a_fork_in_the_middle_of_a_transfer(daemon: DaemonProcess, tmp_path: Path) -> None:
    """A child that was forked before the view was gone is in the way of the transfer, which then changes nothing."""
    out = run(
        daemon,
        tmp_path,
        """
        from slabd import operations

        pool = slabd.connect(sys.argv[1])
        lease = pool.lease(64)
        lease.view[:4] = b"PPPP"
        children = []
        let_go = operations.let_go

        def fork_and_let_go(group):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
            let_go(group)

        operations.let_go = fork_and_let_go
        try:
            lease.transfer()
        except BufferError as error:
            print("forked child" in str(error), bytes(lease.view[:4]))
        operations.let_go = let_go
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)
        with pool.open(lease.transfer()) as mine:
            print(bytes(mine.view[:4]))
        """,
    )
    assert out == "True b'PPPP'\nb'PPPP'"


def test_closing_while_the_daemon_is_stopped(daemon: DaemonProcess, tmp_path: Path) -> None:
    """The goodbye waits in the connection: when the daemon runs again, what was closed is free, its process alive."""
    with living(
        daemon,
        tmp_path,
        """
        pool = slabd.connect(sys.argv[1])
        lease = pool.lease(1 << 20)
        print("leased", flush=True)
        time.sleep(0.5)
        pool.close()
        print("closed", flush=True)
        signal.pause()
        """,
    ) as said:
        assert said.readline() == "leased\n"
        daemon.stop()
        assert said.readline() == "closed\n"
        daemon.cont()
        eventually(lambda: daemon.used == 0)


def test_closing_after_an_eviction(daemon: DaemonProcess, tmp_path: Path) -> None:
    """An evicted client that closes its pool has let go, and lives on: nothing stays in quarantine."""
    with living(
        daemon,
        tmp_path,
        """
        pool = slabd.connect(sys.argv[1])
        lease = pool.lease(1 << 20)
        print(pool.session_id, flush=True)
        while True:
            try:
                pool.stats()
            except slabd.SessionEnded:
                break
        pool.close()
        print("closed", flush=True)
        signal.pause()
        """,
    ) as said:
        daemon.evict(int(said.readline()))
        assert said.readline() == "closed\n"
        eventually(lambda: daemon.used == 0)


def test_pools_that_come_and_go_leave_nothing(daemon: DaemonProcess, tmp_path: Path) -> None:
    """A lease that is dropped in the same moment as its pool is closed does not keep the session."""
    out = run(
        daemon,
        tmp_path,
        """
        for number in range(300):
            pool = slabd.connect(sys.argv[1])
            pool.lease(100)
            if number % 2:
                pool.close()
            del pool
        gc.collect()
        watch = slabd.connect(sys.argv[1])
        for _ in range(600):
            if not watch.stats().used_bytes:
                break
            time.sleep(0.1)
        print(watch.stats().used_bytes)
        """,
    )
    assert out == "0"
