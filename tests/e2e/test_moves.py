# SPDX-License-Identifier: Apache-2.0
"""Real programs move between two nodes, and real clients find them as they left them."""

import base64
import json
import time

import pytest

from tests.e2e import kube
from tests.e2e.clients import programs
from tests.e2e.clients.bench import Bench

pytestmark = pytest.mark.e2e
CLIENTS = "clients"


@pytest.fixture(scope="module", autouse=True)
def clients(bench):
    """A pod with client programs, for what asks from outside of the moved pod."""
    bench.start(programs.clients(CLIENTS, "a"))


@pytest.fixture
def moved_pods(bench):
    """Names of pods that a test leaves behind."""
    names = []
    yield names
    bench.forget(*names)


def until(check, timeout_s=30.0):
    """Wait until a check gives something true, and give it."""
    end_s = time.monotonic() + timeout_s
    while True:
        found = check()
        if found or time.monotonic() > end_s:
            assert found, "not in time"
            return found
        time.sleep(0.3)


def exit_code(bench: Bench, pod: str, container: str = "main") -> int:
    """The exit code of a container, when it has ended."""

    def ended():
        for each in bench.get("pod", pod)["status"]["containerStatuses"]:
            if each["name"] == container:
                return each["state"].get("terminated")
        return None

    return until(ended)["exitCode"]


def counter(bench: Bench, pod: str):
    return bench.ask(pod, "/counter", "--query")


def check_counter(before, after):
    """The same process, further on."""
    assert after["identity"] == before["identity"]
    assert after["checksum"] == before["checksum"]
    assert after["counter"] >= before["counter"]
    assert after["intact"]
    assert after["pid"] == 1


def test_static_binary_there_and_back(bench, moved_pods):
    """A restored pod is checkpointed again and returns to its first node."""
    moved_pods += ["counter-back"]
    bench.start(programs.counter("counter", "a"))
    first = counter(bench, "counter")
    bench.move("counter", to="b", name="counter-there")
    second = counter(bench, "counter-there")
    check_counter(first, second)
    lines = bench.kubectl("logs", "counter-there").splitlines()
    counts = [int(line.split()[1]) for line in until(lambda: lines)]
    assert counts == list(range(counts[0], counts[-1] + 1, 100)), "no line twice, none missing"
    assert counts[0] > first["counter"] - 100, "old lines are not repeated"
    bench.move("counter-there", to="a", name="counter-back")
    third = counter(bench, "counter-back")
    check_counter(second, third)
    until(lambda: counter(bench, "counter-back")["counter"] > third["counter"])
    pid = kube.container_pid(bench.cluster, "counter-back", namespace=bench.namespace)
    bench.cluster.on("a", ["kill", "-TERM", str(pid)])
    assert exit_code(bench, "counter-back") == 0


def test_source_runs_on_beside_its_clone(bench, moved_pods):
    """Continue: the source does not notice, and a clone under another name starts from the cut."""
    moved_pods += ["original", "clone"]
    bench.start(programs.counter("original", "a"))
    before = counter(bench, "original")
    uid = bench.get("pod", "original")["metadata"]["uid"]
    bench.move("original", to="b", name="clone", after="Continue")
    source, clone = counter(bench, "original"), counter(bench, "clone")
    check_counter(before, source)
    check_counter(before, clone)
    assert clone["counter"] < source["counter"], "it stood still while it was brought back"
    pod = bench.get("pod", "original")
    assert pod["metadata"]["uid"] == uid
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    assert {each["intact"] for each in (source, clone)} == {True}
    until(lambda: counter(bench, "original")["counter"] > source["counter"])
    until(lambda: counter(bench, "clone")["counter"] > clone["counter"])


