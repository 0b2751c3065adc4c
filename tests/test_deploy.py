"""What an operator applies: Kubernetes' file is held against its schema, and all against the image and haproxy.cfg."""

from __future__ import annotations

import copy
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import hcl2
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

from multicloud import run, runtime, samplefile, settings
from multicloud.console import config
from tests import servers
from tests.command import BARE

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IMAGE = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
"""The last stage."""

DEPLOYMENT, SERVICE, BUDGET = KUBERNETES = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text()))
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]

PLAIN = hcl2.SerializationOptions(with_comments=False, explicit_blocks=False, strip_string_quotes=True)
JOB: dict[str, Any] = hcl2.loads((ROOT / "deploy/nomad.hcl").read_text(), serialization_options=PLAIN)["job"][0]
GROUP: dict[str, Any] = JOB["multicloud"]["group"][0]["edge"]
TASK: dict[str, Any] = GROUP["task"][0]["haproxy"]
NOMAD_PORTS: dict[str, dict[str, int]] = {
    name: port for each in GROUP["network"][0]["port"] for name, port in each.items()
}

FLY: dict[str, Any] = tomllib.loads((ROOT / "fly.toml").read_text())

EXPOSED = {int(port) for port in re.findall(r"^EXPOSE (.*)$", IMAGE, re.MULTILINE)[0].split()}
WRITTEN = {"/tmp", posixpath.dirname(re.findall(r"^ENV MULTICLOUD_SOCKET=(.*)$", IMAGE, re.MULTILINE)[0])}
"""Where the samples, the socket and the configuration are."""


def bound(name: str) -> int:
    """The port that haproxy.cfg binds where the variable is not set."""
    return int(re.findall(rf":\$\{{{name}-(\d+)\}}", (ROOT / "haproxy.cfg").read_text())[0])


HTTP, STATS = bound("PORT"), bound("STATS_PORT")


