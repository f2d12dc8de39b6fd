"""The daemon as a process: how it starts, what it refuses, how it stops."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from tests.fixtures.daemons import PATIENCE_SECONDS, DaemonProcess, eventually

from slabd_proto.v1 import admin_pb2, admin_pb2_grpc, pool_pb2, pool_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fixtures.puppets import Puppet


def refused(*arguments: str, status: int = 3) -> str:
    """Run `slabd serve` with something unusable; return its one line of complaint."""
    done = subprocess.run(
        [sys.executable, "-m", "slabd_server", "serve", "--metrics-listen", "off", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_two_daemons_do_not_share_a_directory(daemon: DaemonProcess) -> None:
    """A second daemon is refused with the first one's pid, and the first goes on."""
    message = refused("--runtime-dir", daemon.address)
    assert f"pid {daemon.process.pid}" in message
    daemon.check()


def test_stale_sockets_are_swept() -> None:
    """A killed daemon's socket files do not keep its successor from starting."""
    with DaemonProcess() as daemon:
        daemon.kill()
        assert (daemon.runtime_dir / "attach.sock").exists()
        daemon.restart()
        eventually(lambda: daemon.used == 0)


@pytest.mark.parametrize("name", ["slabd.sock", "admin.sock", "attach.sock"])
def test_a_foreign_listener_is_left_alone(tmp_path: Path, name: str) -> None:
    """A socket on which something else answers is not taken over."""
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(tmp_path / name))
        foreign.listen()
        assert "something that is no slabd listens" in refused("--runtime-dir", str(tmp_path))
        assert (tmp_path / name).exists()


def test_unusable_directories(tmp_path: Path) -> None:
    """A directory that others can write, a file, a path too long for a socket: each refused with what to do."""
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert "chmod go-w" in refused("--runtime-dir", str(open_to_all))
    file = tmp_path / "file"
    file.touch()
    assert "--runtime-dir" in refused("--runtime-dir", str(file))
    assert "too long" in refused("--runtime-dir", str(tmp_path / ("x" * 100)), status=2)
    (tmp_path / "slabd.sock").touch()
    assert "is no socket" in refused("--runtime-dir", str(tmp_path))


def test_unusable_options(tmp_path: Path) -> None:
    """Sizes, ports and files that cannot be used are named, with what is allowed."""
    where = ("--runtime-dir", str(tmp_path))
    assert "32" in refused(*where, "--heap-size", "1000", status=2)
    refused(*where, "--heap-size", "lots", status=2)
    refused(*where, "--no-such-option", status=2)
    assert "does not fit" in refused(*where, "--heap-size", "8192GiB")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "--metrics-listen" in refused(*where, "--metrics-listen", address)
        assert "--listen" in refused(*where, "--listen", address, "--remote", "off")


def test_sigterm_waits_for_what_is_held(daemon: DaemonProcess, puppet: Callable[..., Puppet]) -> None:
    """On SIGTERM the daemon refuses new work, waits for the last block, and ends with status 0."""
    client = puppet()
    number = client.do("lease", 64)
    stub: Any = health_pb2_grpc.HealthStub(daemon.channel)
    assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    daemon.process.terminate()
    eventually(lambda: daemon.status().draining)
    assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert daemon.process.poll() is None
    client.do("release", number)
    assert daemon.process.wait(PATIENCE_SECONDS) == 0
    assert sorted(path.name for path in daemon.runtime_dir.iterdir()) == ["slabd.lock"]


def test_a_second_signal_does_not_wait(daemon: DaemonProcess, puppet: Callable[..., Puppet]) -> None:
    """A second SIGTERM, or SIGINT, ends the daemon though blocks are held."""
    puppet().do("lease", 64)
    daemon.process.terminate()
    eventually(lambda: daemon.status().draining)
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(PATIENCE_SECONDS) == 0


