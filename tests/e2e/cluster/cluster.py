# SPDX-License-Identifier: Apache-2.0
"""The cluster as tests and the demo use it."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deploy.image import cache
from deploy.image.process import BuildError, require_root, run
from deploy.image.progress import Progress
from tests.e2e.cluster import bringup, cgroups, gobuild, teardown, units
from tests.e2e.cluster.layout import (
    CONTROL_PLANE,
    DEFAULT_DIRECTORY,
    Layout,
    State,
    check_directory,
    check_releases,
)
from tests.e2e.cluster.node import ENVIRONMENT, Node

DEFAULT_RELEASES = {"a": "trixie", "b": "trixie"}


class Cluster:
    """A real Kubernetes cluster on this machine.

    Its network is a namespace of its own, so programs that talk to its API server are started by
    `run_in_lan` (or by `kubectl` and `helm`, which do so).

    Args:
        directory: where its disks, keys and logs are; two directories are two clusters.
        progress: where `up` and `down` say what they do.
    """

    def __init__(
        self, directory: Path = DEFAULT_DIRECTORY, progress: Progress | None = None
    ) -> None:
        self.layout = Layout(Path(os.path.abspath(directory)))
        self._progress = progress or Progress()

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; the server in it is reached through `run_in_lan`."""
        return self.layout.kubeconfig

    @property
    def shared(self) -> Path:
        """The directory that every node sees as /cluster/shared."""
        return self.layout.shared

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes, in the order of their indices."""
        return list(self._state().releases)

    @property
    def is_up(self) -> bool:
        """Whether `up` got to its end and `down` was not called since."""
        state = self.layout.state()
        return state is not None and state.complete

    def up(
        self, releases: Mapping[str, str] = DEFAULT_RELEASES, images: Sequence[Path] = ()
    ) -> None:
        """Brings the cluster up, with what that needs; if it is up, starts what of it is not.

        Args:
            releases: node name to the Debian release that it runs (trixie or sid).
            images: OCI archives to import on every node, in addition to the pause image.

        Raises:
            BuildError: with what failed and what to do.
        """
        require_root("bringing a cluster up")
        check_releases(releases)
        check_directory(self.layout.directory)
        with cache.locked(self.layout.prefix + "lock"):
            state = self.layout.state()
            if state and state.complete:
                self._complete(state, releases, images)
                return
            teardown.remove(self.layout)
            self._bring_up(releases, images)

    def down(self) -> None:
        """Takes the cluster down in whatever state it is, and checks that nothing is left."""
        teardown.down(self.layout, self._progress)

    def kubectl(self, *arguments: str, input: str | None = None, timeout_s: float = 300) -> str:
        """Runs kubectl as administrator and returns its output.

        Raises:
            BuildError: kubectl failed; its output is the cause.
        """
        return self._client("kubectl", arguments, input, timeout_s)

    def helm(self, *arguments: str, timeout_s: float = 300) -> str:
        """Runs helm as administrator and returns its output."""
        return self._client("helm", arguments, None, timeout_s)

    def run_in_lan(
        self, argv: Sequence[str | Path], *, input_text: str | None = None, timeout_s: float = 300
    ) -> str:
        """Runs a program of this machine where the API server and the pods can be reached."""
        return run(
            self.lan_command(argv),
            input_text=input_text,
            timeout_s=timeout_s,
            env=self.client_environment(),
        )

    def lan_command(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line for `run_in_lan`, for a caller that starts it in its own way."""
        return self.node(CONTROL_PLANE).enter_network([str(word) for word in argv])

    def client_environment(self) -> dict[str, str]:
        """The caller's environment, with kubectl, helm and their settings for this cluster."""
        home = self.layout.directory / "home"
        path = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        return {
            **os.environ,
            "PATH": f"{self._state().programs}:{path}",
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(home / "kubectl"),
            "HELM_CACHE_HOME": str(home / "helm-cache"),
            "HELM_CONFIG_HOME": str(home / "helm-config"),
            "HELM_DATA_HOME": str(home / "helm-data"),
        }

    def on(
        self, name: str, command: str | Sequence[str], *, input_text: str | None = None,
        timeout_s: float = 300,
    ) -> str:  # fmt: skip
        """Runs a command on a node, or on `lan`, and returns its output.

        Args:
            name: the node.
            command: a list of words, or text for bash.
            input_text: its standard input.
            timeout_s: how long it may take.
        """
        argv = ["bash", "-ec", command] if isinstance(command, str) else list(command)
        entered = self.node(name).enter(argv)
        return run(
            entered, what=f"on node {name}", input_text=input_text, timeout_s=timeout_s,
            env=ENVIRONMENT,
        )  # fmt: skip

    def popen_on(self, name: str, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Starts a command on a node and leaves its pipes to the caller."""
        return subprocess.Popen(
            self.node(name).enter(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip

    def node(self, name: str) -> Node:
        """The node of that name, or `lan`, the control plane's."""
        return self.layout.node(name, self._state())

    def machine_pids(self, name: str) -> set[int]:
        """The machine's pids of everything that runs on a node, its pods included."""
        return cgroups.pids(self.node(name).group)

    def kill_node(self, name: str) -> None:
        """Cuts a node's power: all of its processes are gone when this returns."""
        self.node(name).kill()

    def start_node(self, name: str) -> None:
        """Switches a node on; returns when its programs have been started."""
        state = self._state()
        if self.node(name).pid() is None:
            if name == CONTROL_PLANE:
                bringup.start_control_plane(self.layout, state)
            else:
                bringup.start_node(self.layout, state, name)
        self.start_units(name)

    def start_units(self, name: str) -> None:
        """Starts those of a node's programs that do not run."""
        node, state = self.node(name), self._state()
        if name == CONTROL_PLANE:
            bringup.start_units(
                self.layout, node, units.of_control_plane(), ("etcd", "kube-apiserver")
            )
            bringup.await_server(self.layout, self.kubectl)
            bringup.start_units(
                self.layout, node, units.of_control_plane(), units.UNITS_OF_CONTROL_PLANE
            )
        else:
            all_units = units.of_node(name, list(state.releases).index(name))
            bringup.start_units(self.layout, node, all_units, units.UNITS_OF_NODE)

    def await_ready(self) -> None:
        """Waits until the server answers, every node is Ready and pods can be created."""
        bringup.await_server(self.layout, self.kubectl)
        bringup.await_nodes(self.layout, self._state(), self.kubectl)

    def import_image(self, *archives: Path, nodes: Sequence[str] | None = None) -> None:
        """Imports OCI archives on the nodes (all of them unless named)."""
        names = self.nodes if nodes is None else nodes
        bringup.import_images([self.node(name) for name in names], archives)

    def log(self, name: str, unit: str) -> Path:
        """The log file of a program of a node, such as `kubelet`."""
        return self.layout.log(name, unit)

    def _client(
        self, program: str, arguments: Sequence[str], text: str | None, timeout_s: float
    ) -> str:
        argv = [str(Path(self._state().programs) / program), *arguments]
        what = " ".join([program, *arguments[:3]])
        return run(
            self.lan_command(argv), what=what, input_text=text, timeout_s=timeout_s,
            env=self.client_environment(),
        )  # fmt: skip

    def _state(self) -> State:
        state = self.layout.state()
        if state is None or not state.programs:
            raise BuildError(
                f"no cluster in {self.layout.directory}", "", "bring it up: make cluster-up"
            )
        return state

    def _complete(self, state: State, releases: Mapping[str, str], images: Sequence[Path]) -> None:
        """An `up` of a cluster that is up: starts nodes and programs that do not run."""
        if dict(releases) != state.releases:
            has = ",".join(f"{name}={release}" for name, release in state.releases.items())
            raise BuildError(f"the cluster is up with other nodes: {has}", "", "run down first")
        for name in (CONTROL_PLANE, *state.releases):
            self.start_node(name)
        self.import_image(*images)
        self.await_ready()
        self._progress.say("already up")

    def _bring_up(self, releases: Mapping[str, str], images: Sequence[Path]) -> None:
        from tests.e2e.images.build import archive

        say = self._progress.say
        state = bringup.prepare(releases, self._progress)
        pause = archive("pause", self._progress)
        self.layout.directory.mkdir(parents=True, exist_ok=True)
        self.layout.write_state(state)
        state = bringup.with_controllers(state)
        self.layout.write_state(state)
        bringup.write_files(self.layout, state)
        say("certificates and configuration written")
        bringup.start_control_plane(self.layout, state)
        for name in state.releases:
            bringup.start_node(self.layout, state, name)
        say("control plane and nodes started")
        self.import_image(pause, *images)
        say(f"{1 + len(images)} image(s) imported on {len(state.releases)} nodes")
        bringup.await_server(self.layout, self.kubectl)
        say(f"API server {gobuild.kubernetes_version()} ready")
        for name in (CONTROL_PLANE, *state.releases):
            self.start_units(name)
        self.await_ready()
        self.layout.write_state(replace(state, complete=True))
        say(f"nodes Ready: {', '.join(f'{n} ({r})' for n, r in state.releases.items())}")
