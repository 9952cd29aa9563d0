# SPDX-License-Identifier: Apache-2.0
"""The steps of `up`: what they need is made (and cached), then the nodes and programs start."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from deploy.image import debian
from deploy.image.process import BuildError, install_missing, run
from deploy.image.progress import Progress
from tests.e2e.cluster import cgroups, config, gobuild, network, pki, units
from tests.e2e.cluster.layout import CONTROL_PLANE, Layout, State
from tests.e2e.cluster.node import ENVIRONMENT, Node

STABLE = "trixie"
NODE_PACKAGES = (
    "ca-certificates", "conntrack", "containerd", "containernetworking-plugins", "etcd-client",
    "etcd-server", "iproute2", "iptables", "mount", "nftables", "procps", "runc",
)  # fmt: skip
MACHINE_PROGRAMS = {"openssl": "openssl", "ip": "iproute2", "mmdebstrap": "mmdebstrap"}
SERVER_TIMEOUT_S = 90.0
NODES_TIMEOUT_S = 120.0
CONTAINERD_TIMEOUT_S = 30.0


def prepare(releases: Mapping[str, str], progress: Progress) -> State:
    """Makes what is not in the cache, and says where everything is.

    Programs and roots are made side by side: compiling keeps the processors busy, and making a
    root mostly waits for the network.
    """
    installed = install_missing(MACHINE_PROGRAMS, {debian.KEYRING: "debian-archive-keyring"})
    if installed:
        progress.say(f"installed on this machine: {', '.join(installed)}")
    wanted = list(dict.fromkeys([STABLE, *releases.values()]))
    with ThreadPoolExecutor() as pool:
        programs = pool.submit(gobuild.programs, progress)
        roots = pool.submit(lambda: {name: str(_root(name, progress)) for name in wanted})
        return State(releases=dict(releases), roots=roots.result(), programs=str(programs.result()))


def write_files(layout: Layout, state: State) -> None:
    """Certificates, kubeconfig files and configuration of every node."""
    serving = [
        pki.Identity(
            name=f"serve-{name}",
            subject=pki.node_subject(name),
            addresses=f"IP:{network.address(index)},DNS:{name}",
        )
        for index, name in enumerate(state.releases)
    ]
    server = pki.Identity(
        name="apiserver",
        subject="/CN=kube-apiserver",
        addresses=f"IP:{network.CONTROL_PLANE},IP:{network.FIRST_SERVICE},IP:127.0.0.1,"
        "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc",
    )
    clients = [pki.Identity(name=name, subject=text) for name, text in pki.CLIENTS.items()]
    pki.issue(layout.pki, [server, *serving, *clients])
    layout.shared.mkdir()
    _write_control_plane(layout)
    for index, name in enumerate(state.releases):
        _write_node(layout, state, name, index)


def start_control_plane(layout: Layout, state: State) -> None:
    """Starts the control plane's node and its programs, to the point where the server answers."""
    node = layout.node(CONTROL_PLANE, state)
    node.start()
    network.bridge(node, len(state.releases))
    for index, name in enumerate(state.releases):
        other = layout.node(name, state)
        if other.pid():
            network.connect(node, other, index, len(state.releases))
    start_units(layout, node, units.of_control_plane(), ("etcd", "kube-apiserver"))


def start_node(layout: Layout, state: State, name: str) -> None:
    """Starts a node with its network and containerd."""
    node = layout.node(name, state)
    node.start()
    index = list(state.releases).index(name)
    network.connect(layout.node(CONTROL_PLANE, state), node, index, len(state.releases))
    start_units(layout, node, units.of_node(name, index), ("containerd",))
    await_containerd(layout, node)


def start_units(
    layout: Layout, node: Node, all_units: Mapping[str, list[str]], names: Sequence[str]
) -> None:
    """Starts those of a node's programs that are named and do not run."""
    running = running_units(node)
    for name in names:
        if name not in running:
            node.daemon(name, all_units[name], layout.log(node.name, name))


def running_units(node: Node) -> set[str]:
    """The names of the programs that run on a node, by what they were called as."""
    found = set()
    for pid in cgroups.pids(node.group):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0", 1)[0]
        except OSError:
            continue
        found.add(Path(command.decode(errors="replace")).name)
    return found


def await_containerd(layout: Layout, node: Node) -> None:
    """Waits until containerd answers."""
    wait_for(
        lambda: _succeeds(lambda: run(node.enter(["ctr", "version"]), env=ENVIRONMENT)),
        f"containerd of node {node.name} to answer",
        CONTAINERD_TIMEOUT_S,
        layout.log(node.name, "containerd"),
    )


