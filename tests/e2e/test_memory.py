# SPDX-License-Identifier: Apache-2.0
"""How the memory of pods that have a seccomp profile is taken, and that it is whole.

The pods write to their memory all the time; what came from two instants would not fit together.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e import kube
from tests.e2e.clients import programs
from tests.e2e.clients.bench import MIB, MOVES
from tests.e2e.clients.pods import USER

pytestmark = pytest.mark.e2e
PROFILES = "/var/lib/kubelet/seccomp"
PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["swapon", "reboot"], "action": "SCMP_ACT_ERRNO"}],
}
"""Of an operator: it forbids something, and lets a program watch its own memory."""
CHARGE = """
group=$(sed -n 's/.*:memory://p' /proc/{pid}/cgroup)
if [ "$group" ]; then cat /sys/fs/cgroup/memory$group/memory.usage_in_bytes
else cat /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup)/memory.current; fi
"""
TASKS = """
group=$(sed -n 's/.*:\\(memory\\|\\):\\(.*kubepods.*\\)/\\2/p' /proc/{pid}/cgroup | head -1)
cat /sys/fs/cgroup/memory$group/cgroup.procs /sys/fs/cgroup$group/cgroup.procs 2>/dev/null | sort
"""
REDIS_MIB, VALUES_AT_ONCE = 512, 8192
TRIES = int(os.environ.get("TORPOR_E2E_TRIES", "1"))
"""Of each way; one tells little where the machine has much to do."""
PINGS_S = "15"
"""The stop is well within, also where the machine has much to do."""
FILL = (
    "local t = {} for k = 1, 256 do t[k] = tostring(math.random()) end local b = table.concat(t) "
    "for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do "
    "redis.call('set', 'key:' .. i, string.sub(i .. b, 1, 4000)) end"
)
PING = """
import json, socket, sys, time
wire = socket.create_connection((sys.argv[1], 6379), 30)
longest_s, end_s = 0.0, time.monotonic() + float(sys.argv[2])
while (begin_s := time.monotonic()) < end_s:
    wire.sendall(b"PING\\r\\n")
    assert wire.recv(100) == b"+PONG\\r\\n"
    longest_s = max(longest_s, time.monotonic() - begin_s)
    time.sleep(0.0005)
