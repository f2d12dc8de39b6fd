"""Which figures, sizes and repeats the command line means, and what it refuses."""

from __future__ import annotations

import pytest

from slabd.ctl.__main__ import main
from slabd.ctl.bench.carriers import CARRIERS
from slabd.ctl.bench.catalogue import figures
from slabd.ctl.bench.figures import RUNS
from slabd.ctl.bench.model import OURS
from slabd.ctl.bench.options import FULL, HEAP_BYTES, LARGEST_SIZE, NAMES, QUICK, UNTOUCHED_SIZES, choose
from slabd.ctl.bench.peers import OPENINGS
from slabd.ctl.exits import ExitCode
from slabd.errors import InvalidArgument


def test_all_figures_by_default() -> None:
    """At full pace."""
    options = choose()
    assert (options.names, options.pace, options.quick) == (NAMES, FULL, False)
    assert [figure.name for figure in figures(options)] == list(NAMES)


def test_figures_come_in_their_own_order_and_once() -> None:
    """However they are named."""
    assert choose(["live", "grpc", "live"]).names == ("grpc", "live")


def test_sizes_are_for_both_figures_that_have_any() -> None:
    """From small to large, each once."""
    options = choose(sizes=[4096, 64, 4096])
    assert (options.untouched_sizes, options.write_sizes) == ((64, 4096), (64, 4096))
    assert [case.number for case in figures(options)[0].cases] == [64, 4096]


def test_repeats_may_be_said_and_the_rest_stays_quick() -> None:
    """--repeats changes nothing else."""
    pace = choose(repeats=11, quick=True).pace
    assert (pace.repeats, pace.turn_seconds) == (11, QUICK.turn_seconds)


def test_quick_leaves_sizes_out_unless_they_are_named() -> None:
    """The smallest and the largest stay."""
    sizes = choose(quick=True).untouched_sizes
    assert len(sizes) < len(UNTOUCHED_SIZES)
    assert (sizes[0], sizes[-1]) == (UNTOUCHED_SIZES[0], UNTOUCHED_SIZES[-1])
    assert choose(sizes=[1], quick=True).untouched_sizes == (1,)


def test_there_are_no_other_figures() -> None:
    """They are named."""
    with pytest.raises(InvalidArgument, match="no figure nonsense: choose from untouched"):
        choose(["grpc", "nonsense"])


@pytest.mark.parametrize(
    "line",
    [
        ["--only", "nonsense"],
        ["--only"],
        ["--sizes", "0"],
        ["--sizes", "65MiB"],
        ["--sizes", "large"],
        ["--repeats", "0"],
        ["--repeats", "few"],
        ["extra"],
    ],
)
def test_nonsense_is_exit_code_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", *line])
    assert exit_info.value.code == ExitCode.USAGE
    assert "error:" in capsys.readouterr().err


def test_every_figure_can_be_run_and_every_peer_opened() -> None:
    """And slabd comes first in each, so that the others have something to be compared with."""
    for figure in figures(choose()):
        assert figure.name in RUNS
        assert figure.peers[0].name == OURS
        for peer in figure.peers:
            assert peer.what
            assert peer.name in CARRIERS if figure.name == "handoff" else (figure.name, peer.name) in OPENINGS


def test_nothing_can_be_opened_that_is_not_in_the_catalogue() -> None:
    """No peer is forgotten there."""
    known = {(figure.name, peer.name) for figure in figures(choose()) for peer in figure.peers}
    assert set(OPENINGS) | {("handoff", name) for name in CARRIERS} == known


def test_every_figure_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """With what it measures."""
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in NAMES)


def test_the_largest_block_fits_with_others() -> None:
    """A pool may keep one and lease another."""
    assert 2 * LARGEST_SIZE <= HEAP_BYTES
