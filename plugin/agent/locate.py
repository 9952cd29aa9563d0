# SPDX-License-Identifier: Apache-2.0
"""From a pod object to its containers on this node: init, tasks, freezer, mounts, volumes.

Facts: the container's id is a component of its cgroup path (bare with the cgroupfs driver,
``cri-containerd-ID.scope`` or ``crio-ID.scope`` with systemd's; ``crio-conmon-ID.scope``
is the monitor's, not the container's). A command of ``kubectl exec`` or of an exec probe
is in the same cgroup and pid namespace, but its parent is the shim, not the init.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.engine.errors import Refused, Vanished
from torpor.plugin.agent.procview import Mount, NodeView, Task, descendants

PLACEHOLDER_MOUNT = "/.torpor"
SHM_MOUNT = "/dev/shm"  # noqa: S108 - of the pod, not ours
SHM_KEY = "dev.shm"
_ID = re.compile(r"^[a-z0-9.+-]+://([0-9a-f]{12,128})$")
_DEEPEST = 12

PodObject = Mapping[str, Any]


class StrangerInside(Refused):
    """A task is in the container that is not its init's: it may soon be gone."""

    @property
    def reason(self) -> str:
        """As for any refusal."""
        return "Refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePart:
    """An emptyDir, or the part of it that a subPath mounts; reached at ``mount_path``.

    The pod's shared memory directory is one too, by a name that no volume can have.
    """

    name: str
    sub_path: str
    mount_path: str

    @property
    def key(self) -> str:
        """Unique in the pod, the same in its next life, and no path."""
        if not self.sub_path:
            return self.name
        return f"{self.name}.{hashlib.sha256(self.sub_path.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A running container of the pod, found on this node."""

    name: str
    container_id: str
    image: str
    image_id: str
    init_pid: int
    pids: tuple[int, ...]
    cgroup: Path
    mounts: tuple[Mount, ...]
    volumes: tuple[VolumePart, ...]

    @property
    def mount_points(self) -> tuple[str, ...]:
        """Where the runtime mounted something over the root file system."""
        return tuple(mount.mount_point for mount in self.mounts if mount.mount_point != "/")

    @property
    def root_mount(self) -> Mount:
        """The root file system; the last one that covers ``/`` counts."""
        return [mount for mount in self.mounts if mount.mount_point == "/"][-1]


class Tolerance:
    """Which tasks may be in a container although its init did not start them: none."""

    def allowed(self, cid: str) -> frozenset[int] | None:
        """Their pids; None for any."""
        del cid
        return frozenset()


class TolerateAll(Tolerance):
    """Any: the container holds a placeholder, which kubelet probes."""

    def allowed(self, cid: str) -> None:
        """Any."""
        del cid


@dataclass(frozen=True, slots=True)
class TolerateCallers(Tolerance):
    """Those which only wait for the checkpoint that they asked for (a preStop command)."""

    pids_in: Callable[[str], frozenset[int]]

    def allowed(self, cid: str) -> frozenset[int]:
        """Whoever waits in that container now."""
        return self.pids_in(cid)


def locate(
    pod: PodObject,
    names: Sequence[str],
    view: NodeView,
    *,
    tolerance: Tolerance = Tolerance(),  # noqa: B008 - has no state
) -> tuple[Container, ...]:
    """Find the named containers (all when empty); each emptyDir belongs to one of them.

    So does ``/dev/shm``, which the runtime makes once for a pod.

    Raises:
        Refused: a container that cannot be taken; says why.
        Vanished: a container is not running (any more).
    """
    _check_pod(pod)
    spec: Sequence[Mapping[str, Any]] = pod["spec"]["containers"]
    known = [str(each["name"]) for each in spec]
    for name in names:
        if name not in known:
            raise Refused(
                "the pod has no such container",
                subject=f"{_subject(pod)}/{name}",
                cause=f"it has {', '.join(known)}",
                remedy="name a container of the pod, or none to take all",
            )
    taken = [each for each in spec if not names or each["name"] in names]
    volumes = _volumes(pod, taken)
    return tuple(_container(pod, str(each["name"]), volumes, view, tolerance) for each in taken)


def foreign_tasks(
    container: Container,
    view: NodeView,
    tolerance: Tolerance = Tolerance(),  # noqa: B008 - has no state
) -> tuple[Task, ...]:
    """Tasks in the container's cgroup that its init is no ancestor of.

    Cheap enough for the pause: it looks at the container's own tasks only.
    """
    tasks = view.tasks(_pids_in(container.cgroup))
    ours = descendants(tasks, container.init_pid)
    return _strangers(tasks, ours, tolerance.allowed(container.container_id))


