# SPDX-License-Identifier: Apache-2.0
"""One node with the newest containerd, for the tests of this folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.image.progress import Progress
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.hook.node import DIRECTORY, NAMESPACE, NODE, wait_for
from tests.e2e.images.build import archive

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """One node with the newest containerd."""
    made = Cluster(DIRECTORY, Progress())
    made.up({NODE: "sid"}, [archive("distroless", Progress())])
    for crd in sorted((ROOT / "crds").glob("*.yaml")):
        made.kubectl("apply", "-f", "-", input=crd.read_text())
    made.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    restricted = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        },
    }
    made.kubectl("apply", "-f", "-", input=json.dumps(restricted))
    wait_for(lambda: made.kubectl("get", "sa", "-n", NAMESPACE, "-o", "name"))
    yield made
    made.down()
