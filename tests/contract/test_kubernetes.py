"""The manifests, as far as they can be checked without a cluster."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.kubernetes.generate import MADE, rendered

from slabd.ctl.parser import build_parser
from slabd_server.config import load_config
from slabd_server.units import parse_size

DEPLOY = Path(__file__).parents[2] / "deploy"
KUSTOMIZATIONS = ("kubernetes/base", "kubernetes/hugepages", "samples")
VERSION = "1.32.0"
VALIDATE = Path(sys.executable).parent / "kubernetes-validate"
OVERHEAD = 256 << 20

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="needs kubectl, to build what kustomize makes"
)


@cache
def built(name: str) -> str:
    """Return what kustomize makes."""
    command = ["kubectl", "kustomize", str(DEPLOY / name)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=550).stdout


def manifests(name: str) -> dict[str, dict[str, Any]]:
    """Return what kustomize makes, by kind and name."""
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in yaml.safe_load_all(built(name))}


def base(name: str) -> Any:
    """Return a manifest of the base as it is written."""
    return yaml.safe_load((DEPLOY / "kubernetes" / "base" / name).read_text(encoding="utf-8"))


def pod_of_the_daemon() -> Any:
    """Return its pod's specification."""
    return base("daemonset.yaml")["spec"]["template"]["spec"]


def quantity(text: str) -> int:
    """Return the bytes of a quantity, such as 1Gi."""
    return parse_size(f"{text}B")


def test_the_rules_are_those_of_prometheus() -> None:
    """If this fails: python -m deploy.kubernetes.generate."""
    assert MADE.read_text(encoding="utf-8") == rendered()
    rules = yaml.safe_load((DEPLOY / "prometheus" / "slabd.rules.yml").read_text(encoding="utf-8"))
    assert yaml.safe_load(rendered())["spec"] == rules


@needs_kubectl
@pytest.mark.skipif(not VALIDATE.exists(), reason="needs kubernetes-validate, of the extra dev")
@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_manifests_are_valid(name: str) -> None:
    """By the schemas of Kubernetes, strictly; what comes from operators has none there."""
    command = [str(VALIDATE), "--strict", "-k", VERSION, "/dev/stdin"]
    done = subprocess.run(command, input=built(name), capture_output=True, text=True, check=False, timeout=550)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    unknown = set(re.findall(r"Couldn't find schema for kind (\w+)", said))
    assert unknown == (set() if name == "samples" else {"PodMonitor", "PrometheusRule"})


@needs_kubectl
def test_every_dashboard_is_there_and_small_enough() -> None:
    """`kubectl apply` keeps a copy of each object in an annotation, which is at most 256 KiB."""
    maps = {name: each for name, each in manifests("kubernetes/base").items() if "-dashboard-" in name}
    files = {file: text for each in maps.values() for file, text in each["data"].items()}
    assert files == {path.name: path.read_text() for path in (DEPLOY / "grafana" / "dashboards").glob("*.json")}
    assert all(len(str(each)) < 256 << 10 for each in maps.values())


@needs_kubectl
def test_huge_pages_take_the_place_of_memory() -> None:
    """The patch asks for as many as the heap needs, and tells the daemon."""
    container = manifests("kubernetes/hugepages")["DaemonSet/slabd"]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][-1] == "--huge-pages=2MiB"
    assert quantity(container["resources"]["limits"]["hugepages-2Mi"]) == configured().heaps[0].size_bytes
    assert container["resources"]["requests"]["hugepages-2Mi"] == container["resources"]["limits"]["hugepages-2Mi"]


def configured() -> Any:
    """Return the configuration of the daemon in a pod."""
    return load_config(["--config", str(DEPLOY / "kubernetes" / "base" / "slabd.toml")], {})


def test_the_configuration_goes_with_the_pod() -> None:
    """Its memory, its ports and its directory."""
    config, pod = configured(), pod_of_the_daemon()
    (container,) = pod["containers"]
    assert quantity(container["resources"]["limits"]["memory"]) == config.heaps[0].size_bytes + OVERHEAD
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": config.metrics_listen.port, "health": config.listen[0].port}
    assert {container[f"{probe}Probe"]["grpc"]["port"] for probe in ("startup", "readiness")} == {ports["health"]}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {str(config.runtime_dir), "/etc/slabd"}
    assert config.drain_seconds < pod["terminationGracePeriodSeconds"]


def test_what_the_pod_runs_can_be_run() -> None:
    """The daemon, and what is done before it is stopped, for which there is time."""
    (container,) = pod_of_the_daemon()["containers"]
    assert container["args"] == ["serve", "--config", "/etc/slabd/slabd.toml"]
    drain = build_parser().parse_args(container["lifecycle"]["preStop"]["exec"]["command"][1:])
    assert drain.timeout + configured().drain_seconds < pod_of_the_daemon()["terminationGracePeriodSeconds"]


def test_over_tcp_there_is_nothing_but_health() -> None:
    """Whoever reaches the port may not open a session."""
    assert [heap.remote for heap in configured().heaps] == ["off"]


def test_everybody_is_the_same_user() -> None:
    """Image, daemon, directory and sample: the daemon admits its own user."""
    (image,) = re.findall(r"^USER (\d+)", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    (made,) = pod_of_the_daemon()["initContainers"]
    sample = yaml.safe_load((DEPLOY / "samples" / "pods.yaml").read_text(encoding="utf-8"))
    assert made["command"][3] == image
    for pod in (pod_of_the_daemon(), sample["spec"]):
        assert str(pod["securityContext"]["runAsUser"]) == image


def test_clients_mount_the_sockets_and_share_nothing_else() -> None:
    """Neither namespaces of the node, nor memory."""
    sample = yaml.safe_load((DEPLOY / "samples" / "pods.yaml").read_text(encoding="utf-8"))["spec"]
    for pod in (sample, pod_of_the_daemon()):
        assert not {"hostIPC", "hostPID", "hostNetwork", "shareProcessNamespace"} & set(pod)
        assert [each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each] == ["/run/slabd"]


def test_the_monitor_finds_the_daemons() -> None:
    """By their label and port, under the job that the alerts look for, with the node as instance."""
    monitor, daemons = base("podmonitor.yaml")["spec"], base("daemonset.yaml")["spec"]
    assert monitor["selector"] == daemons["selector"]
    assert monitor["podMetricsEndpoints"][0]["port"] in {
        p["name"] for p in pod_of_the_daemon()["containers"][0]["ports"]
    }
    labels = base("kustomization.yaml")["labels"][0]["pairs"]
    assert labels[monitor["jobLabel"]] == "slabd"