def container_id(pod: PodObject, name: str) -> str:
    """Id of a running container.

    Raises:
        Vanished: it is not running.
    """
    status = status_of(pod, name)
    state = status.get("state") or {}
    match = _ID.match(str(status.get("containerID") or ""))
    if "running" not in state or match is None:
        where = next(iter(state), "not created")
        why = (state.get(where) or {}).get("reason") or "no reason given"
        raise Vanished(
            "the container is not running",
            subject=f"{_subject(pod)}/{name}",
            cause=f"it is {where} ({why})",
            remedy="wait until it runs, then try again",
        )
    return match[1]


def pod_ips(pod: PodObject) -> list[str]:
    """The pod's own addresses, of either family."""
    found = pod.get("status", {}).get("podIPs") or ()
    return [str(one["ip"]) for one in found if one.get("ip")]


def address_map(old: Sequence[str], new: Sequence[str]) -> dict[str, str]:
    """Old address to the new one of the same family."""
    return {
        was: now
        for v6 in (False, True)
        for was, now in zip(
            [a for a in old if (":" in a) is v6],
            [a for a in new if (":" in a) is v6],
            strict=False,
        )
    }


def status_of(pod: PodObject, name: str) -> Mapping[str, Any]:
    """The container's entry in the pod's status; empty if there is none yet."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status.get("name") == name:
            found: Mapping[str, Any] = status
            return found
    return {}


def freezer_cgroup(cid: str, pid: int, paths: Mapping[str, str], view: NodeView) -> Path:
    """Directory of the container's cgroup in the hierarchy that can freeze it.

    Raises:
        Refused: there is none, which says how the agent is to be mounted.
    """
    for controller, tree in (("freezer", view.cgroups / "freezer"), ("", _unified(view.cgroups))):
        part = _container_part(paths.get(controller, ""), cid)
        if part is None or not tree.is_dir():
            continue
        direct = tree / part.lstrip("/")
        if "/.." not in part and _holds(direct, pid):
            return direct
        found = _search(tree, cid, pid)
        if found is not None:
            return found
    raise Refused(
        "the container's freezer cgroup was not found",
        subject=f"container {cid[:12]}, process {pid}",
        cause=f"cgroup paths are {dict(paths)}, looked below {view.cgroups}",
        remedy="mount the node's /sys/fs/cgroup into the agent and set TORPOR_CGROUP_ROOT to it",
    )


def _container(
    pod: PodObject,
    name: str,
    volumes: Mapping[str, tuple[VolumePart, ...]],
    view: NodeView,
    tolerance: Tolerance,
) -> Container:
    cid = container_id(pod, name)
    subject = f"{_subject(pod)}/{name}"
    inside = {
        pid: paths
        for pid, paths in view.tasks_named(cid).items()
        if any(_container_part(path, cid) is not None for path in paths.values())
    }
    tasks = view.tasks(inside)
    init = _init(tasks, subject)
    ours = descendants(tasks, init.pid)
    strangers = _strangers(tasks, ours, tolerance.allowed(cid))
    if strangers:
        raise _refuse_strangers(strangers, subject)
    status = status_of(pod, name)
    mounts = view.mounts(init.pid)
    has_shm = any(mount.mount_point == SHM_MOUNT for mount in mounts)
    return Container(
        name=name,
        container_id=cid,
        image=str(status.get("image") or ""),
        image_id=str(status.get("imageID") or ""),
        init_pid=init.pid,
        pids=tuple(sorted(ours)),
        cgroup=freezer_cgroup(cid, init.pid, inside[init.pid], view),
        mounts=mounts,
        volumes=tuple(p for p in volumes.get(name, ()) if p.name != SHM_KEY or has_shm),
    )


def _check_pod(pod: PodObject) -> None:
    spec = pod["spec"]
    for key, why in (
        ("hostNetwork", "its sockets belong to the node"),
        ("hostPID", "its processes are the node's"),
        ("hostIPC", "its IPC objects belong to the node"),
        ("shareProcessNamespace", "its containers have no init of their own"),
    ):
        if spec.get(key):
            raise Refused(
                f"a pod with {key} cannot be checkpointed",
                subject=_subject(pod),
                cause=why,
                remedy=f"run the workload without {key}",
            )
    if spec.get("hostUsers") is False:
        raise Refused(
            "a pod with its own user namespace cannot be checkpointed",
            subject=_subject(pod),
            cause="owners of its files are other numbers on another node",
            remedy="run the workload without hostUsers: false",
        )
    for each in spec.get("initContainers") or ():
        if each.get("restartPolicy") == "Always":
            raise Refused(
                "a pod with a sidecar init container cannot be checkpointed",
                subject=f"{_subject(pod)}/{each.get('name')}",
                cause="init containers are not started in a restored pod",
                remedy="make the sidecar an ordinary container",
            )


def _volumes(
    pod: PodObject, containers: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[VolumePart, ...]]:
    """Each emptyDir once: by its whole where one container mounts it so, else by its parts."""
    empty = {volume["name"] for volume in pod["spec"].get("volumes") or () if "emptyDir" in volume}
    parts: dict[tuple[str, str], tuple[str, VolumePart]] = {}
    for container in containers:
        for mount in container.get("volumeMounts") or ():
            path = str(mount["mountPath"]).rstrip("/") or "/"
            if mount["name"] not in empty or path == PLACEHOLDER_MOUNT:
                continue
            if mount.get("subPathExpr"):
                raise Refused(
                    "an emptyDir mounted by subPathExpr cannot be taken",
                    subject=f"{_subject(pod)}/{container['name']}, volume {mount['name']}",
                    remedy="mount it by subPath or as a whole",
                )
            key = (str(mount["name"]), str(mount.get("subPath") or "").strip("/"))
            part = VolumePart(name=key[0], sub_path=key[1], mount_path=path)
            parts.setdefault(key, (str(container["name"]), part))
    whole = {name for name, sub_path in parts if not sub_path}
    found = _shared_memory(containers)
    for (name, sub_path), (container_name, part) in parts.items():
        if not sub_path or name not in whole:
            found[container_name] = (*found.get(container_name, ()), part)
    return found


def _shared_memory(
    containers: Sequence[Mapping[str, Any]],
) -> dict[str, tuple[VolumePart, ...]]:
    """The pod's ``/dev/shm``, by the first container over which it mounts nothing of its own."""
    for container in containers:
        own = {str(mount["mountPath"]).rstrip("/") for mount in container.get("volumeMounts") or ()}
        if own.isdisjoint((SHM_MOUNT, "/dev")):
            part = VolumePart(name=SHM_KEY, sub_path="", mount_path=SHM_MOUNT)
            return {str(container["name"]): (part,)}
    return {}


