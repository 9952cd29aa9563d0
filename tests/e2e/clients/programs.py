# SPDX-License-Identifier: Apache-2.0
"""The pods that are moved, one function a program."""

from tests.e2e.clients.pods import Object, command_probe, container, mounts, pod, port_probe

SLEEP = ["sleep", "infinity"]


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
    query = ("/usr/bin/python3", "/srv/service.py", "--query")
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
            livenessProbe=command_probe(*query, failureThreshold=3, periodSeconds=2),
            readinessProbe=port_probe(8080),
        ),
        volumes=["data"],
    )


def postgres(name: str, node: str) -> Object:
    """PostgreSQL with its data on an emptyDir."""
    ready = ("psql", "-h", "/tmp", "-U", "postgres", "-c", "select 1")
    return pod(
        name,
        node,
        container(
            "postgres",
            env=[{"name": "PGDATA", "value": "/data/pg"}],
            volumeMounts=mounts({"data": "/data"}),
            readinessProbe=command_probe(*ready),
        ),
        volumes=["data"],
    )


def clients(name: str, node: str) -> Object:
    """A pod of client programs: redis-cli, psql and Python."""
    images = ("redis", "postgres", "python")
    return pod(name, node, *(container(each, each, command=SLEEP) for each in images))
