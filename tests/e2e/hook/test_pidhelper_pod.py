# SPDX-License-Identifier: Apache-2.0
"""The pid helper in a pod of its own: two capabilities, default seccomp, /proc/sys read-only."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from native.build import build_programs
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.hook.node import NAMESPACE, NODE, wait_for
from tests.e2e.images.build import name_of

pytestmark = [pytest.mark.e2e, pytest.mark.root]

DIRECTORY = "/run/torpor-test"
# The node has no Python; a client in the words of its perl-base.
ASK = f"""
use Socket;
socket(S, AF_UNIX, SOCK_SEQPACKET, 0) or die;
connect(S, sockaddr_un("{DIRECTORY}/pidhelper.sock")) or die;
send(S, pack("Lll", 1, $ARGV[0], $ARGV[1]), 0);
recv(S, $reply, 16, 0);
print unpack("l", $reply);
"""


@pytest.fixture(scope="module")
def helper(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    built = build_programs(tmp_path_factory.mktemp("programs"))
    program = next(path for path in built if path.name == "torpor-pidhelper")
    shared = Path(f"/proc/{cluster.node(NODE).pid()}/root{DIRECTORY}")
    shared.mkdir()
    (shared / "torpor-pidhelper").write_bytes(program.read_bytes())
    (shared / "torpor-pidhelper").chmod(0o755)
    container = {
        "name": "pidhelper",
        "image": name_of("distroless"),
        "imagePullPolicy": "Never",
        "command": ["/shared/torpor-pidhelper", "--socket", "/shared/pidhelper.sock"],
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
        "securityContext": {
            "runAsUser": 0,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN", "SYS_PTRACE"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    spec = {
        "hostPID": True,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "shared", "hostPath": {"path": DIRECTORY}}],
    }
    start(cluster, "default", "pidhelper", spec)
    wait_for((shared / "pidhelper.sock").exists)
    yield
    cluster.kubectl("delete", "pod", "-n", "default", "pidhelper")


def start(cluster: Cluster, namespace: str, name: str, spec: dict[str, object]) -> None:
    metadata = {"name": name, "namespace": namespace}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(pod))
    ready = ("--for=condition=Ready", "--timeout=60s")
    cluster.kubectl("wait", "-n", namespace, "pod", name, *ready)


@pytest.fixture
def target(cluster: Cluster) -> Iterator[str]:
    """The node's pid of the init of a restricted pod."""
    context = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "main",
        "image": name_of("distroless"),
        "imagePullPolicy": "Never",
        "securityContext": context,
    }
    start(cluster, NAMESPACE, "target", {"containers": [container]})
    yield cluster.on(NODE, "grep -l '^counter$' /proc/[0-9]*/comm | cut -d/ -f3 | head -1").strip()
    cluster.kubectl("delete", "pod", "-n", NAMESPACE, "target", "--grace-period=1")


def ask(cluster: Cluster, pid: str, want: int) -> int:
    return int(cluster.on(NODE, ["perl", "-e", ASK, pid, str(want)]))


def test_a_pid_is_chosen_in_a_restricted_pod(cluster: Cluster, helper: None, target: str) -> None:
    for want in (4711, 77, 30000):
        assert ask(cluster, target, want) == 0
        got = cluster.on(NODE, ["nsenter", "-t", target, "-p", "sh", "-c", "echo $$"])
        assert int(got) == want


def test_the_node_itself_is_refused(cluster: Cluster, helper: None) -> None:
    assert ask(cluster, "1", 4711) == errno.EPERM
    log = cluster.kubectl("logs", "-n", "default", "pidhelper")
    assert "task 1, pid 4711: not a pid namespace below the helper's own" in log
