# SPDX-License-Identifier: Apache-2.0
"""The command line of the cluster."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from deploy.image.process import BuildError
from deploy.image.progress import Progress
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.layout import CONTROL_PLANE, DEFAULT_DIRECTORY
from tests.e2e.cluster.node import ENVIRONMENT

DESCRIPTION = """A real Kubernetes cluster on this machine: a control plane and nodes, each in
namespaces of its own. Nothing of the machine changes but /var/lib/torpor-cluster and control
groups named torpor-*; `down` removes both."""
INTERRUPTED = 130
USAGE = """\
The cluster is up. Commands (prefix: {tool}):
  kubectl get pods -A        kubectl as administrator
  helm list                  helm as administrator
  lan bash                   a shell of this machine in the cluster's network, KUBECONFIG set
  in {first} ctr -n k8s.io c ls    a command on a node, or on `lan`, the control plane
  import IMAGE.tar           an OCI archive onto every node
  kill {last}                     cut a node's power        start-node {last}   switch it on again
  status                     what runs                 down           take it down
Shared between the nodes: /cluster/shared (here {shared})
Logs: {logs}
kubeconfig: {kubeconfig} (the server answers inside `lan` only)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool and returns its exit status."""
    options = parser().parse_args(arguments)
    cluster = Cluster(options.dir, Progress())
    try:
        return int(VERBS[options.verb](cluster, options) or 0)
    except BuildError as failure:
        print(f"cluster: {failure}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = None
        return 0


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(prog="cluster", description=DESCRIPTION)
    top.add_argument(
        "--dir", type=Path, default=DEFAULT_DIRECTORY, help="the cluster's directory (%(default)s)"
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    up = verbs.add_parser("up", help="bring it up; makes and caches what is missing")
    up.add_argument("--nodes", type=_names, default=["a", "b"], help="names of the nodes (a,b)")
    up.add_argument(
        "--node-root", type=_pairs, default={}, metavar="NODE=RELEASE,...",
        help="Debian release that a node runs: trixie (default) or sid",
    )  # fmt: skip
    up.add_argument(
        "--images", type=_names, default=[], metavar="IMAGE,...",
        help="OCI archives, or names of test images, to import",
    )  # fmt: skip
    verbs.add_parser("down", help="take it down and check that nothing is left")
    verbs.add_parser("status", help="what runs, and how to use it")
    for name, text in (("kubectl", "kubectl"), ("helm", "helm"), ("lan", "a command here")):
        sub = verbs.add_parser(
            name, help=f"{text} in the cluster's network", add_help=False,
            prefix_chars="\0",  # `kubectl -n shop ...`: what follows is not ours
        )  # fmt: skip
        sub.add_argument("argv", nargs=argparse.REMAINDER)
    inside = verbs.add_parser("in", help="a command on a node")
    inside.add_argument("node")
    inside.add_argument("argv", nargs=argparse.REMAINDER)
    for name, text in (("kill", "cut a node's power"), ("start-node", "switch a node on")):
        verbs.add_parser(name, help=text).add_argument("node")
    imports = verbs.add_parser("import", help="import OCI archives on every node")
    imports.add_argument("archives", nargs="+")
    return top


def _up(cluster: Cluster, options: argparse.Namespace) -> None:
    signal.signal(signal.SIGINT, _interrupted)
    if unknown := set(options.node_root) - set(options.nodes):
        raise BuildError(f"--node-root names {', '.join(sorted(unknown))}, which --nodes does not")
    releases = {name: options.node_root.get(name, "trixie") for name in options.nodes}
    cluster.up(releases, _archives(options.images))
    print(_usage(cluster), end="")


def _down(cluster: Cluster, _: argparse.Namespace) -> None:
    cluster.down()


def _status(cluster: Cluster, _: argparse.Namespace) -> int:
    if not cluster.is_up:
        print(f"no cluster is up in {cluster.layout.directory}")
        return 1
    for name in (CONTROL_PLANE, *cluster.nodes):
        pid = cluster.node(name).pid()
        count = len(cluster.machine_pids(name))
        print(f"{name:12} {f'pid {pid}, {count} processes' if pid else 'no power'}")
    if cluster.node(CONTROL_PLANE).pid():
        print(cluster.kubectl("get", "nodes", "-o", "wide"), end="")
    print(_usage(cluster), end="")
    return 0


def _client(cluster: Cluster, options: argparse.Namespace) -> NoReturn:
    program = [] if options.verb == "lan" else [options.verb]
    command = cluster.lan_command([*program, *(options.argv or ["bash"] * (not program))])
    _become(command, cluster.client_environment())


def _inside(cluster: Cluster, options: argparse.Namespace) -> NoReturn:
    argv = options.argv or ["bash"]
    if len(argv) == 1:
        argv = ["bash", "-c", argv[0]]
    terminal = {"TERM": os.environ.get("TERM", "dumb")}
    _become(cluster.node(options.node).enter(argv), {**ENVIRONMENT, **terminal})


def _kill(cluster: Cluster, options: argparse.Namespace) -> None:
    cluster.kill_node(options.node)


def _start_node(cluster: Cluster, options: argparse.Namespace) -> None:
    cluster.start_node(options.node)


def _import(cluster: Cluster, options: argparse.Namespace) -> None:
    cluster.import_image(*_archives(options.archives))


VERBS = {
    "up": _up,
    "down": _down,
    "status": _status,
    "kubectl": _client,
    "helm": _client,
    "lan": _client,
    "in": _inside,
    "kill": _kill,
    "start-node": _start_node,
    "import": _import,
}


def _become(command: list[str], env: dict[str, str]) -> NoReturn:
    """Replaces this program by the command, which so gets the terminal and its signals."""
    os.execvpe(command[0], command, env)


def _interrupted(*_: object) -> NoReturn:
    """Ends at once: what is being built ends with us, and nothing waits for it."""
    print("cluster: interrupted; `down` removes what is there", file=sys.stderr)
    os._exit(INTERRUPTED)


def _archives(names: Sequence[str]) -> list[Path]:
    """The archives: paths as they are, other words as names of test images, built if need be."""
    from tests.e2e.images.build import IMAGES, archive

    wanted = [*IMAGES] if list(names) == ["all"] else names
    found = []
    for name in wanted:
        if name in IMAGES:
            found.append(archive(name, Progress()))
        elif Path(name).is_file():
            found.append(Path(name))
        else:
            raise BuildError(
                f"{name} is neither a file nor a test image",
                "",
                f"test images: {', '.join(IMAGES)}",
            )
    return found


def _usage(cluster: Cluster) -> str:
    tool = "python3 tests/e2e/cluster"
    if cluster.layout.directory != DEFAULT_DIRECTORY:
        tool += f" --dir {cluster.layout.directory}"
    return USAGE.format(
        tool=tool,
        first=cluster.nodes[0],
        last=cluster.nodes[-1],
        shared=cluster.shared,
        logs=cluster.layout.directory / "log",
        kubeconfig=cluster.kubeconfig,
    )


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _pairs(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in _names(text)]
    if not all(name and value for name, _, value in pairs):
        raise argparse.ArgumentTypeError("expected NODE=RELEASE")
    return {name: value for name, _, value in pairs}
