# SPDX-License-Identifier: Apache-2.0
"""A node made of files: /proc, cgroups, overlays as plain directories, an engine that records."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from torpor.engine.options import After, DumpReport, MemoryWay, Progress, RestoreReport
from torpor.plugin.agent.checkpoint import reference
from torpor.plugin.agent.context import Context
from torpor.plugin.agent.jobs import Jobs
from torpor.plugin.agent.metrics import Metrics
from torpor.plugin.agent.procview import NodeView
from torpor.plugin.api import codec
from torpor.plugin.api.conditions import condition
from torpor.plugin.api.v1alpha1 import Checkpoint
from torpor.plugin.k8s.fake_api import FakeApi
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS, RESTORES
from torpor.plugin.store.volume import VolumeStore

NS = "ns"
NODE = "node-a"


def mount_id(path: Path) -> int:
    fd = os.open(path, os.O_PATH)
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    return int(text.split("mnt_id:")[1].split()[0])


@dataclass
class FakeNode:
    """Containers as directories; a task's root is a link to a plain directory."""

    root: Path
    view: NodeView = field(init=False)

    def __post_init__(self) -> None:
        for name in ("proc", "cg", "host"):
            (self.root / name).mkdir(parents=True)
        self.view = NodeView(
            proc=self.root / "proc", cgroups=self.root / "cg", host_root=self.root / "host"
        )

    def container(self, cid: str, pid: int, *, name: str = "app") -> Path:
        """A running container of one task; gives its root directory."""
        merged = self.root / f"merged-{pid}"
        for each in (merged / ".torpor", merged / "data", self.root / "host" / f"upper-{pid}"):
            each.mkdir(parents=True)
        path = f"/kubepods/podu/{cid}"
        self.task(pid, 50, 1, f"6:freezer:{path}\n0::/\n", name=name)
        (self.root / "proc" / str(pid) / "root").symlink_to(merged)
        ours = mount_id(merged)
        (self.root / "proc" / str(pid) / "mountinfo").write_text(
            f"1 0 0:1 / / rw - overlay overlay rw,upperdir=/upper-{pid}\n"
            f"{ours} 1 8:1 /v /data rw - ext4 /dev/sda rw\n"
            f"{ours} 1 8:1 /t /.torpor rw - ext4 /dev/sda rw\n"
        )
        self.cgroup(f"freezer{path}", [pid])
        return merged

    def task(self, pid, parent, ns, cgroup, *, name="app", state="S (sleeping)", threads=1):
        path = self.root / "proc" / str(pid)
        path.mkdir()
        (path / "cgroup").write_text(cgroup)
        self.status(pid, parent, ns, name, state, threads)

    def status(self, pid, parent=50, ns=1, name="app", state="S (sleeping)", threads=1):
        (self.root / "proc" / str(pid) / "status").write_text(
            f"Name:\t{name}\nState:\t{state}\nPPid:\t{parent}\nNSpid:\t{pid}\t{ns}\n"
            f"Threads:\t{threads}\nSeccomp_filters:\t1\n"
        )

    def cgroup(self, path: str, pids) -> Path:
        directory = self.root / "cg" / path
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        return directory

    def change(self, pid: int, path: str, text: str) -> None:
        """A file that the container wrote: in the upper layer and in the merged view."""
        for base in (self.root / "host" / f"upper-{pid}", self.root / f"merged-{pid}"):
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            (base / path).write_text(text)

    def end(self, pid: int) -> None:
        shutil.rmtree(self.root / "proc" / str(pid))


