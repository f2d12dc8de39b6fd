"""The image and the composition, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from slabd.ctl.parser import build_parser
from slabd_server.config import load_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
BIN = Path(sys.executable).parent


def tool(name: str) -> pytest.MarkDecorator:
    """Skip a test where a tool of the extra `dev` is not installed."""
    return pytest.mark.skipif(not (BIN / name).exists(), reason=f"needs {name}, of the extra dev")


def passes(name: str, *arguments: str | Path) -> None:
    """Run a tool; fail with what it says."""
    done = subprocess.run([BIN / name, *arguments], capture_output=True, text=True, check=False, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr


@tool("hadolint")
def test_hadolint_finds_nothing() -> None:
    """In the Dockerfile."""
    passes("hadolint", DEPLOY / "Dockerfile")


@tool("check-jsonschema")
def test_the_composition_is_one() -> None:
    """By the schema of the Compose specification."""
    passes("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_the_image_is_nobodys_root() -> None:
    """Its last stage runs as a number, begins with a program and no shell, and can tell how it is."""
    *_, last = DOCKERFILE.split("\nFROM ")
    (user,) = re.findall(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    assert "0" not in user
    assert re.search(r'^ENTRYPOINT \["slabd"\]$', last, re.MULTILINE)
    assert re.search(r'^HEALTHCHECK .*\\\n +CMD \["slabctl", "health"', last, re.MULTILINE)
    assert "pip" not in last


def test_the_image_is_made_of_files_that_reach_it() -> None:
    """What is copied exists, and is not ignored."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    admitted = {line[1:] for line in ignored.splitlines() if line.startswith("!")}
    copied = {
        source.rstrip("/")
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for source in sources.split()
    }
    assert copied == admitted
    assert all((ROOT / source).exists() for source in copied)


def test_what_the_image_runs_can_be_run() -> None:
    """Its command and its health check, and the command of the composition."""
    lists = {
        name: json.loads(text) for name, text in re.findall(r"^ *(ENTRYPOINT|CMD) (\[.*\])$", DOCKERFILE, re.MULTILINE)
    }
    (health,) = re.findall(r"^ +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    build_parser().parse_args(json.loads(health)[1:])
    for command in (lists["CMD"], SERVICES["slabd"]["command"]):
        assert (*lists["ENTRYPOINT"], command[0]) == ("slabd", "serve")
        assert load_config(command[1:], {}).runtime_dir == Path("/run/slabd")


@every_service
def test_ports_are_for_this_machine(service: dict[str, Any]) -> None:
    """Nothing listens to others."""
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@every_service
def test_services_are_hardened(service: dict[str, Any]) -> None:
    """None writes to its image, has a capability, or runs an image of any version."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert ":" in service["image"] or service["image"] == "slabd"


@every_service
def test_what_is_mounted_exists(service: dict[str, Any]) -> None:
    """Docker makes a directory of a file that is missing."""
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert source in COMPOSE["volumes"] or (DEPLOY / source).exists()


def test_there_is_no_default_password() -> None:
    """Whoever starts it has to choose one."""
    assert SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")


def test_clients_share_the_sockets_alone() -> None:
    """Neither IPC namespace, nor process namespace, nor /dev/shm."""
    for name in ("slabd", "producer", "consumer"):
        assert not {"ipc", "pid", "shm_size", "network_mode"} & set(SERVICES[name])
        assert "sockets:/run/slabd" in SERVICES[name]["volumes"]


def test_the_limit_of_memory_has_room_for_the_heap() -> None:
    """The heap is charged to the daemon."""
    (heap,) = re.findall(r"--heap-size=(\d+)MiB", " ".join(SERVICES["slabd"]["command"]))
    (limit,) = re.findall(r"(\d+)m", SERVICES["slabd"]["mem_limit"])
    assert int(limit) - int(heap) >= 256


def test_the_prometheus_of_the_composition_differs_in_the_target_alone() -> None:
    """From that of the machine."""
    both = [
        yaml.safe_load((DEPLOY / "prometheus" / name).read_text(encoding="utf-8"))
        for name in ("prometheus.yml", "prometheus.compose.yml")
    ]
    targets = [each["scrape_configs"][0].pop("static_configs") for each in both]
    assert both[0] == both[1]
    assert targets == [[{"targets": ["127.0.0.1:9464"]}], [{"targets": ["slabd:9464"]}]]


def test_grafana_is_told_where_everything_is() -> None:
    """The variables of the provisioning are set, and the paths are mounted."""
    grafana = SERVICES["grafana"]
    needed = set()
    for path in (DEPLOY / "grafana" / "provisioning").rglob("*.yaml"):
        needed |= set(re.findall(r"\$(GF_\w+)", path.read_text(encoding="utf-8")))
    assert needed <= set(grafana["environment"])
    assert f"./grafana/dashboards:{grafana['environment']['GF_SLABD_DASHBOARDS']}:ro" in grafana["volumes"]