@pytest.mark.parametrize("version", [all_versions()[0], all_versions()[-1]])
@pytest.mark.parametrize("resource", KUBERNETES, ids=lambda resource: str(resource["kind"]))
def test_kubernetes_accepts_each_resource(resource: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


def test_a_kubernetes_pod_is_what_its_service_and_its_budget_select() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert SERVICE["spec"]["selector"] == labels
    assert BUDGET["spec"]["selector"]["matchLabels"] == labels


def test_kubernetes_sends_traffic_and_probes_to_ports_of_the_image() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"http": HTTP, "stats": STATS}
    assert ports.keys() >= {port["targetPort"] for port in SERVICE["spec"]["ports"]}
    assert {CONTAINER[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {"stats"}
    assert set(ports.values()) <= EXPOSED


def test_kubernetes_runs_the_user_that_the_image_has() -> None:
    # tests/container.py sees the number in the image; the Dockerfile leaves the user to its base.
    assert not re.search(r"^USER ", IMAGE, re.MULTILINE)
    assert f"usermod --uid {POD['securityContext']['runAsUser']} haproxy" in (ROOT / "tests/container.sh").read_text()
    assert (
        POD["securityContext"]["runAsUser"] == POD["securityContext"]["runAsGroup"] == POD["securityContext"]["fsGroup"]
    )


def test_kubernetes_runs_it_where_pods_must_be_restricted() -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert CONTAINER["securityContext"]["allowPrivilegeEscalation"] is False
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_kubernetes_mounts_what_is_written_over_a_read_only_root_and_no_file() -> None:
    kinds = {volume["name"]: volume.keys() - {"name"} for volume in POD["volumes"]}
    mounted = {mount["mountPath"]: kinds[mount["name"]] for mount in CONTAINER["volumeMounts"]}
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert mounted == {path: {"emptyDir"} for path in WRITTEN}


def test_kubernetes_waits_longer_than_its_hook_takes() -> None:
    command = CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert sum(map(int, re.findall(r"sleep (\d+)", command))) < POD["terminationGracePeriodSeconds"]


def test_kubernetes_takes_the_second_way_as_a_patch() -> None:
    patch = yaml.safe_load((ROOT / "deploy/kubernetes-beside.yaml").read_text())
    patched = copy.deepcopy(DEPLOYMENT)
    template = patch["spec"]["template"]
    patched["spec"]["template"]["metadata"] |= template["metadata"]
    haproxy, beside = template["spec"]["containers"]
    patched["spec"]["template"]["spec"]["containers"][0] |= haproxy
    patched["spec"]["template"]["spec"]["containers"].append(beside)
    kubernetes_validate.validate(patched, all_versions()[-1], strict=True)
    assert patch.keys() == {"spec"}
    assert template["spec"].keys() == {"containers"}
    assert beside["image"] == CONTAINER["image"]
    assert beside["securityContext"] == CONTAINER["securityContext"]
    shared = [mount for mount in CONTAINER["volumeMounts"] if mount["mountPath"] in WRITTEN]
    assert beside["volumeMounts"] == shared
    assert run.options_of(beside["command"][1:])[0].endswith(f":{beside['ports'][0]['containerPort']}")
    assert {variable["name"] for variable in beside["env"]} == {settings.BACKENDS.variable}
    assert haproxy["name"] == CONTAINER["name"]
    start = (ROOT / "deploy/start.sh").read_text()
    assert all(part in start for part in re.findall(r"file=\S+|exec .*", haproxy["command"][-1]))


SERVICE_UNIT = ROOT / "deploy/multicloud.service"
ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit_and_finds_it_safe(tmp_path: Path) -> None:
    text = SERVICE_UNIT.read_text()
    unit = tmp_path / "multicloud.service"
    unit.write_text(text.replace("/usr/bin/multicloud-run", "/bin/true"))  # it must be there to be verified
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    judged = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exposure = re.findall(r"Overall exposure level for multicloud\.service: ([0-9.]+) OK", judged)
    assert float(exposure[0]) <= 2.0


def test_the_unit_keeps_its_samples_where_its_first_lines_have_everybody_look() -> None:
    text = SERVICE_UNIT.read_text()
    unit = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    conf = dict(re.findall(r"^#  +(\w+) = (.*)$", text, re.MULTILINE))
    assert posixpath.dirname(conf["times"]) == f"/run/{unit['RuntimeDirectory']}"
    assert {settings.TIMES.name, settings.BACKENDS.name} == conf.keys()
    assert unit["Type"] == "notify"
    assert float(unit["WatchdogSec"]) > 2 * run.ALIVE + runtime.TIMEOUT + samplefile.LOCK_WAIT
    assert text.count("MULTICLOUD_") == 0  # in the environment it would not be seen by the other commands


def test_nomad_lets_clients_finish() -> None:
    assert (TASK["driver"], TASK["kill_signal"], TASK["kill_timeout"]) == ("docker", "SIGUSR1", "30s")


def test_nomad_sends_traffic_and_checks_to_ports_of_the_image() -> None:
    service = GROUP["service"][0]
    assert {name: port["to"] for name, port in NOMAD_PORTS.items()} == {"http": HTTP, "stats": STATS}
    assert NOMAD_PORTS.keys() == set(TASK["config"][0]["ports"])
    assert (service["port"], service["check"][0]["port"]) == ("http", "stats")


def test_nomad_mounts_what_is_written_over_a_read_only_root_and_no_file() -> None:
    driver = TASK["config"][0]
    assert "template" not in TASK
    assert "volumes" not in driver
    assert driver["readonly_rootfs"]
    assert {mount["target"]: mount["type"] for mount in driver["mount"]} == dict.fromkeys(WRITTEN, "tmpfs")


def test_kubernetes_and_nomad_run_the_same_image_and_tell_the_region() -> None:
    variables = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
    assert CONTAINER["image"] == TASK["config"][0]["image"]
    assert variables.keys() == TASK["env"][0].keys() == {"MULTICLOUD_SERVERS", "FLY_REGION"}


def test_every_platform_names_servers_that_the_image_can_write_a_configuration_for() -> None:
    variables = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
    for platform in (variables, TASK["env"][0], FLY["env"]):
        names = platform["MULTICLOUD_SERVERS"].split()
        assert [server.name for server in config.servers(names)] == names


@pytest.mark.parametrize("address", ["", "127.0.0.1", "0.0.0.0", "::", "::1"])
def test_the_image_is_healthy_wherever_haproxy_listens(address: str) -> None:
    command = re.findall(r"^HEALTHCHECK .*\\\n +CMD (.*)$", IMAGE, re.MULTILINE)[0]
    at = "::1" if ":" in address else "127.0.0.1"
    with servers.Server(servers.answers(servers.OK), address=at) as server:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environ = {**BARE, "PATH": path, "ADDRESS": address, "STATS_PORT": str(server.port)}
        done = subprocess.run(["sh", "-c", command], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_fly_sends_traffic_to_the_ports_that_take_the_proxy_protocol() -> None:
    assert [service["internal_port"] for service in FLY["services"]] == [bound("PROXY_PORT"), bound("STATS_PROXY_PORT")]
    assert all("proxy_proto" in port["handlers"] for service in FLY["services"] for port in service["ports"])
    assert FLY["checks"]["stats"]["port"] == STATS
    assert {HTTP, STATS, *(service["internal_port"] for service in FLY["services"])} == EXPOSED


def test_fly_lets_clients_finish_and_never_stops_a_machine() -> None:
    assert (FLY["kill_signal"], FLY["kill_timeout"]) == (TASK["kill_signal"], TASK["kill_timeout"])
    assert all(service["auto_stop_machines"] == "off" for service in FLY["services"])
