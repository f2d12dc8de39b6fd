"""Which files the demo finds, how the reader fills a block, and how the checker digests."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sysconfig
from pathlib import Path

import pytest

from slabd.ctl.demo import checker
from slabd.ctl.demo.files import scan, stamp_of
from slabd.ctl.demo.messages import Failure, Piece
from slabd.ctl.demo.reader import fill


def piece_of(path: Path, offset: int = 0, length: int | None = None) -> Piece:
    """Return a piece of a file as it is now."""
    stamp = stamp_of(path.stat())
    return Piece(1, str(path), offset, stamp.size - offset if length is None else length, stamp)


def checked(piece: Piece) -> bytes | tuple[str, bool]:
    """Return what the checker says."""
    return checker.digest(piece.path, piece.offset, piece.length, tuple(piece.stamp))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory with one of everything."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes(b"a")
    (tmp_path / "b" / "empty").write_bytes(b"")
    (tmp_path / "b" / "z.bin").write_bytes(b"z" * 5000)
    (tmp_path / "link").symlink_to("a.txt")
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    return tmp_path


def test_regular_files_in_a_fixed_order(tree: Path) -> None:
    """Links are not followed; pipes and sockets are not opened."""
    result = scan([str(tree)])
    assert [Path(each.path).relative_to(tree).as_posix() for each in result.files] == ["a.txt", "b/empty", "b/z.bin"]
    assert (result.links, result.special, result.total_bytes, result.limited) == (2, 2, 5001, False)


def test_a_path_may_itself_be_a_file_or_a_link(tree: Path) -> None:
    """As `find -H` has it."""
    result = scan([str(tree / "link"), str(tree / "b" / "z.bin")])
    assert [each.path for each in result.files] == [str(tree / "a.txt"), str(tree / "b" / "z.bin")]


def test_the_limit_says_so(tree: Path) -> None:
    """When there is more."""
    assert scan([str(tree)], limit=2).limited
    assert not scan([str(tree)], limit=3).limited


def test_a_path_that_is_not_there_is_an_error(tree: Path) -> None:
    """Not an empty result."""
    with pytest.raises(FileNotFoundError):
        scan([str(tree / "nothing")])


def test_a_deep_tree_is_no_recursion_error(tmp_path: Path) -> None:
    """Deeper than Python's stack."""
    directory = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=directory)
        below = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    os.close(directory)
    try:
        assert len(scan([str(tmp_path)]).files) == 1
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # shutil.rmtree, as pytest has it, recurses


def test_the_default_is_the_standard_library_and_not_what_is_installed_beside_it() -> None:
    """Thousands of files."""
    paths = {each.path for each in scan([]).files}
    assert os.path.realpath(os.__file__) in paths
    assert not any("site-packages" in path for path in paths)
    assert len(paths) > 500
    assert all(path.startswith(os.path.realpath(sysconfig.get_path("stdlib"))) for path in paths)


def test_the_reader_fills_a_block_in_place(tree: Path) -> None:
    """All of the file, or a stretch of it."""
    block = bytearray(5000)
    assert fill(piece_of(tree / "b" / "z.bin"), memoryview(block)) is None
    assert bytes(block) == b"z" * 5000
    part = bytearray(10)
    assert fill(piece_of(tree / "b" / "z.bin", 100, 10), memoryview(part)) is None
    assert bytes(part) == b"z" * 10


def test_the_checker_agrees_with_hashlib(tree: Path) -> None:
    """About whole files, stretches, and nothing."""
    assert checked(piece_of(tree / "b" / "z.bin")) == hashlib.sha256(b"z" * 5000).digest()
    assert checked(piece_of(tree / "b" / "z.bin", 4990, 10)) == hashlib.sha256(b"z" * 10).digest()
    assert checked(piece_of(tree / "b" / "empty")) == hashlib.sha256(b"").digest()


def test_a_file_that_is_gone_is_a_failure_with_its_reason(tree: Path) -> None:
    """For both."""
    piece = piece_of(tree / "a.txt")
    (tree / "a.txt").unlink()
    assert fill(piece, memoryview(bytearray(1))) == Failure("No such file or directory")
    assert checked(piece) == ("No such file or directory", False)


def test_a_file_that_changed_is_noticed(tree: Path) -> None:
    """When it grew, shrank, or was replaced by one of the same size."""
    path = tree / "b" / "z.bin"
    for change in (path.read_bytes() + b"more", b"less", b"x" * 4):
        piece = piece_of(path)
        replacement = path.with_suffix(".new")
        replacement.write_bytes(change)
        replacement.replace(path)
        failure = fill(piece, memoryview(bytearray(piece.length)))
        assert failure is not None
        assert failure.changed
        assert checked(piece) == ("changed since it was found", True)


def test_a_path_that_became_a_link_or_a_pipe_is_not_followed(tree: Path) -> None:
    """Nor waited for."""
    piece = piece_of(tree / "b" / "z.bin")
    (tree / "b" / "z.bin").unlink()
    (tree / "b" / "z.bin").symlink_to(tree / "a.txt")
    assert fill(piece, memoryview(bytearray(5000))) is not None
    assert not isinstance(checked(piece), bytes)
    (tree / "b" / "z.bin").unlink()
    os.mkfifo(tree / "b" / "z.bin")
    assert fill(piece, memoryview(bytearray(5000))) is not None
    assert not isinstance(checked(piece), bytes)


def test_a_file_with_more_bytes_than_its_size_says_is_not_called_empty() -> None:
    """As those of /proc are."""
    path = Path("/proc/self/status")
    piece = Piece(1, str(path), 0, 0, stamp_of(path.stat()))
    assert checked(piece) == ("has more bytes than its size says", True)