def test_redis(bench, moved_pods):
    moved_pods += ["redis-there"]
    bench.start(programs.redis("redis", "a"))

    def ask(pod, *words, host=None):
        if host:
            return bench.run(CLIENTS, "redis-cli", "-h", host, *words, container="redis").strip()
        return bench.run(pod, "redis-cli", *words).strip()

    lua = "return redis.call('incrby', KEYS[1], ARGV[1])"
    digest = ask("redis", "SCRIPT", "LOAD", lua)
    fill = "for i = 1, 20000 do redis.call('set', 'key:' .. i, string.rep(i .. ',', 50)) end"
    ask("redis", "EVAL", fill, "0")
    ask("redis", "SET", "shortlived", "soon gone", "EX", "1000")
    ask("redis", "XADD", "stream", "*", "field", "value")
    assert ask("redis", "EVALSHA", digest, "1", "total", "40") == "40"
    run_id = info(ask("redis", "INFO", "server"))["run_id"]
    sum_before = ask("redis", "DEBUG", "DIGEST") if allows_debug(ask) else ""
    bench.move("redis", to="b", name="redis-there")
    there = bench.address("redis-there")
    assert ask("redis-there", "EVALSHA", digest, "1", "total", "2") == "42"
    assert ask("", "EVALSHA", digest, "1", "total", "1", host=there) == "43"
    assert info(ask("", "INFO", "server", host=there))["run_id"] == run_id
    assert ask("redis-there", "DBSIZE") == "20003"
    assert ask("redis-there", "GET", "key:19999") == "19999," * 50
    assert 900 < int(ask("redis-there", "TTL", "shortlived")) <= 1000
    assert ask("redis-there", "XLEN", "stream") == "1"
    if sum_before:
        ask("redis-there", "SET", "total", "40")
        assert ask("redis-there", "DEBUG", "DIGEST") == sum_before
    ask("", "SHUTDOWN", "NOSAVE", host=there)
    assert exit_code(bench, "redis-there") == 0


def allows_debug(ask) -> bool:
    """Whether DEBUG DIGEST, a checksum of the whole data set, is allowed."""
    return ask("redis", "CONFIG", "GET", "enable-debug-command").endswith("yes")


def info(text: str) -> dict[str, str]:
    """The answer to INFO as pairs."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def test_nginx_with_workers(bench, moved_pods):
    moved_pods += ["nginx-there"]
    bench.start(programs.nginx("nginx", "a"))

    def fetch(pod, path):
        code = "import sys,urllib.request as r; print(r.urlopen(sys.argv[1], timeout=9).read())"
        url = f"http://{bench.address(pod)}:8080{path}"
        return bench.run(CLIENTS, "python3", "-c", code, url, container="python")

    def workers(pod):
        script = "for p in /proc/[0-9]*; do echo $(cat $p/comm) ${p#/proc/}; done"
        lines = bench.run(pod, "sh", "-c", script).splitlines()
        return sorted(line for line in lines if line.startswith("nginx"))

    old = workers("nginx")
    assert len(old) == 3
    assert "torpor" in fetch("nginx", "/index.html")
    bench.move("nginx", to="b", name="nginx-there")
    assert workers("nginx-there") == old
    assert "torpor" in fetch("nginx-there", "/index.html")
    pids = {line.split()[1] for line in old}
    assert fetch("nginx-there", "/worker").split("'")[1].split()[0] in pids
    assert "/worker" in until(lambda: bench.kubectl("logs", "nginx-there"))
    bench.run("nginx-there", "/usr/sbin/nginx", "-s", "quit")
    assert exit_code(bench, "nginx-there") == 0


def test_postgres(bench, moved_pods):
    """Committed rows, a client's open session with its prepared statement, and new writes."""
    moved_pods += ["postgres-there"]
    bench.start(programs.postgres("postgres", "a"))

    def ask(pod, sql):
        return bench.run(pod, "psql", "-h", "/tmp", "-U", "postgres", "-qAtc", sql).strip()

    def say(pod, sql):
        bench.run(pod, "sh", "-c", "cat >/tmp/input", input=sql + "\n")

    ask("postgres", "create table t (n int primary key, s text)")
    ask("postgres", "insert into t select i, md5(i::text) from generate_series(1, 5000) i")
    digest = "select md5(string_agg(n || s, '' order by n)) from t where n <= 5000"
    old = ask("postgres", digest)
    say("postgres", "create temp table mine as select 40 as n;")
    say("postgres", "prepare sum(int) as select 'sum ' || n + $1 from mine; execute sum(1);")
    until(lambda: "sum 41" in bench.read("postgres", "/tmp/output"))
    started = ask("postgres", "select pg_postmaster_start_time()")
    bench.move("postgres", to="b", name="postgres-there")
    assert ask("postgres-there", digest) == old
    assert ask("postgres-there", "select pg_postmaster_start_time()") == started
    say("postgres-there", "execute sum(2);")
    until(lambda: "sum 42" in bench.read("postgres-there", "/tmp/output"))
    ask("postgres-there", "insert into t select i, 'new' from generate_series(5001, 6000) i")
    ask("postgres-there", "checkpoint")
    host = ("-h", bench.address("postgres-there"), "-U", "postgres", "-qAtc")
    count = bench.run(CLIENTS, "psql", *host, "select count(*) from t", container="postgres")
    assert count.strip() == "6000"
    assert ask("postgres-there", "set enable_seqscan = off; select s from t where n = 6000") == (
        "new"
    )


