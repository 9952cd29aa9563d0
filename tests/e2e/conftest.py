# SPDX-License-Identifier: Apache-2.0
"""A cluster with torpor installed by its chart; each move in it crosses a runtime's version."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.image.build import build_image
from deploy.image.progress import Progress
from tests.e2e import kube
from tests.e2e.clients.bench import MOVES, NAMESPACE, Bench
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.images.build import archive

DIRECTORY = Path("/var/lib/torpor-e2e")
RELEASES = {"a": "sid", "b": "trixie"}
IMAGES = ("distroless", "nginx", "postgres", "python", "redis")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """The cluster and the namespace where the tests' pods live, which is `restricted`."""
    progress = Progress()
    product = build_image(kube.ROOT / "Dockerfile", kube.ROOT, kube.IMAGE, progress)
    made = Cluster(DIRECTORY, progress)
    made.down()
    try:
        made.up(RELEASES, [product, *(archive(name, progress) for name in IMAGES)])
        kube.install(made)
        restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
        namespace = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": restricted},
        }
        kube.apply(made, namespace)
        yield Bench(cluster=made)
    finally:
        made.down()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what each move took."""
    if MOVES:
        terminalreporter.section("moves")
    for line in MOVES:
        terminalreporter.write_line(line)
