"""What forked children can still touch: pipes, with children that only pretend to be forked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from slabd.descriptors import Descriptor
from slabd.heirs import Heirs
from slabd.holding import BlockName, GrantedBlock

if TYPE_CHECKING:
    import pytest


def block(serial: int) -> GrantedBlock:
    """Return a block."""
    return GrantedBlock(BlockName(serial, 1), owned=True, serial=serial)


def fork(parent: Heirs, last: int) -> Heirs:
    """Return what the parent's `Heirs` would be in a child: with descriptors of its own for the same pipe."""
    parent.about_to_fork(leaving=True)
    assert parent._pipe is not None
    child = Heirs()
    ear, mouth = parent._pipe
    child._pipe = Descriptor(os.dup(ear.number)), Descriptor(os.dup(mouth.number))
    parent.has_forked(last)
    child.inherit()
    return child


def open_pipes() -> int:
    """Count this process's pipe ends."""
    return sum("pipe:" in str(path.readlink()) for path in [*Path("/proc/self/fd").iterdir()] if path.is_symlink())


def test_without_children_nothing_is_kept() -> None:
    """A process that never forked gives everything back at once."""
    heirs = Heirs()
    assert not heirs.keep(block(1))
    assert (heirs.keeping, heirs.is_due(), heirs.due()) == (False, False, [])


def test_a_block_is_kept_until_the_child_renounces() -> None:
    """What existed at the fork waits for the child; what came later does not, nor what nobody ever had a view of."""
    pipes = open_pipes()
    parent = Heirs()
    child = fork(parent, last=5)
    assert [parent.may_touch(serial) for serial in (0, 1, 5, 6)] == [False, True, True, False]
    assert [parent.keep(block(serial)) for serial in (0, 1, 5, 6)] == [False, True, True, False]
    assert parent.keep(block(5))  # once more, as after an interrupt
    assert (parent.keeping, parent.is_due(), parent.due()) == (True, False, [])
    child.renounce()
    child.renounce()
    assert parent.is_due()
    assert parent.due() == [block(1), block(5)]
    assert not parent.keep(block(1))
    assert open_pipes() == pipes


def test_a_block_waits_for_the_children_of_every_fork() -> None:
    """The first child's end is not enough while the second can touch the block."""
    parent = Heirs()
    first, second = fork(parent, last=5), fork(parent, last=9)
    assert parent.keep(block(3))
    first.renounce()
    assert parent.due() == []
    assert parent.keeping
    second.renounce()
    assert parent.due() == [block(3)]


def test_without_a_descriptor_blocks_are_kept_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no pipe can be had nobody can tell when the child is done, so nothing is risked."""

    def refuse(_flags: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe2", refuse)
    parent = Heirs()
    parent.about_to_fork(leaving=True)
    parent.has_forked(5)
    assert parent.keep(block(5))
    assert (parent.is_due(), parent.due(), parent.keeping) == (False, [], True)
    parent.close()
    assert not parent.keeping


def test_a_process_without_blocks_leaves_nothing() -> None:
    """No descriptor is opened for it, and nothing is kept."""
    pipes = open_pipes()
    parent = Heirs()
    parent.about_to_fork(leaving=False)
    parent.has_forked(5)
    assert not parent.may_touch(1)
    assert open_pipes() == pipes


def test_forking_again_and_again_takes_no_descriptors() -> None:
    """Those of children that are done are closed at the next fork, though nobody gave a block back."""
    pipes = open_pipes()
    parent = Heirs()
    for _ in range(20):
        fork(parent, last=5).renounce()
        assert open_pipes() <= pipes + 1
    parent.close()
    assert open_pipes() == pipes


def test_a_number_that_became_another_file_is_left_alone(tmp_path: Path) -> None:
    """A daemonised child closes all descriptors; what opens at their numbers later is its own."""
    parent = Heirs()
    child = fork(parent, last=5)
    assert child._mouth is not None
    number = child._mouth.number
    os.close(number)
    with (tmp_path / "own").open("w") as own:
        os.dup2(own.fileno(), number)
    child.renounce()
    os.write(number, b"still open")
    os.close(number)
    assert parent.is_due() is False
    parent.close()


def test_closing_lets_go_of_the_pipes() -> None:
    """A session that ends keeps no descriptor, and its child may go on."""
    pipes = open_pipes()
    parent = Heirs()
    child = fork(parent, last=5)
    parent.keep(block(1))
    parent.close()
    child.renounce()
    assert open_pipes() == pipes


def test_a_child_forgets_the_forks_before_its_own() -> None:
    """A child keeps one descriptor, whatever its elder siblings were."""
    pipes = open_pipes()
    parent = Heirs()
    elder = fork(parent, last=5)
    parent.about_to_fork(leaving=True)
    parent.inherit()  # now it is the younger child
    assert not parent.may_touch(1)
    assert open_pipes() == pipes + 2
    elder.renounce()
    parent.renounce()
    assert open_pipes() == pipes