def test_threaded_service_in_its_new_pod(bench, moved_pods):
    """Threads, open and unlinked files, and all that a pod gives its containers."""
    moved_pods += ["service-there"]
    old_pod = bench.start(programs.service("service", "a"))
    before = bench.ask("service", *programs.SERVICE_QUERY)
    bench.run("service", "sh", "-c", "echo kept >/tmp/of-the-container; rm /srv/../etc/motd || :")
    bench.move("service", to="b", name="service-there")
    after = bench.ask("service-there", *programs.SERVICE_QUERY)
    for name in ("identity", "pid", "threads", "ballast", "unlinked", "data"):
        assert after[name] == before[name], name
    assert after["unlinked_is_whole"]
    assert after["log_is_whole"]
    assert all(new >= old for new, old in zip(after["counts"], before["counts"], strict=True))
    later = bench.ask("service-there", *programs.SERVICE_QUERY)
    assert all(new > old for new, old in zip(later["counts"], after["counts"], strict=True))
    assert bench.read("service-there", "/tmp/of-the-container") == "kept\n"
    check_surroundings(bench, "service-there")
    check_spec(old_pod, bench.get("pod", "service-there"))
    check_probes(bench, "service-there")


def check_surroundings(bench: Bench, pod: str) -> None:
    """Hostname, environment and token are those of the new pod."""
    assert bench.run(pod, "hostname").strip() == pod
    environment = bench.run(pod, "env").splitlines()
    assert {"COLOUR=green as grass", "NODE=b", f"HOSTNAME={pod}"} <= set(environment)
    own = bench.run(pod, "sh", "-c", "tr '\\0' '\\n' </proc/1/environ").splitlines()
    assert "COLOUR=green as grass" in own
    token = bench.read(pod, "/run/secrets/kubernetes.io/serviceaccount/token").strip()
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token},
    }
    text = bench.cluster.kubectl("create", "-o", "json", "-f", "-", input=json.dumps(review))
    assert json.loads(text)["status"]["authenticated"] is True
    body = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert claims["kubernetes.io"]["pod"]["name"] == pod


def check_spec(old, new) -> None:
    """What the pod's owner wrote is in the new pod's spec as well."""
    was, now = old["spec"]["containers"][0], new["spec"]["containers"][0]
    for name in ("env", "image", "resources", "securityContext", "livenessProbe", "readinessProbe"):
        assert now[name] == was[name], name
    assert now["startupProbe"]["exec"]["command"] == ["/.torpor/placeholder", "ready"]
    for name in ("securityContext", "serviceAccountName", "restartPolicy"):
        assert new["spec"][name] == old["spec"][name], name
    assert new["metadata"]["labels"]["app"] == "service"
    assert new["status"]["containerStatuses"][0]["restartCount"] == 0


def check_probes(bench: Bench, pod: str) -> None:
    """Liveness and readiness waited for the restore, and do their work after it."""
    events = json.loads(
        bench.kubectl("get", "events", "-o", "json", f"--field-selector=involvedObject.name={pod}")
    )["items"]
    told = [each["message"] for each in events if each["reason"] == "Unhealthy"]
    assert not [text for text in told if not text.startswith("Startup")]

    def ready(status):
        return lambda: kube.condition(bench.get("pod", pod), "Ready")["status"] == status

    bench.run(pod, "touch", programs.UNREADY)
    until(ready("False"))
    bench.run(pod, "rm", programs.UNREADY)
    until(ready("True"))
    bench.run(pod, "touch", programs.DEAD)
    assert exit_code(bench, pod) == 137, "the liveness probe has it killed; it ignores TERM"


def test_two_containers_cut_at_one_instant(bench, moved_pods):
    moved_pods += ["turns-there"]
    bench.start(programs.turns("turns", "a"))

    def turns(pod):
        ping, pong = bench.run(pod, *programs.TURNS_QUERY, container="ping").split()
        return int(ping), int(pong)

    old = until(lambda: [n for n in turns("turns") if n > 1000])
    moved = bench.move("turns", to="b", name="turns-there")
    assert {each["name"] for each in moved.checkpoint["status"]["containers"]} == {"ping", "pong"}
    new = turns("turns-there")
    assert min(new) >= max(old) - 1
    until(lambda: min(turns("turns-there")) > max(new) + 1000)
    assert "broken" not in bench.kubectl("logs", "turns-there", "--all-containers")
    for index, name in enumerate(("ping", "pong")):
        pid = kube.container_pid(bench.cluster, "turns-there", index, bench.namespace)
        bench.cluster.on("b", ["kill", "-TERM", str(pid)])
        assert exit_code(bench, "turns-there", name) == 7