def test_drain_and_resume(daemon: DaemonProcess, puppet: Callable[..., Puppet]) -> None:
    """An operator's drain waits for the last block; resumed, the daemon works again."""
    client = puppet()
    number = client.do("lease", 64)
    answer = daemon.admin.Drain(admin_pb2.DrainRequest())
    assert (answer.draining, answer.leases, answer.sessions) == (True, 1, 1)
    request = admin_pb2.DrainRequest()
    request.timeout.FromMilliseconds(1)
    assert daemon.admin.Drain(request).leases == 1
    request.timeout.FromSeconds(60)
    future = daemon.admin.Drain.future(request)
    client.do("release", number)
    assert future.result().leases == 0
    health: Any = health_pb2_grpc.HealthStub(daemon.channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert not daemon.admin.Drain(admin_pb2.DrainRequest(resume=True)).draining
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    client.do("lease", 64)


def test_evicting_a_session(daemon: DaemonProcess, puppet: Callable[..., Puppet]) -> None:
    """An evicted process's memory stays in quarantine until the process is gone."""
    client = puppet()
    client.do("lease", 64)
    (session,) = daemon.sessions()
    answer = daemon.admin.EndSession(admin_pb2.EndSessionRequest(session_id=session.id))
    assert (answer.reclaimed_bytes, answer.quarantined_bytes) == (0, 64)
    assert daemon.stats().states.quarantined == 64
    client.kill()
    eventually(lambda: daemon.used == 0)


def test_sessions_over_grpc_alone_expire() -> None:
    """A session without keep-alive is over after its TTL, and a keep-alive extends it."""
    with DaemonProcess("--session-ttl-seconds", "5") as daemon:
        key = daemon.pool.OpenSession(pool_pb2.OpenSessionRequest()).session.key
        daemon.pool.Lease(pool_pb2.LeaseRequest(session=key, items=[pool_pb2.LeaseItem(size=64)]))
        for _ in range(3):
            answer = daemon.pool.KeepSessionAlive(pool_pb2.KeepSessionAliveRequest(session=key))
            assert answer.ttl.seconds == 5
        eventually(lambda: not daemon.sessions())
        assert daemon.used == 0


def test_watching(daemon: DaemonProcess, puppet: Callable[..., Puppet]) -> None:
    """A watch tells of pressure, of handles that expired, of the drain, and of the session's end."""
    key = daemon.pool.OpenSession(pool_pb2.OpenSessionRequest()).session.key
    events = daemon.pool.Watch(pool_pb2.WatchRequest(session=key))
    assert next(events).HasField("started")
    lease = pool_pb2.LeaseRequest(session=key, items=[pool_pb2.LeaseItem(size=16 << 20)])
    block = daemon.pool.Lease(lease).blocks[0]
    share = pool_pb2.ShareItem(block=block.ref, opens=2)
    share.ttl.FromMilliseconds(1)
    daemon.pool.Share(pool_pb2.ShareRequest(session=key, items=[share]))
    expired = next(events).handle_expired
    assert (expired.block, expired.missing_opens) == (block.ref, 2)
    client = puppet()
    client.tell("lease", 64, 600.0)
    pressure = next(events).pressure
    assert (pressure.waiters, pressure.wanted_bytes) == (1, 64)
    daemon.admin.Drain(admin_pb2.DrainRequest())
    assert next(events).HasField("draining")
    daemon.pool.CloseSession(pool_pb2.CloseSessionRequest(session=key))
    assert next(events).session_ended.cause == pool_pb2.SESSION_END_CAUSE_CLOSED
    with pytest.raises(StopIteration):
        next(events)


def test_reflection(daemon: DaemonProcess) -> None:
    """An outside client learns the services from the daemon itself, on each socket those that it answers."""
    names = []
    for channel in (daemon.channel, daemon.admin_channel):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names.append({service.name for service in answer.list_services_response.service})
    assert {"slabd.v1.PoolService", "grpc.health.v1.Health"} <= names[0]
    assert names[1] - names[0] == {"slabd.v1.AdminService"}


def test_operators_have_a_socket_of_their_own(daemon: DaemonProcess) -> None:
    """On slabd.sock AdminService is refused to everybody, with where to ask; admin.sock answers all services."""
    with pytest.raises(grpc.RpcError) as caught:
        admin_pb2_grpc.AdminServiceStub(daemon.channel).Drain(admin_pb2.DrainRequest())
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "use admin.sock" in str(caught.value.details())
    pool = pool_pb2_grpc.PoolServiceStub(daemon.admin_channel)
    assert pool.GetStats(pool_pb2.GetStatsRequest()).heaps == daemon.pool.GetStats(pool_pb2.GetStatsRequest()).heaps
    for channel in (daemon.channel, daemon.admin_channel):
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert not daemon.status().draining


def test_permissions_of_the_sockets() -> None:
    """Each socket has the permissions of its own option, from its first moment and whatever the umask."""
    with DaemonProcess("--socket-mode", "0666", "--admin-socket-mode", "0660", "--remote", "off") as daemon:
        modes = {path.name: f"{path.stat().st_mode & 0o777:04o}" for path in daemon.runtime_dir.glob("*.sock")}
        assert modes == {"slabd.sock": "0666", "attach.sock": "0666", "admin.sock": "0660"}
        assert f"{daemon.runtime_dir.stat().st_mode & 0o777:04o}" == "0755"
        assert f"admin   unix:{daemon.runtime_dir}/admin.sock" in daemon.log_text


def test_nobody_vouches_for_whoever_may_connect() -> None:
    """A socket open to others is refused at start until somebody says what `remote` shall be."""
    message = refused("--socket-mode", "0666", status=2)
    assert "--socket-mode: '0666'" in message
    assert "remote = off" in message


def test_an_unknown_session_is_not_found(daemon: DaemonProcess) -> None:
    """An operator who ends a session that there is not is told so, and not that he is nobody."""
    with pytest.raises(grpc.RpcError) as caught:
        daemon.admin.EndSession(admin_pb2.EndSessionRequest(session_id=7))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "no session 7")


