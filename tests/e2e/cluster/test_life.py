# SPDX-License-Identifier: Apache-2.0
"""The cluster's life on this machine: up, a power cut, down, and an `up` that is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.image import cache
from deploy.image.process import BuildError
from tests.e2e.cluster import cgroups, teardown
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.layout import Layout

pytestmark = pytest.mark.e2e
TOOL = Path(__file__).parent
# Beside the cluster of the other tests, which may be up at the same time.
DIRECTORY = Path("/var/lib/torpor-cluster-life")
POD = """
apiVersion: v1
kind: Pod
metadata: {name: still}
spec:
  nodeName: a
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "localhost/torpor-test-pause:1", imagePullPolicy: Never}
"""
WATCHED = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/ipv4/ip_forward",
    "net/netfilter/nf_conntrack_max", "kernel/hostname",
)  # fmt: skip


@pytest.fixture
def cluster():
    found = Cluster(DIRECTORY)
    found.down()
    yield found
    found.down()


def machine():
    """What of the machine this cluster might change (others may come and go meanwhile)."""
    links = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True)
    sysctls = {name: Path("/proc/sys", name) for name in WATCHED}
    groups, prefix = Path("/sys/fs/cgroup"), Layout(DIRECTORY).prefix
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return {
        "mounts": [line for line in mounts if str(DIRECTORY) in line or str(cache.home()) in line],
        "links": [line.split(" mtu ")[0] for line in links.stdout.splitlines()],
        "sysctls": {name: path.read_text() for name, path in sysctls.items() if path.exists()},
        "groups": sorted(str(path) for path in groups.glob(f"**/{prefix}*")),
        "subtree": [path.read_text() for path in sorted(groups.glob("cgroup.subtree_control"))],
    }


def test_up_power_cut_down(cluster):
    before = machine()
    cluster.up({"a": "sid", "b": "trixie"})
    cluster.up({"a": "sid", "b": "trixie"})  # is up: changes nothing
    with pytest.raises(BuildError, match="other nodes"):
        cluster.up({"a": "trixie"})

    versions = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    runtimes = [node["status"]["nodeInfo"]["containerRuntimeVersion"] for node in versions]
    assert runtimes[0].startswith("containerd://2.")
    assert runtimes[1].startswith("containerd://1.7")

    cluster.kubectl("apply", "-f", "-", input=POD)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/still", "--timeout=60s")
    cluster.on("a", "echo from a > /cluster/shared/note")
    assert cluster.on("b", "cat /cluster/shared/note") == "from a\n"
    boot = cluster.on("a", "cat /proc/sys/kernel/random/boot_id")

    inhabitants = cluster.machine_pids("a")
    freeze_pods(cluster, "a")  # as a checkpoint does; power cuts do not ask
    cluster.kill_node("a")
    assert inhabitants
    assert not [pid for pid in inhabitants if alive(pid)]
    with pytest.raises(BuildError, match="not running"):
        cluster.on("a", "true")
    wait_for(lambda: "a=Unknown" in ready(cluster), 60)

    cluster.start_node("a")
    wait_for(lambda: "a=True" in ready(cluster), 60)
    assert cluster.on("a", "cat /proc/sys/kernel/random/boot_id") != boot
    wait_for(lambda: restarts(cluster) == "1", 60)

    cluster.down()
    assert machine() == before


def test_node_restriction_and_rbac_are_in_force(cluster):
    """A node's own certificate may not touch another node: the authorisers are real."""
    cluster.up({"a": "trixie", "b": "trixie"})
    config = str(cluster.layout.etc("a") / "kubelet.kubeconfig")
    labels = ("label", "--overwrite", "node")
    cluster.kubectl("--kubeconfig", config, *labels, "a", "torpor.dev/probe=1")
    with pytest.raises(BuildError) as refused:
        cluster.kubectl("--kubeconfig", config, *labels, "b", "torpor.dev/probe=1")
    assert "orbidden" in refused.value.cause
    with pytest.raises(BuildError):
        cluster.kubectl("--kubeconfig", config, "get", "secrets", "-A")


@pytest.mark.slow
def test_killed_at_any_moment_down_leaves_nothing():
    """kill -9 of `up` at random instants; `down` then finds and removes all that it began."""
    before = machine()
    instants = random.Random(4)
    for _ in range(8):
        argv = [sys.executable, str(TOOL), "--dir", str(DIRECTORY)]
        up = subprocess.Popen([*argv, "up"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(instants.uniform(0.2, 6.0))
        os.kill(up.pid, signal.SIGKILL)
        up.wait()
        subprocess.run([*argv, "down"], check=True, capture_output=True)
        assert not teardown.leftovers(Layout(DIRECTORY))
        assert machine() == before


def freeze_pods(cluster, name):
    """Freezes every pod of the node, by either version of control groups."""
    values = {"freezer.state": "FROZEN", "cgroup.freeze": "1"}
    files = [
        path / "kubepods" / file
        for path in cgroups.joined(cluster.node(name).group)
        for file in values
        if (path / "kubepods" / file).exists()
    ]
    assert files
    for path in files:
        path.write_text(values[path.name])


def alive(pid):
    """Whether it runs; of the dead, ours to collect, there is no command line left."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def wait_for(condition, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def ready(cluster):
    path = '{range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}'
    return cluster.kubectl("get", "nodes", "-o", f"jsonpath={path}").split()


def restarts(cluster):
    path = "jsonpath={.status.containerStatuses[0].restartCount}"
    return cluster.kubectl("get", "pod", "still", "-o", path)
