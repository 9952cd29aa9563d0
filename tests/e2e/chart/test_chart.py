# SPDX-License-Identifier: Apache-2.0
"""The Helm chart: lint, and what it renders for the Kubernetes releases that it names."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from torpor.plugin.api import schema

pytestmark = pytest.mark.e2e  # helm is built with the cluster

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy" / "helm" / "torpor"
RELEASES = ("1.30.0", "1.31.0", "1.32.0", "1.33.0", "1.34.0")
DOCUMENTED = (
    "image.repository=localhost/torpor,image.tag=dev,image.pullPolicy=Never,"
    "store.hostPath=/var/lib/checkpoints"
)
AGENT_CAPABILITIES = {
    "SYS_PTRACE",
    "CHECKPOINT_RESTORE",
    "DAC_READ_SEARCH",
    "DAC_OVERRIDE",
    "CHOWN",
    "FOWNER",
    "FSETID",
    "SETFCAP",
}
Objects = dict[tuple[str, str], dict[str, Any]]


@functools.cache
def helm() -> str:
    """The helm of the test cluster's cache, or of the machine."""
    base = os.environ.get("TORPOR_CACHE")
    cache = Path(base) if base else Path.home() / ".cache" / "torpor"
    cached = sorted(path for path in cache.glob("kubernetes-*/helm") if os.access(path, os.X_OK))
    found = str(cached[-1]) if cached else shutil.which("helm")
    if found:
        return found
    text = "no helm: it is made by `python3 tests/e2e/cluster up`"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)


def run(*args: str, release: str = "1.34.0") -> subprocess.CompletedProcess[str]:
    verb, *rest = args
    if verb == "template":
        rest = ["torpor", str(CHART), "--namespace", "torpor", "--kube-version", release, *rest]
    return subprocess.run([helm(), verb, *rest], capture_output=True, text=True, check=False)


def render(values: str = DOCUMENTED, *more: str, release: str = "1.34.0") -> Objects:
    done = run("template", "--set", values, *more, release=release)
    assert done.returncode == 0, done.stderr
    listed = [item for item in yaml.safe_load_all(done.stdout) if item]
    objects = {(str(i["kind"]), str(i["metadata"]["name"])): i for i in listed}
    assert len(objects) == len(listed), "two objects of one name"
    return objects