def _init(tasks: Mapping[int, Task], subject: str) -> Task:
    found = [task for task in tasks.values() if task.ns_pids[-1] == 1]
    if not found:
        raise Vanished(
            "the container has no running init",
            subject=subject,
            cause=f"{len(tasks)} tasks are in its cgroup, none is pid 1 of its namespace",
            remedy="wait until it runs; a pod that shares its process namespace is not supported",
        )
    # A pid namespace made inside the container has a pid 1 too: the outermost is ours.
    return min(found, key=lambda task: (len(task.ns_pids), task.pid))


def _strangers(
    tasks: Mapping[int, Task], ours: frozenset[int], allowed: frozenset[int] | None
) -> tuple[Task, ...]:
    """Tasks that are neither the init's nor below one that is allowed."""
    if allowed is None:
        return ()
    for pid in allowed:
        ours |= _family(tasks, pid)
    return tuple(task for pid, task in tasks.items() if pid not in ours and not task.has_ended)


def _family(tasks: Mapping[int, Task], pid: int) -> frozenset[int]:
    """A task, what it started, and what started it inside the container (``sh -c hook``)."""
    top = pid
    while top in tasks and tasks[top].parent_pid in tasks:
        top = tasks[top].parent_pid
    return descendants(tasks, top)


def _refuse_strangers(strangers: Sequence[Task], subject: str) -> StrangerInside:
    shown = ", ".join(f"{task.pid} ({task.name})" for task in strangers[:5])
    return StrangerInside(
        "somebody runs a command in the container",
        subject=subject,
        cause=f"process {shown} is in it but was not started by its init",
        remedy="end `kubectl exec` sessions and wait for exec probes, then try again",
    )


def _container_part(path: str, cid: str) -> str | None:
    """``path`` up to the component that is the container's own."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if cid in part and "conmon" not in part:
            return "/".join(parts[: index + 1])
    return None


def _unified(root: Path) -> Path:
    return root if (root / "cgroup.controllers").exists() else root / "unified"


def _holds(cgroup: Path, pid: int) -> bool:
    """Whether the task is in the cgroup or in one below it."""
    return pid in _pids_in(cgroup)


def _pids_in(cgroup: Path) -> set[int]:
    found: set[int] = set()
    for root, _, files in os.walk(cgroup):
        if "cgroup.procs" in files:
            with suppress(OSError):  # it may go while we look
                found.update(map(int, Path(root, "cgroup.procs").read_text().split()))
    return found


def _search(tree: Path, cid: str, pid: int) -> Path | None:
    """Look for the container's directory by name, when its path is not seen from here."""
    for root, directories, _ in os.walk(tree):
        for name in directories:
            if _container_part(name, cid) is not None and _holds(Path(root, name), pid):
                return Path(root, name)
        if len(Path(root).relative_to(tree).parts) >= _DEEPEST:
            directories.clear()
    return None


def _subject(pod: PodObject) -> str:
    metadata = pod.get("metadata") or {}
    return f"pod {metadata.get('namespace')}/{metadata.get('name')}"