def scrape(daemon: DaemonProcess) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample of the daemon's metrics."""
    url = f"http://{daemon.status().metrics_address}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_scrape_balances(daemon: DaemonProcess, puppet: Callable[..., Puppet]) -> None:
    """While clients work, used + available == size and the states add up, in every single scrape."""
    client = puppet()
    heap = frozenset({("heap", "default")})
    for size in (64, 5000, 1 << 20, 100_000):
        client.do("share", client.do("lease", size))
        daemon.stats()
        samples = scrape(daemon)
        total = samples["slabd_heap_size_bytes", heap]
        assert samples["slabd_used_bytes", heap] + samples["slabd_available_bytes", heap] == total
        states = [value for (name, _), value in samples.items() if name == "slabd_heap_state_bytes"]
        assert (len(states), sum(states)) == (6, total)
    assert samples["slabd_leases", heap] == 4
    assert samples["slabd_sessions", heap | {("state", "active")}] == 1
    handled = {("grpc_service", "slabd.v1.PoolService"), ("grpc_method", "GetStats"), ("grpc_type", "unary")}
    assert samples["grpc_server_handled_total", frozenset(handled | {("grpc_code", "OK")})] == 4
    assert samples["process_open_fds", frozenset()] > 0


def certificate(
    directory: Path, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make a certificate, its own authority unless `issuer` is given, and write it as NAME.crt and NAME.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    made = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    (directory / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made, key


def test_tcp_with_client_certificates(tmp_path: Path) -> None:
    """Over mTLS a client with a certificate may do everything; one without gets nowhere."""
    authority = certificate(tmp_path, "ca")
    certificate(tmp_path, "server", authority)
    certificate(tmp_path, "client", authority)
    options = ["--listen", "127.0.0.1:0", "--tls-cert", f"{tmp_path}/server.crt", "--tls-key", f"{tmp_path}/server.key"]
    with DaemonProcess(*options, "--tls-client-ca", f"{tmp_path}/ca.crt") as daemon:
        _, address = daemon.status().addresses
        target = address.replace("127.0.0.1", "localhost")
        ca, crt, key = ((tmp_path / name).read_bytes() for name in ("ca.crt", "client.crt", "client.key"))
        with grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, crt)) as channel:
            admin_pb2_grpc.AdminServiceStub(channel).GetStatus(admin_pb2.GetStatusRequest(), timeout=PATIENCE_SECONDS)
            pool = pool_pb2_grpc.PoolServiceStub(channel)
            session = pool.OpenSession(pool_pb2.OpenSessionRequest(), timeout=PATIENCE_SECONDS).session
            assert session.ttl.seconds == 30
        with grpc.secure_channel(target, grpc.ssl_channel_credentials(ca)) as channel:
            stub = pool_pb2_grpc.PoolServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.OpenSession(pool_pb2.OpenSessionRequest(), timeout=5)


