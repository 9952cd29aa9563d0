# SPDX-License-Identifier: Apache-2.0
"""Memory is in the store before a pod is stopped, and the pod comes back from its rounds."""

import pytest

from tests.e2e import kube
from tests.e2e.clients import programs
from tests.e2e.clients.bench import Bench

pytestmark = pytest.mark.e2e
KEYS = 16384
FILL = (
    "local t = {} for k = 1, 64 do t[k] = tostring(math.random()) end local b = table.concat(t) "
    "for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do "
    "redis.call('set', 'key:' .. i, b .. i .. b) end"
)
WRITE = (
    "math.randomseed(tonumber(ARGV[1])) for i = 1, 10 do "
    "redis.call('append', 'key:' .. math.random(0, 16383), ARGV[1] .. ';') end "
    "return redis.call('incr', 'turns')"
)
WRITER = (
    'i=0; while i=$((i + 1)); do redis-cli EVAL "{script}" 0 $i > /tmp/answer || exit; '
    "sleep 0.02; done"
)


@pytest.fixture
def unconfined(bench):
    """A namespace whose pods may do without a filter: it would forbid userfaultfd."""
    name = "unconfined"
    kube.apply(bench.cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield Bench(cluster=bench.cluster, namespace=name)
    bench.cluster.kubectl("delete", "namespace", name, "--wait=false")


def redis(name):
    pod = programs.redis(name, "a")
    for spec in (pod["spec"], *pod["spec"]["containers"]):
        spec.get("securityContext", {}).pop("seccompProfile", None)
    return pod


def test_rounds_are_stored_before_the_stop(unconfined):
    """A redis that is written to all the time: it is moved whole, and most of it went ahead."""
    bench = unconfined
    bench.start(redis("busy"))
    for at in range(0, KEYS, 4096):
        bench.run("busy", "redis-cli", "EVAL", FILL, "0", str(at), str(at + 4095))
    bench.run("busy", "redis-cli", "set", "turns", "0")
    writer = WRITER.format(script=WRITE)
    address = bench.address("busy")
    bench.start(redis("writer"))
    command = writer.replace("redis-cli ", f"redis-cli -h {address} ")
    bench.run("writer", "sh", "-c", f"({command}) > /dev/null 2>&1 < /dev/null &")
    done = bench.checkpoint("ahead", "busy", after="Stop", memory={"way": "PreCopy"})
    status = done["status"]
    assert status["containers"][0]["memoryWay"].startswith("pre-copy")
    (stored,) = (c["message"] for c in status["conditions"] if c["type"] == "Stored")
    ahead = int(stored.split("; ")[1].split()[0])
    assert 2 * ahead > int(status["sizeBytes"]), stored
    assert {"prepare memory", "stopped until stored"} <= status["steps"].keys()
    back = bench.restore("back", "ahead", node="b", pod="there")
    assert {"fetch", "takeover"} <= back["status"]["steps"].keys()
    assert bench.run("there", "redis-cli", "DBSIZE").strip() == str(KEYS + 1)
    turns = int(bench.run("there", "redis-cli", "GET", "turns"))
    assert turns > 0
    whole = "local n = 0 for i = 0, 16383 do local v = redis.call('get', 'key:' .. i) "
    whole += "for w in string.gmatch(v, ';') do n = n + 1 end end return n"
    assert int(bench.run("there", "redis-cli", "EVAL", whole, "0")) == 10 * turns, (
        "each write, once"
    )
