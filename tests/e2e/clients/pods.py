# SPDX-License-Identifier: Apache-2.0
"""Pods that the Pod Security standard `restricted` admits."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.e2e.images.build import name_of

Object = dict[str, Any]
USER = 1000


def container(image: str, name: str = "main", **settings: Any) -> Object:
    """A container of a test image; `settings` are fields of its spec."""
    return {
        "name": name,
        "image": name_of(image),
        "imagePullPolicy": "Never",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        **settings,
    }


def pod(
    name: str, node: str, *containers: Object, volumes: Sequence[str] = (), **spec: Any
) -> Object:
    """A pod on a node; `volumes` are emptyDirs, `spec` are fields of its spec."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": list(containers),
            "volumes": [{"name": each, "emptyDir": {}} for each in volumes],
            **spec,
        },
    }


def mounts(places: Mapping[str, str]) -> list[Object]:
    """volumeMounts: volume to path."""
    return [{"name": volume, "mountPath": path} for volume, path in places.items()]


def command_probe(*argv: str, **settings: Any) -> Object:
    """A probe that runs a command each second."""
    return {"exec": {"command": list(argv)}, "periodSeconds": 1, "timeoutSeconds": 5} | settings


def port_probe(port: int, **settings: Any) -> Object:
    """A probe that connects each second."""
    return {"tcpSocket": {"port": port}, "periodSeconds": 1, "timeoutSeconds": 5} | settings
