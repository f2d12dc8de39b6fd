"""kill -9 a client in each state a block can have: everything it held comes back, and nothing that others may touch."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemons import DaemonProcess, eventually
from tests.fixtures.puppets import Puppet, PuppetError, kill_process

if TYPE_CHECKING:
    from collections.abc import Callable

    MakePuppet = Callable[..., Puppet]

SIZE = 1 << 20


def comes_back(daemon: DaemonProcess, used: int = 0) -> None:
    """Wait until `used` bytes are in use, and check the daemon."""
    eventually(lambda: daemon.used == used, f"used == {used}")
    daemon.check()


def test_leased(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """A killed client's leases are free again, whatever their sizes."""
    victim, bystander = puppet(), puppet()
    bystander.do("lease", SIZE)
    before = daemon.used
    for size in (1, 64, 4096, 5000, SIZE):
        victim.do("lease", size)
    victim.kill()
    comes_back(daemon, before)


def test_shared_and_not_opened(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """A killed sharer's block waits for its opener, and is free when the handle expires."""
    victim = puppet()
    victim.do("share", victim.do("lease", SIZE), 2, 1.0)
    victim.kill()
    eventually(lambda: not daemon.sessions())
    comes_back(daemon)


def test_shared_and_opened_after_the_death(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """What a killed client had shared is opened by its consumer, with the bytes in it."""
    victim, consumer = puppet(), puppet()
    number = victim.do("lease", 100)
    victim.do("fill", number, 7)
    handle = victim.do("share", number)
    victim.kill()
    eventually(lambda: len(daemon.sessions()) == 1)
    assert consumer.do("read", consumer.do("open", handle)) == "07" * 100
    consumer.kill()
    comes_back(daemon)


def test_opened(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """A killed reader's open ends; the block lives on with its owner, and without one it is free."""
    owner, victim = puppet(), puppet()
    number = owner.do("lease", SIZE)
    victim.do("open", owner.do("share", number))
    victim.kill()
    eventually(lambda: len(daemon.sessions()) == 1)
    comes_back(daemon, SIZE)
    other = puppet()
    other.do("open", owner.do("share", number))
    owner.do("release", number)
    other.kill()
    comes_back(daemon)


def test_transferred(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """A lease that was handed over dies with its new owner, not with its old one."""
    first, second = puppet(), puppet()
    second.do("open", first.do("transfer", first.do("lease", SIZE)))
    first.kill()
    eventually(lambda: len(daemon.sessions()) == 1)
    comes_back(daemon, SIZE)
    second.kill()
    comes_back(daemon)


def test_waiting(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """A client killed in the queue leaves it, and those behind it are served."""
    holder, victim, patient = puppet(), puppet(), puppet()
    number = holder.do("lease", 12 * SIZE)
    victim.tell("lease", 16 * SIZE, 600.0)
    eventually(lambda: daemon.stats().waiters == 1)
    patient.tell("lease", 2 * SIZE, 600.0)
    eventually(lambda: daemon.stats().waiters == 2)
    victim.kill()
    assert patient._answer() == 1
    holder.do("release", number)
    comes_back(daemon, 2 * SIZE)


def test_what_a_dead_client_held_goes_to_those_who_wait(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """The kernel tells the daemon of the death, and the daemon the next in the queue."""
    victim, patient = puppet(), puppet()
    victim.do("lease", 16 * SIZE)
    patient.tell("lease", 16 * SIZE, 600.0)
    eventually(lambda: daemon.stats().waiters == 1)
    victim.kill()
    assert patient._answer() == 1


def test_quarantined(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """A client that hung up but lives keeps its memory in quarantine: nobody else gets it until it is dead."""
    victim, other = puppet(), puppet()
    victim.do("lease", 10 * SIZE)
    assert victim.do("hang_up") == 1
    eventually(lambda: daemon.stats().states.quarantined == 10 * SIZE)
    with pytest.raises(PuppetError, match=r"OutOfMemory.*in quarantine"):
        other.do("lease", 10 * SIZE)
    victim.kill()
    comes_back(daemon)


def test_stopped(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """A stopped client is not a dead one: it keeps everything, and loses it when it is killed."""
    victim = puppet()
    number = victim.do("lease", SIZE)
    victim.stop()
    assert daemon.used == SIZE
    victim.cont()
    victim.do("fill", number, 1)
    victim.stop()
    victim.kill()
    comes_back(daemon)


def test_forked(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """A killed parent's memory stays until the last child that can touch it is gone."""
    victim = puppet()
    victim.do("lease", SIZE)
    children = [victim.do("fork"), victim.do("fork")]
    victim.kill()
    kill_process(children[0])
    assert daemon.used == SIZE
    assert [session.state for session in daemon.sessions()] == [1]
    kill_process(children[1])
    comes_back(daemon)


class Child:
    """A forked child that looks at an inherited block."""

    def __init__(self, daemon: DaemonProcess, pid: int) -> None:
        self.pid = pid
        self._files = daemon.runtime_dir

    def sees(self, what: bytes) -> None:
        """Have it look, and compare."""
        seen = self._files / f"{self.pid}.seen"
        os.kill(self.pid, signal.SIGUSR1)
        eventually(lambda: seen.exists() and seen.read_bytes() == what)
        seen.unlink()

    def let_go(self) -> None:
        """Have it drop its views, and live on."""
        os.kill(self.pid, signal.SIGUSR2)
        eventually((self._files / f"{self.pid}.let-go").exists)

    def kill(self) -> None:
        """SIGKILL."""
        kill_process(self.pid)


def with_child(daemon: DaemonProcess, parent: Puppet) -> tuple[int, Child]:
    """Lease most of the heap, fork a child that has a view of it, and return the block's number and the child."""
    number = parent.do("lease", 15 * SIZE)
    parent.do("fill", number, ord("P"))
    return number, Child(daemon, parent.do("fork_and_watch", number))


def overwrite(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """Fail to lease the block again, and fill all that can be had with something else."""
    other = puppet()
    with pytest.raises(PuppetError, match="OutOfMemory"):
        other.do("lease", 15 * SIZE)
    other.do("fill", other.do("lease", SIZE), ord("S"))
    other.kill()
    eventually(lambda: daemon.used == 15 * SIZE)


@pytest.mark.parametrize("end", ["kill", "let_go"])
def test_closed_while_a_child_can_touch_it(daemon: DaemonProcess, puppet: MakePuppet, end: str) -> None:
    """A pool that is closed leaves to a forked child what it inherited: nobody gets it before the child is done."""
    parent = puppet()
    number, child = with_child(daemon, parent)
    parent.do("drop", number)
    parent.do("close_pool")
    assert daemon.stats().states.quarantined == 15 * SIZE
    overwrite(daemon, puppet)
    child.sees(b"PPPP")
    getattr(child, end)()
    comes_back(daemon)


@pytest.mark.parametrize("end", ["kill", "let_go"])
@pytest.mark.parametrize("how", ["release", "drop"])
def test_released_while_a_child_can_touch_it(daemon: DaemonProcess, puppet: MakePuppet, how: str, end: str) -> None:
    """A block that the parent is done with waits for a forked child that has a view of it, and for no longer."""
    parent = puppet()
    number, child = with_child(daemon, parent)
    parent.do(how, number)
    overwrite(daemon, puppet)
    child.sees(b"PPPP")
    getattr(child, end)()
    comes_back(daemon)
    parent.do("release", parent.do("lease", 15 * SIZE))  # what came after the fork waits for nobody
    assert daemon.used == 0


def test_the_parent_itself_gets_what_a_child_is_done_with(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """A lease that finds the heap full looks at once whether a child has let go, before it believes it."""
    parent = puppet()
    number, child = with_child(daemon, parent)
    parent.do("release", number)
    with pytest.raises(PuppetError, match="OutOfMemory"):
        parent.do("lease", 15 * SIZE)
    child.let_go()
    parent.do("lease", 15 * SIZE)
    child.kill()
    comes_back(daemon, 15 * SIZE)


def test_what_a_child_can_touch_is_not_transferred(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """The next owner writes into memory that nobody else looks at; a child that looks is in the way."""
    parent = puppet()
    number, child = with_child(daemon, parent)
    with pytest.raises(PuppetError, match=r"BufferError.*forked child"):
        parent.do("transfer", number)
    child.kill()
    eventually(lambda: parent.do("try_transfer", number))


def test_closed_while_a_child_has_nothing(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """A child that inherited no block, such as an idle worker, keeps nothing from being free when the pool closes."""
    parent = puppet()
    child = parent.do("fork")
    parent.do("lease", SIZE)
    parent.do("close_pool")
    eventually(lambda: daemon.used == 0)  # a child that was forked a moment ago has yet to say that it has nothing
    kill_process(child)


def test_a_crowd_of_blocks(puppet: MakePuppet, daemon: DaemonProcess) -> None:
    """A client killed with very many blocks is taken apart in slices; who needs its memory has it at once."""
    victim, next_one = puppet(), puppet()
    victim.do("lease_many", 64, 50_000)
    victim.kill()
    eventually(lambda: all(session.state != 1 for session in daemon.sessions() if session.pid == victim.pid))
    assert next_one.do("lease", 15 * SIZE) == 1
    comes_back(daemon, 15 * SIZE)
    assert len(daemon.sessions()) == 1


def test_killed_at_any_moment(daemon: DaemonProcess, puppet: MakePuppet) -> None:
    """Killed while it leases, shares and releases as fast as it can, a client leaves nothing behind."""
    for delay in (0.0, 0.01, 0.02, 0.05, 0.1):
        victim = puppet()

        def work(victim: Puppet = victim) -> None:
            try:
                while True:
                    number = victim.do("lease", 100_000)
                    victim.do("share", number, 1, 0.2)
                    victim.do("release", number)
                    victim.do("lease", 64)
            except (PuppetError, BrokenPipeError, ValueError):
                return

        worker = threading.Thread(target=work)
        worker.start()
        worker.join(delay)
        victim.kill()
        worker.join()
    comes_back(daemon)
    assert not daemon.sessions()
