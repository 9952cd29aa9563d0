# SPDX-License-Identifier: Apache-2.0
"""Every test image runs as a restricted pod, and its service answers a real client."""

import json
import time
from pathlib import Path

import pytest

from deploy.image.process import BuildError
from deploy.image.progress import Progress
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.images.build import IMAGES, archive, name_of

pytestmark = pytest.mark.e2e
# Beside the cluster of the other tests, which may be up at the same time.
DIRECTORY = Path("/var/lib/torpor-cluster-images")
NAMESPACE = "restricted"
GET_WORKER = r"exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET /worker HTTP/1.0\r\n\r\n' >&3; cat <&3"
# What a client runs in the container, and what its answer must hold.
CLIENTS = {
    "redis": (["redis-cli", "set", "key", "value"], "OK"),
    "nginx": (["bash", "-c", GET_WORKER], "200 OK"),
    "python": (["python3", "/srv/service.py", "--query"], '"log_is_whole": true'),
    "postgres": (["psql", "-h", "/tmp", "-U", "postgres", "-Atc", "select 6 * 7"], "42"),
    "distroless": (["/counter", "--query"], '"intact": true'),
}


def test_every_image_has_a_client():
    assert set(CLIENTS) | {"pause"} == set(IMAGES)


@pytest.fixture(scope="module")
def cluster():
    found = Cluster(DIRECTORY)
    found.down()
    found.up({"a": "trixie"}, [archive(image, Progress()) for image in CLIENTS])
    found.kubectl("create", "namespace", NAMESPACE)
    label = "pod-security.kubernetes.io/enforce=restricted"
    found.kubectl("label", "namespace", NAMESPACE, label)
    yield found
    found.down()


@pytest.mark.parametrize("image", sorted(CLIENTS))
def test_runs_restricted_and_answers(cluster, image):
    cluster.kubectl("apply", "-f", "-", input=json.dumps(pod(image)))
    command, expected = CLIENTS[image]
    deadline = time.monotonic() + 60
    answer = ""
    while expected not in answer:
        assert time.monotonic() < deadline, cluster.kubectl("logs", "-n", NAMESPACE, image)
        try:
            answer = cluster.kubectl("exec", "-n", NAMESPACE, image, "--", *command, timeout_s=20)
        except BuildError as not_yet:
            answer = not_yet.cause
        time.sleep(0.5)


def pod(image):
    """The pod of a test image as the tests run it: nothing allowed that restricted forbids."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": image, "namespace": NAMESPACE},
        "spec": {
            "securityContext": {
                "runAsNonRoot": True,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": name_of(image),
                    "imagePullPolicy": "Never",
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }
            ],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    }