print(json.dumps(longest_s))
"""
SLACK = 4 * MIB
"""By which the charge of a pod may differ between two looks: what it has been asked by exec."""


@pytest.fixture
def pods(bench):
    """Names of pods that a test leaves behind."""
    names = []
    yield names
    bench.forget(*names)


def until(check, timeout_s=30.0):
    end_s = time.monotonic() + timeout_s
    while not (found := check()):
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.3)
    return found


def ask(bench, pod):
    return bench.ask(pod, *programs.LEDGER_QUERY)


def check(before, after):
    """It is the same program, further on, and its memory is of one instant."""
    assert after["identity"] == before["identity"], "started afresh"
    assert after["whole"], "its memory is damaged"
    assert after["written"] > before["written"], "it stands still"


def ways(checkpoint):
    return [each["memoryWay"] for each in checkpoint["status"]["containers"]]


def charged(bench, node, pid):
    return int(bench.cluster.on(node, ["bash", "-c", CHARGE.format(pid=pid)]))


def tasks(bench, node, pid):
    return bench.cluster.on(node, ["bash", "-c", TASKS.format(pid=pid)]).split()


def test_a_restricted_pod_is_taken_by_a_snapshot(bench, pods):
    """Auto and Continue: the fork is charged to the pod until it is read, and leaves nothing."""
    pods += ["ledger", "copy"]
    # else it waits for the agent, which compresses meanwhile
    request = {"requests": {"cpu": "500m"}}
    bench.start(programs.ledger("ledger", "a", mib=128, pages_s=1000, resources=request))
    pid = kube.container_pid(bench.cluster, "ledger", namespace=bench.namespace)
    before, charge, there = ask(bench, "ledger"), charged(bench, "a", pid), tasks(bench, "a", pid)
    assert there
    assert charge > 128 * MIB
    done = bench.checkpoint("ledger-cut", "ledger")
    assert [way.partition(":")[0] for way in ways(done)] == ["snapshot"], ways(done)
    until(lambda: charged(bench, "a", pid) < charge + SLACK)
    until(lambda: tasks(bench, "a", pid) == there)
    after = ask(bench, "ledger")
    check(before, after)
    bench.restore("ledger-back", "ledger-cut", node="b", pod="copy")
    copy = ask(bench, "copy")
    check(before, copy)
    later = ask(bench, "ledger")
    check(after, later)
    assert copy["written"] < later["written"], "the copy has begun at the cut"
    MOVES.append(
        f"snapshot of 128 MiB: paused {done['status']['pause']}, the program saw "
        f"{1000 * after['longest_s']:.0f} ms"
    )


def test_a_limit_of_memory_leaves_no_room_for_a_copy(bench, pods):
    """Were every page written meanwhile, the pod would be over its limit: it is copied frozen."""
    pods += ["limited", "limited-copy"]
    limits = {"limits": {"memory": "192Mi"}}
    bench.start(programs.ledger("limited", "a", mib=128, pages_s=500, resources=limits))
    before = ask(bench, "limited")
    done = bench.checkpoint("limited-cut", "limited")
    (way,) = ways(done)
    assert way.startswith("frozen: no snapshot, because "), way
    assert "may be written meanwhile and there is room for " in way
    check(before, ask(bench, "limited"))
    bench.restore("limited-back", "limited-cut", node="b", pod="limited-copy")
    check(before, ask(bench, "limited-copy"))
    (status,) = bench.get("pod", "limited")["status"]["containerStatuses"]
    assert status["restartCount"] == 0


def test_pre_copy_where_the_default_profile_forbids_it(bench, pods):
    """It is taken as Auto would, and the status names the filter."""
    pods += ["default-profile", "default-profile-back"]
    bench.start(programs.ledger("default-profile", "a", mib=32, pages_s=200))
    before = ask(bench, "default-profile")
    done = bench.checkpoint(
        "default-cut", "default-profile", after="Stop", memory={"way": "PreCopy"}
    )
    (way,) = ways(done)
    assert way.startswith("frozen: no pre-copy, because a seccomp filter of task "), way
    assert "forbids userfaultfd" in way
    assert "forbids userfaultfd" in kube.condition(done, "Captured")["message"]
    bench.restore("default-back", "default-cut", node="b", pod="default-profile-back")
    check(before, ask(bench, "default-profile-back"))


def test_pre_copy_with_a_profile_that_lets_it(bench, pods):
    """A profile of the operator's own is read and asked; the rounds are stored before the stop."""
    pods += ["own-profile", "own-profile-back"]
    for node in ("a", "b"):
        script = f"mkdir -p {PROFILES} && cat > {PROFILES}/torpor-test.json"
        bench.cluster.on(node, ["sh", "-c", script], input_text=json.dumps(PROFILE))
    pod = programs.ledger("own-profile", "a", mib=128, pages_s=200)
    pod["spec"]["securityContext"]["seccompProfile"] = {
        "type": "Localhost",
        "localhostProfile": "torpor-test.json",
    }
    assert pod["spec"]["securityContext"]["runAsUser"] == USER
    bench.start(pod)
    before = ask(bench, "own-profile")
    done = bench.checkpoint("own-cut", "own-profile", after="Stop", memory={"way": "PreCopy"})
    (way,) = ways(done)
    assert way.startswith("pre-copy: "), way
    assert "left to the last stop" not in way
    stored = kube.condition(done, "Stored")["message"]
    ahead = int(stored.split("; ")[1].split()[0])
    assert 2 * ahead > int(done["status"]["sizeBytes"]), stored
    back = bench.restore("own-back", "own-cut", node="b", pod="own-profile-back")
    check(before, ask(bench, "own-profile-back"))
    steps = done["status"]["steps"]
    MOVES.append(
        f"pre-copy of 128 MiB: {way}; stopped until stored {steps['stopped until stored']}, "
        f"away {back['status']['downtime']}"
    )


def test_pause_of_a_redis(bench, pods):
    """Not more than a figure for the summary: what a client waits for, frozen and by a snapshot."""
    pods += ["big-redis", "pinger"]
    bench.start(programs.redis("big-redis", "a"))
    bench.start(programs.clients("pinger", "a"))
    for at in range(0, REDIS_MIB * 256, VALUES_AT_ONCE):
        last = str(at + VALUES_AT_ONCE - 1)
        bench.run("big-redis", "redis-cli", "EVAL", FILL, "0", str(at), last)
    found = {"Frozen": [], "Auto": []}
    with ThreadPoolExecutor(1) as beside:
        for number in range(TRIES):
            for way, figures in found.items():
                ping = beside.submit(
                    bench.run, "pinger", "python3", "-c", PING, bench.address("big-redis"), PINGS_S,
                    container="python",
                )  # fmt: skip
                time.sleep(1)
                name = f"redis-{way.lower()}-{number}"
                done = bench.checkpoint(name, "big-redis", memory={"way": way})
                waited_ms = 1000 * float(ping.result())
                expected = "frozen" if way == "Frozen" else "snapshot"
                assert ways(done)[0].startswith(expected)
                figures.append((waited_ms, done["status"]["pause"], done["status"]["pauseSteps"]))
                bench.kubectl("delete", "checkpoint", name)
    for way, figures in found.items():
        waits = ", ".join(f"{waited:.0f} ms ({pause})" for waited, pause, _ in figures)
        MOVES.append(f"redis of {REDIS_MIB} MiB, {way}: a client waited {waits}; {figures[-1][2]}")
