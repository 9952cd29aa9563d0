# SPDX-License-Identifier: Apache-2.0
"""The pods that are moved, one function a program."""

from pathlib import Path
from typing import Any

from tests.e2e.clients.pods import Object, command_probe, container, mounts, pod, port_probe

SLEEP = ["sleep", "infinity"]
TURNS = Path(__file__).with_name("turns.py")
TURNS_QUERY = ("/usr/bin/python3", "-c", TURNS.read_text(), "show")
LEDGER = ("/usr/bin/python3", "-c", Path(__file__).with_name("ledger.py").read_text())
LEDGER_QUERY = (*LEDGER, "show")
SERVICE_QUERY = ("/usr/bin/python3", "/srv/service.py", "--query")
DEAD, UNREADY = "/data/dead", "/data/unready"
_SESSION = """
mkfifo /tmp/input
exec 3<>/tmp/input
(
    until psql -h /tmp -U postgres -qc 'select 1' >/dev/null 2>&1; do sleep 0.1; done
    exec psql -h /tmp -U postgres -qAt <&3 >/tmp/output 2>&1
) &
exec 3>&-
exec /usr/local/bin/postgres.sh
"""


def counter(name: str, node: str) -> Object:
    """One static binary in an image that has nothing else."""
    return pod(name, node, container("distroless"))


def redis(name: str, node: str) -> Object:
    """A redis whose data is in its memory only."""
    return pod(
        name,
        node,
        container("redis", args=["--save", "", "--port", "6379"], readinessProbe=port_probe(6379)),
    )


def nginx(name: str, node: str) -> Object:
    """A master and two workers; what they write is in the container's own file system."""
    return pod(name, node, container("nginx", readinessProbe=port_probe(8080)))


def service(name: str, node: str) -> Object:
    """A threaded Python service, with everything that a pod's spec can give a container."""
    alive = f"test ! -e {DEAD} && exec {' '.join(SERVICE_QUERY)}"
    return pod(
        name,
        node,
        container(
            "python",
            env=[
                {"name": "DATA", "value": "/data"},
                {"name": "COLOUR", "value": "green as grass"},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            ],
            resources={"requests": {"cpu": "50m"}, "limits": {"memory": "256Mi", "cpu": "1"}},
            volumeMounts=mounts({"data": "/data"}),
            startupProbe=port_probe(8080, failureThreshold=60),
            livenessProbe=command_probe("sh", "-c", alive, failureThreshold=2),
            readinessProbe=command_probe("test", "!", "-e", UNREADY, failureThreshold=1),
        ),
        volumes=["data"],
    )


def postgres(name: str, node: str) -> Object:
    """PostgreSQL with its data on an emptyDir, and a client's session in the same container.

    The session reads what is written to /tmp/input and answers in /tmp/output.
    """
    ready = ("psql", "-h", "/tmp", "-U", "postgres", "-c", "select 1")
    return pod(
        name,
        node,
        container(
            "postgres",
            command=["sh", "-c", _SESSION],
            env=[{"name": "PGDATA", "value": "/data/pg"}],
            volumeMounts=mounts({"data": "/data"}),
            readinessProbe=command_probe(*ready),
        ),
        volumes=["data"],
    )


def turns(name: str, node: str) -> Object:
    """Two containers that take turns by a mapped file."""
    script = ["/usr/bin/python3", "-c", TURNS.read_text()]
    roles = [
        container("python", role, command=[*script, role], volumeMounts=mounts({"v": "/shared"}))
        for role in ("ping", "pong")
    ]
    return pod(name, node, *roles, volumes=["v"])


def ledger(name: str, node: str, *, mib: int, pages_s: int, **settings: Any) -> Object:
    """So much memory, of which so many pages a second are written."""
    command = [*LEDGER, "serve", str(mib), str(pages_s)]
    probe = port_probe(8080)
    made = container("python", command=command, readinessProbe=probe, **settings)
    return pod(name, node, made)


def clients(name: str, node: str) -> Object:
    """A pod of client programs: redis-cli, psql and Python."""
    images = ("redis", "postgres", "python")
    return pod(name, node, *(container(each, each, command=SLEEP) for each in images))
