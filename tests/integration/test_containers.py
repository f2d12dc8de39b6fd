"""Daemon and clients in containers of the kernel's own making, which share the directory of the sockets, no more."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.fixtures.daemons import PATIENCE_SECONDS, eventually
from tests.fixtures.namespaces import can_unshare

from slabd_proto.v1 import admin_pb2, admin_pb2_grpc, pool_pb2, pool_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).parents[2] / "deploy"
LOAD = DEPLOY / "samples" / "load.py"
# What a container has of its own, but for its files, its network, which the tests use, and its users.
OWN = ("--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--ipc", "--uts")

pytestmark = pytest.mark.skipif(not can_unshare(*OWN), reason="needs to make namespaces, as root may")


@contextlib.contextmanager
def container(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program in namespaces of its own, where it is process 1."""
    with subprocess.Popen(["unshare", *OWN, sys.executable, *command], stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


class Pod:
    """A daemon as the DaemonSet has it, but for its directory, its ports and the size of its heap."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        admin = grpc.insecure_channel(f"unix:{directory}/admin.sock")
        self.admin = admin_pb2_grpc.AdminServiceStub(admin)

    def is_up(self) -> bool:
        """Tell whether it answers."""
        try:
            return bool(self.status().pid)
        except grpc.RpcError:
            return False

    def status(self) -> admin_pb2.GetStatusResponse:
        """Return its status."""
        return self.admin.GetStatus(admin_pb2.GetStatusRequest(), wait_for_ready=True, timeout=PATIENCE_SECONDS)

    def sessions(self) -> list[str]:
        """Return the names of its sessions."""
        found = self.admin.ListSessions(admin_pb2.ListSessionsRequest(), timeout=PATIENCE_SECONDS)
        return [session.name for session in found.sessions]

    def over_tcp(self) -> grpc.Channel:
        """Connect as a probe does."""
        (address,) = [each for each in self.status().addresses if not each.startswith("unix:")]
        return grpc.insecure_channel(address.replace("0.0.0.0", "127.0.0.1"))


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    """A daemon in a container, with the configuration of the DaemonSet."""
    directory = tmp_path / "run"
    config = tmp_path / "slabd.toml"
    text = (DEPLOY / "kubernetes" / "base" / "slabd.toml").read_text(encoding="utf-8")
    for before, after in (("1GiB", "32MiB"), ("/run/slabd", str(directory)), (":9464", ":0"), (":9465", ":0")):
        assert before in text
        text = text.replace(before, after)
    config.write_text(text, encoding="utf-8")
    with container("-m", "slabd_server", "serve", "--config", str(config)):
        running = Pod(directory)
        eventually(running.is_up, "the daemon answers")
        yield running


def test_clients_need_the_directory_alone(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer and a consumer, each in a container, pass buffers; one that is killed leaves nothing behind."""
    monkeypatch.setenv("SLABD_ADDRESS", str(pod.directory))
    meet = ("--meet", str(tmp_path / "s"))
    with container(str(LOAD), "produce", *meet) as producer, container(str(LOAD), "consume", *meet):
        eventually(lambda: sorted(pod.sessions()) == ["consumer", "producer"], "both attach")
        eventually(lambda: opened(pod) > 10, "buffers are opened")
        producer.kill()
        eventually(lambda: "producer" not in pod.sessions(), "the producer's session ends")
    eventually(lambda: not pod.sessions(), "both are gone")
    eventually(lambda: pod.status().heaps[0].used_bytes == 0, "everything is free, when promised opens have expired")
    assert pod.admin.Check(admin_pb2.CheckRequest(), timeout=PATIENCE_SECONDS).ok


def opened(pod: Pod) -> int:
    """Return how many handles have been opened, by the daemon's own metrics."""
    url = f"http://{pod.status().metrics_address.replace('0.0.0.0', '127.0.0.1')}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("slabd_opens_total")))


def health(channel: grpc.Channel) -> object:
    """Ask as a probe does."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS).status


def test_over_tcp_there_is_health_and_nothing_else(pod: Pod) -> None:
    """What the probes ask is answered; whoever else reaches the port learns nothing."""
    with pod.over_tcp() as channel:
        assert health(channel) == health_pb2.HealthCheckResponse.SERVING
        pool, admin = pool_pb2_grpc.PoolServiceStub(channel), admin_pb2_grpc.AdminServiceStub(channel)
        for call in (
            lambda: pool.OpenSession(pool_pb2.OpenSessionRequest(), timeout=PATIENCE_SECONDS),
            lambda: pool.GetStats(pool_pb2.GetStatsRequest(), timeout=PATIENCE_SECONDS),
            lambda: admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=PATIENCE_SECONDS),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_draining_is_not_ready(pod: Pod) -> None:
    """So the node's clients are told before the daemon goes; the port of the liveness probe stays open."""
    pod.admin.Drain(admin_pb2.DrainRequest(), timeout=PATIENCE_SECONDS)
    with pod.over_tcp() as channel:
        assert health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