@dataclass
class RecordedEngine:
    """Does what the engine would leave on disk, and remembers what it was asked."""

    node: FakeNode
    calls: list[str] = field(default_factory=list)
    trees: list = field(default_factory=list)
    takeovers: list = field(default_factory=list)
    ended: bool = False
    before = staticmethod(lambda: None)
    errors: list[BaseException] = field(default_factory=list)
    taken_away: Path | None = None
    pages: bytes = b"p" * 4096

    def dump(self, trees, *, while_frozen=None, commit=None, progress=None):
        self.calls.append("dump")
        self.trees = list(trees)
        self.before()
        for tree in trees:
            tree.images_dir.mkdir(parents=True)
            self.write_pages(tree, "pages-1.img")
            (tree.images_dir / "core-1.img").write_bytes(b"core of %d" % tree.pid)
            progress(Progress(phase="memory", done=1, total=2))
        if while_frozen:
            while_frozen()
        self.calls.append("thaw" if trees[0].after is After.CONTINUE else "held")
        if self.taken_away:
            shutil.rmtree(self.taken_away)
            self.taken_away = None
        if self.errors:
            raise self.errors.pop(0)
        reports = tuple(
            DumpReport(
                images_dir=tree.images_dir, tasks=1, threads=1, descriptors=3, memory_bytes=4096,
                image_bytes=5000, frozen_s=0.0123, total_s=0.1, phases_s={},
                pause_s={"stop": 0.0003, "threads": 0.012},
                memory_way=MemoryWay.SNAPSHOT, memory_reason="the tasks run on",
            )
            for tree in trees
        )  # fmt: skip
        if commit:
            commit(reports)
        self.ended = trees[0].after is After.STOP
        return reports

    def write_pages(self, tree, name):
        """In two parts, each of which is told."""
        tree.follower.begin()
        with (tree.images_dir / name).open("xb+") as file:
            for part in (self.pages[: len(self.pages) // 2], self.pages[len(self.pages) // 2 :]):
                file.write(part)
                file.flush()
                tree.follower.grown(name, file.fileno(), file.tell())
            tree.follower.grown(name, file.fileno(), file.tell(), whole=True)
        if tree.memory is MemoryWay.PRECOPY:
            tree.follower.catch_up()

    def takeover(self, options, *, progress=None):
        self.calls.append(f"takeover {options.pid}")
        self.takeovers.append(options)
        if self.errors and isinstance(self.errors[0], BaseException):
            raise self.errors.pop(0)
        self.node.status(options.pid, name="app")
        return RestoreReport(
            pid=options.pid, tasks=2, threads=2, memory_bytes=1, total_s=0.01, phases_s={}
        )


@dataclass
class World:
    """API server, node, engine, store."""

    api: FakeApi
    node: FakeNode
    engine: RecordedEngine
    context: Context
    tmp: Path

    def pod(self, name="web", containers=("app",), **changes):
        body = {
            "metadata": {"namespace": NS, "name": name, "uid": f"uid-{name}", "labels": {"a": "b"}},
            "spec": {
                "containers": [
                    {"name": each, "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
                    for each in containers
                ],
                "volumes": [{"name": "data", "emptyDir": {}}],
                "nodeName": NODE,
            },
            "status": {"containerStatuses": [], "phase": "Running"},
        }
        for key, value in changes.items():
            body["metadata"][key] = value
        return self.api.put(PODS, body)

    def run_container(self, pod, name: str, pid: int, *, comm="app", image_id="sha256:1") -> Path:
        cid = f"{pid:064x}"
        merged = self.node.container(cid, pid, name=comm)
        pod["status"]["containerStatuses"].append(
            {"name": name, "containerID": f"containerd://{cid}", "state": {"running": {}},
             "image": "redis:7", "imageID": image_id}
        )  # fmt: skip
        self.api.put(PODS, pod)
        return merged

    def checkpoint(self, name="cp", pod="web", **spec):
        return self.api.put(
            CHECKPOINTS,
            {
                "metadata": {"namespace": NS, "name": name},
                "spec": {"podRef": {"name": pod}, "timeout": "20s"} | spec,
                "status": {
                    "nodeName": NODE, "podUID": f"uid-{pod}", "storeName": "main",
                    "conditions": [codec.encode(condition("Assigned", True, "Assigned"))],
                },
            },
        )  # fmt: skip

    def restore(self, name="re", checkpoint="cp", pod="web-2", **spec):
        return self.api.put(
            RESTORES,
            {
                "metadata": {"namespace": NS, "name": name, "uid": f"uid-{name}"},
                "spec": {"checkpointRef": {"name": checkpoint}, "timeout": "20s"} | spec,
                "status": {
                    "nodeName": NODE, "podName": pod, "podUID": f"uid-{pod}",
                    "conditions": [codec.encode(condition("Assigned", True, "Assigned"))],
                },
            },
        )  # fmt: skip

    def take(self, **spec):
        """A Checkpoint of a pod with one container and one changed file, and who takes it."""
        pod = self.pod()
        merged = self.run_container(pod, "app", 100)
        (merged / "data" / "volume-file").write_text("in the volume")
        self.node.change(100, "etc/conf", "changed")
        return self.checkpoint(**spec), Jobs(context=self.context)

    def stored(self, name="cp"):
        """What the store has of a Checkpoint, verified."""
        item = self.api.take(CHECKPOINTS, NS, name)
        return self.context.stores["main"].verify(
            reference(codec.decode(Checkpoint, item)), digest=item["status"]["manifestDigest"]
        )

    def conditions(self, kind, name):
        item = self.api.take(kind, NS, name)
        found = {each["type"]: each for each in item["status"].get("conditions", [])}
        return item["status"], found


@pytest.fixture
def machine(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


@pytest.fixture
def world(tmp_path: Path):
    node = FakeNode(tmp_path / "node")
    engine = RecordedEngine(node)
    (tmp_path / "store").mkdir()
    with FakeApi() as api:
        context = Context(
            node_name=NODE, client=api.client(), engine=engine, view=node.view,
            staging=tmp_path / "staging", stores={"main": VolumeStore(tmp_path / "store")},
            choose_pid=lambda pid, want: None, read_filter=lambda tid, index: (bytes(8), 0),
            metrics=Metrics(), poll_s=0.02,
            exec_patience_s=0.2, start_patience_s=0.2,
        )  # fmt: skip
        yield World(api, node, engine, context, tmp_path)