def test_plain_tcp_has_no_operators() -> None:
    """Over plain TCP clients may lease, but AdminService and anonymous statistics are refused."""
    with DaemonProcess("--listen", "127.0.0.1:0", "--remote", "read-write") as daemon:
        _, address = daemon.status().addresses
        with grpc.insecure_channel(address) as channel:
            pool = pool_pb2_grpc.PoolServiceStub(channel)
            key = pool.OpenSession(pool_pb2.OpenSessionRequest(), timeout=PATIENCE_SECONDS).session.key
            pool.GetStats(pool_pb2.GetStatsRequest(session=key))
            for call in (
                lambda: pool.GetStats(pool_pb2.GetStatsRequest()),
                lambda: admin_pb2_grpc.AdminServiceStub(channel).GetStatus(admin_pb2.GetStatusRequest()),
                lambda: admin_pb2_grpc.AdminServiceStub(channel).EndSession(
                    admin_pb2.EndSessionRequest(session_id=key.id)
                ),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_no_two_daemons_share_a_tcp_port() -> None:
    """A second daemon is refused a port that is taken, instead of sharing its clients."""
    with DaemonProcess("--listen", "127.0.0.1:0", "--remote", "read-write") as daemon, DaemonProcess() as other:
        _, address = daemon.status().addresses
        other.terminate()
        assert "--listen" in refused("--runtime-dir", other.address, "--listen", address, "--remote", "off")


def test_a_daemon_ends_with_its_parent(tmp_path: Path) -> None:
    """With --stop-on-eof the daemon ends when the process that holds its stdin is gone."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "slabd_server",
            "serve",
            "--runtime-dir",
            str(tmp_path),
            "--metrics-listen",
            "off",
            "--heap-size",
            "1MiB",
            "--stop-on-eof",
        ],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        eventually((tmp_path / "attach.sock").exists)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert not tmp_path.exists()


def test_stopping_in_the_middle_of_an_upload_is_no_defect() -> None:
    """A client that was still writing when the daemon stopped is told so, and the log has no traceback."""
    finished = threading.Event()
    with DaemonProcess("--drain-seconds", "0.1") as running:
        key = running.pool.OpenSession(pool_pb2.OpenSessionRequest(name="writes")).session.key
        items = [pool_pb2.LeaseItem(size=4096)]
        (block,) = running.pool.Lease(pool_pb2.LeaseRequest(session=key, items=items)).blocks

        def pieces() -> Iterator[pool_pb2.WriteBlockRequest]:
            yield pool_pb2.WriteBlockRequest(session=key, block=block.ref, data=b"x")
            finished.wait()

        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(f"unix:{running.runtime_dir}/slabd.sock", options)
        upload = pool_pb2_grpc.PoolServiceStub(channel).WriteBlock.future(pieces())
        eventually(lambda: _started(running, "WriteBlock"))
        running.process.terminate()
        eventually(lambda: _hangs_up(running.runtime_dir))
        time.sleep(0.4)  # gRPC is in the middle of its grace
        channel.close()
        assert running.process.wait(PATIENCE_SECONDS) == 0
        finished.set()
        assert upload.cancelled() or upload.exception() is not None
        assert "Traceback" not in running.log_text


def _hangs_up(runtime_dir: Path) -> bool:
    """Return whether the gRPC server has begun to stop: it admits nobody any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(f"{runtime_dir}/slabd.sock") != 0


def _started(daemon: DaemonProcess, method: str) -> bool:
    """Return whether a call of this method has begun."""
    url = f"http://{daemon.status().metrics_address}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as response:
        text = response.read().decode()
    return f'grpc_server_started_total{{grpc_method="{method}"' in text