def await_server(layout: Layout, kubectl: Callable[..., str]) -> None:
    """Waits until the API server is ready."""
    wait_for(
        lambda: _succeeds(lambda: kubectl("get", "--raw", "/readyz")),
        "the API server to get ready",
        SERVER_TIMEOUT_S,
        layout.log(CONTROL_PLANE, "kube-apiserver"),
    )


def await_nodes(layout: Layout, state: State, kubectl: Callable[..., str]) -> None:
    """Waits until every node is Ready, and pods can be created."""
    jsonpath = (
        "jsonpath={range .items[*]}{.metadata.name}="
        '{.status.conditions[?(@.type=="Ready")].status} {end}'
    )

    def ready() -> bool:
        words = kubectl("get", "nodes", "-o", jsonpath).split()
        return {f"{name}=True" for name in state.releases} <= set(words)

    last = list(state.releases)[-1]
    log = layout.log(last, "kubelet")
    wait_for(lambda: _true(ready), "the nodes to be Ready", NODES_TIMEOUT_S, log)
    account = ("get", "serviceaccount", "default", "--namespace", "default")
    wait_for(lambda: _succeeds(lambda: kubectl(*account)), "the default service account", 30.0, log)


def import_images(nodes: Sequence[Node], archives: Sequence[Path]) -> None:
    """Imports OCI archives into the nodes' containerd, all nodes at once."""

    def one(node: Node) -> None:
        for archive in archives:
            with archive.open("rb") as content:
                command = ["ctr", "--namespace", "k8s.io", "images", "import", "-"]
                run(
                    node.enter(command),
                    what=f"importing {archive.name} on node {node.name}",
                    stdin_file=content,
                    env=ENVIRONMENT,
                )

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, nodes))


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float, log: Path) -> None:
    """Waits until something is so.

    Raises:
        BuildError: it was not so in time; with the end of the log that should say why.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            lines = log.read_text(errors="replace").splitlines()[-10:] if log.exists() else []
            cause = "\n  ".join(lines)
            raise BuildError(f"waited {timeout_s:.0f} s for {what}", cause, f"see {log.parent}")
        time.sleep(0.2)


def with_controllers(state: State) -> State:
    """The state with the cgroup controllers that had to be switched on."""
    return replace(state, controllers=cgroups.enable_wanted())


def _root(release: str, progress: Progress) -> Path:
    from deploy.image import cache

    if cache.entry_path(f"root-{release}", debian.root_inputs(release, NODE_PACKAGES)).exists():
        return debian.root(release, NODE_PACKAGES)
    with progress.long(f"making a Debian {release} root", f"Debian {release} root made"):
        return debian.root(release, NODE_PACKAGES)


def _write_control_plane(layout: Layout) -> None:
    etc = layout.etc(CONTROL_PLANE)
    etc.mkdir(parents=True)
    shutil.copytree(layout.pki, etc / "pki")
    for client in ("manager", "scheduler"):
        text = pki.kubeconfig(layout.pki, client, network.SERVER)
        (etc / f"{client}.kubeconfig").write_text(text)
    layout.kubeconfig.touch(mode=0o600)
    layout.kubeconfig.write_text(pki.kubeconfig(layout.pki, "admin", network.SERVER))


def _write_node(layout: Layout, state: State, name: str, index: int) -> None:
    etc = layout.etc(name)
    (etc / "pki").mkdir(parents=True, mode=0o700)
    for source, target in (
        ("ca.crt", "ca.crt"),
        *((f"serve-{name}.{x}", f"serve.{x}") for x in ("crt", "key")),
    ):
        shutil.copy(layout.pki / source, etc / "pki" / target)
    kubelet = pki.kubeconfig(layout.pki, f"serve-{name}", network.SERVER)
    (etc / "kubelet.kubeconfig").write_text(kubelet)
    (etc / "proxy.kubeconfig").write_text(pki.kubeconfig(layout.pki, "proxy", network.SERVER))
    (etc / "kubelet.json").write_text(config.kubelet())
    (etc / "containerd.toml").write_text(
        config.containerd(_containerd_version(layout, state, name))
    )
    (etc / "cni").mkdir()
    (etc / "cni" / "10-pods.conflist").write_text(config.pod_network(index))


def _containerd_version(layout: Layout, state: State, name: str) -> str:
    """The version of containerd in the node's root, from dpkg's records."""
    status = (layout.node(name, state).root / "var/lib/dpkg/status").read_text()
    for paragraph in status.split("\n\n"):
        if paragraph.startswith("Package: containerd\n"):
            return paragraph.split("\nVersion: ")[1].split("\n")[0].split(":")[-1]
    raise BuildError(f"no containerd in the root of node {name}")


def _succeeds(action: Callable[[], object]) -> bool:
    try:
        action()
    except BuildError:
        return False
    return True


def _true(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except BuildError:
        return False