def pod_spec(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = objects[kind, name]["spec"]["template"]["spec"]
    return spec


def container(spec: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in spec["containers"] if c["name"] == name)
    return found


@pytest.fixture(scope="module")
def objects() -> Objects:
    return render()


def test_lint() -> None:
    done = run("lint", str(CHART), "--strict", "--set", DOCUMENTED)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("release", RELEASES)
def test_renders_for_every_release(release: str) -> None:
    kinds = {kind for kind, _ in render(release=release)}
    assert {"DaemonSet", "Deployment", "CheckpointStore", "ClusterRole"} <= kinds


def test_older_releases_are_refused() -> None:
    assert run("template", "--set", DOCUMENTED, release="1.29.0").returncode != 0


def test_crds_are_those_of_the_models() -> None:
    assert schema.stale(CHART / "crds") == []
    done = run("template", "--set", DOCUMENTED, "--include-crds")
    assert done.stdout.count("kind: CustomResourceDefinition") == len(schema.CRDS)


def test_no_container_is_privileged(objects: Objects) -> None:
    for kind, name in (("DaemonSet", "torpor-agent"), ("Deployment", "torpor-controller")):
        for entry in pod_spec(objects, kind, name)["containers"]:
            security = entry["securityContext"]
            assert not security.get("privileged")
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"]["drop"] == ["ALL"]


def test_agent_has_these_capabilities_and_no_more(objects: Objects) -> None:
    spec = pod_spec(objects, "DaemonSet", "torpor-agent")
    added = {
        c["name"]: set(c["securityContext"]["capabilities"]["add"]) for c in spec["containers"]
    }
    assert added == {"agent": AGENT_CAPABILITIES, "pidhelper": {"SYS_ADMIN", "SYS_PTRACE"}}
    assert spec["hostPID"] is True
    assert not spec.get("hostNetwork")
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_every_capability_has_its_reason() -> None:
    lines = (CHART / "templates" / "agent.yaml").read_text().splitlines()
    entries = [index for index, line in enumerate(lines) if line.strip()[2:] in AGENT_CAPABILITIES]
    assert len(entries) == len(AGENT_CAPABILITIES) + 1
    for index in entries:
        assert lines[index - 1].strip().startswith("#"), lines[index]


def test_controller_meets_restricted(objects: Objects) -> None:
    spec = pod_spec(objects, "Deployment", "torpor-controller")
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostPID", "hostNetwork", "hostIPC"} & spec.keys()
    assert all("hostPath" not in volume for volume in spec["volumes"])


def test_agent_mounts_little_of_the_node(objects: Objects) -> None:
    volumes = pod_spec(objects, "DaemonSet", "torpor-agent")["volumes"]
    paths = {v["hostPath"]["path"] for v in volumes if "hostPath" in v}
    assert paths == {"/sys/fs/cgroup", "/var/lib/checkpoints", "/run/torpor-hook"}


def test_helper_has_no_profile_only_where_it_reads_filters(objects: Objects) -> None:
    helper = container(pod_spec(objects, "DaemonSet", "torpor-agent"), "pidhelper")
    assert helper["securityContext"]["seccompProfile"] == {"type": "Unconfined"}
    others = render(DOCUMENTED + ",agent.readSeccompFilters=false")
    helper = container(pod_spec(others, "DaemonSet", "torpor-agent"), "pidhelper")
    assert "seccompProfile" not in helper["securityContext"]


def test_helper_sees_nothing_but_its_socket(objects: Objects) -> None:
    helper = container(pod_spec(objects, "DaemonSet", "torpor-agent"), "pidhelper")
    assert [mount["name"] for mount in helper["volumeMounts"]] == ["run"]


def _rights(objects: Objects, name: str) -> set[tuple[str, str]]:
    rules = objects["ClusterRole", f"torpor-torpor-{name}"]["rules"]
    return {(r, verb) for rule in rules for r in rule["resources"] for verb in rule["verbs"]}


def test_rights_are_least(objects: Objects) -> None:
    agent, controller = _rights(objects, "agent"), _rights(objects, "controller")
    for rights in (agent, controller):
        assert not {verb for _, verb in rights} & {"*", "deletecollection", "escalate", "bind"}
        assert not {resource for resource, _ in rights} & {"secrets", "nodes/proxy", "pods/exec"}
    assert {verb for resource, verb in agent if resource == "pods"} == {"get", "list", "watch"}
    assert {verb for resource, verb in agent if resource == "checkpoints/status"} == {"patch"}
    assert ("checkpoints", "patch") not in agent
    assert {r for r, verb in controller if verb == "delete"} == {"pods"}


def test_agent_may_create_checkpoints_only_for_the_hook(objects: Objects) -> None:
    assert ("checkpoints", "create") in _rights(objects, "agent")
    without = render(DOCUMENTED, "--set", "agent.hook.enabled=false")
    assert ("checkpoints", "create") not in _rights(without, "agent")
    volumes = pod_spec(without, "DaemonSet", "torpor-agent")["volumes"]
    assert "hook" not in {volume["name"] for volume in volumes}


def test_agent_and_controller_are_two_accounts(objects: Objects) -> None:
    names = {
        pod_spec(objects, kind, name)["serviceAccountName"]
        for kind, name in (("DaemonSet", "torpor-agent"), ("Deployment", "torpor-controller"))
    }
    assert len(names) == 2
    assert all(("ServiceAccount", name) in objects for name in names)


def test_roles_are_aggregated() -> None:
    found = render()
    labels = found["ClusterRole", "torpor-torpor-edit"]["metadata"]["labels"]
    assert labels["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    without = render(DOCUMENTED, "--set", "rbac.aggregate=false")
    assert ("ClusterRole", "torpor-torpor-edit") not in without


@pytest.mark.parametrize(
    ("values", "volume"),
    [
        ("store.hostPath=/s", {"hostPath": {"path": "/s"}}),
        ("store.existingClaim=c", {"persistentVolumeClaim": {"claimName": "c"}}),
        (
            "store.nfs.server=h,store.nfs.path=/e",
            {"nfs": {"server": "h", "path": "/e"}},
        ),
    ],
)
def test_stores(values: str, volume: dict[str, Any]) -> None:
    found = render(values)
    assert found["CheckpointStore", "default"]["spec"] == {"default": True, "volume": volume}
    spec = pod_spec(found, "DaemonSet", "torpor-agent")
    (mounted,) = [v for v in spec["volumes"] if v["name"] == "store"]
    (kind,) = volume
    assert volume[kind].items() <= mounted[kind].items()
    for entry, where in (("DaemonSet", "agent"), ("Deployment", "controller")):
        env = container(pod_spec(found, entry, f"torpor-{where}"), where)["env"]
        (stores,) = [e["value"] for e in env if e["name"] == "TORPOR_STORES"]
        assert json.loads(stores) == {"default": "/var/lib/torpor/stores/default"}


@pytest.mark.parametrize(
    "values",
    [
        "image.tag=dev",
        "store.hostPath=/s,store.existingClaim=c",
        "store.nfs.server=h",
        "store.hostPath=relative/path",
        "store.hostPath=/s,image.pullPolicy=Sometimes",
        "store.hostPath=/s,controller.replicas=0",
        "store.hostPath=/s,unknown.value=1",
    ],
)
def test_bad_values_are_refused(values: str) -> None:
    assert run("template", "--set", values).returncode != 0


def test_image_is_the_same_everywhere(objects: Objects) -> None:
    images = {
        c["image"]
        for kind, name in (("DaemonSet", "torpor-agent"), ("Deployment", "torpor-controller"))
        for c in pod_spec(objects, kind, name)["containers"]
    }
    assert images == {"localhost/torpor:dev"}
    digest = "sha256:" + "a" * 64
    pinned = render(DOCUMENTED, "--set", f"image.digest={digest}")
    controller = container(pod_spec(pinned, "Deployment", "torpor-controller"), "controller")
    assert controller["image"] == f"localhost/torpor@{digest}"


def test_options() -> None:
    found = render(
        DOCUMENTED,
        "--set",
        "controller.podDisruptionBudget.enabled=true,serviceMonitor.enabled=true",
    )
    assert ("PodDisruptionBudget", "torpor-controller") in found
    assert ("ServiceMonitor", "torpor") in found
    assert not {"PodDisruptionBudget", "ServiceMonitor"} & {kind for kind, _ in render()}


def test_sockets_of_the_runtime_are_mounted_on_request_only() -> None:
    found = render(DOCUMENTED, "--set", "agent.hook.nriSocket=/var/run/nri/nri.sock")
    spec = pod_spec(found, "DaemonSet", "torpor-agent")
    env = {e["name"]: e.get("value") for e in container(spec, "agent")["env"]}
    assert env["TORPOR_NRI_SOCKET"] == "/run/nri/nri.sock"
    assert {"/var/run/nri"} <= {v["hostPath"]["path"] for v in spec["volumes"] if "hostPath" in v}
    plain = pod_spec(render(), "DaemonSet", "torpor-agent")
    assert "TORPOR_NRI_SOCKET" not in {e["name"] for e in container(plain, "agent")["env"]}


def test_priority(objects: Objects) -> None:
    spec = pod_spec(objects, "DaemonSet", "torpor-agent")
    assert spec["priorityClassName"] == "system-node-critical"
