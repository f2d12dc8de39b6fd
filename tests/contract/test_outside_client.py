"""A client in another language, with nothing of ours but the .proto files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fixtures.daemons import DaemonProcess

HERE = Path(__file__).parent
PROTO = HERE.parents[1] / "proto"


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js and npm for @grpc/grpc-js")
def test_grpc_js(daemon: DaemonProcess, tmp_path: Path) -> None:
    """grpc-js leases, writes, reads, shares, opens and releases over the unix socket."""
    client = tmp_path / "client"
    shutil.copytree(HERE / "outside_client", client)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=client, check=True, timeout=550
    )
    done = subprocess.run(
        ["node", "client.mjs", str(PROTO), f"unix:{daemon.runtime_dir}/slabd.sock"],
        cwd=client,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.stdout == "leased, wrote, read, shared, opened, closed and released\n", done.stderr
    assert not daemon.sessions()
