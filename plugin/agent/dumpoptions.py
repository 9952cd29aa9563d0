# SPDX-License-Identifier: Apache-2.0
"""What the engine is asked to do with a container, from the Checkpoint and the pod."""

from dataclasses import dataclass
from pathlib import Path

from torpor.engine.errors import Error, Refused, Vanished
from torpor.engine.options import (
    After,
    DumpOptions,
    DumpReport,
    Follower,
    MemoryWay,
    PreCopyRules,
    ReadFilter,
    TcpPolicy,
)
from torpor.plugin.agent.locate import Container
from torpor.plugin.api import v1alpha1
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.v1alpha1 import AfterCheckpoint, CheckpointSpec, EstablishedTcp

_ROAD_S = 0.1
"""What the last pages of a pod that stops may take on their way to the store."""
_WAYS = {
    v1alpha1.MemoryWay.AUTO: MemoryWay.AUTO,
    v1alpha1.MemoryWay.FROZEN: MemoryWay.FROZEN,
    v1alpha1.MemoryWay.SNAPSHOT: MemoryWay.SNAPSHOT,
    v1alpha1.MemoryWay.PRE_COPY: MemoryWay.PRECOPY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Seccomp filters: how many a container's init has, and who reads them."""

    installed: int
    read: ReadFilter


def dump_options(
    spec: CheckpointSpec,
    pod: JsonObject,
    container: Container,
    images_dir: Path,
    *,
    filters: Filters,
    left_s: float,
    follower: Follower,
) -> DumpOptions:
    """Options for the tree of a container.

    Raises:
        Refused: its filters may be of a sort that harms, and cannot be read.
    """
    _check_profile(pod, container, filters.read)
    is_stop = spec.after_checkpoint is AfterCheckpoint.STOP
    refuse = spec.tcp.established is EstablishedTcp.REFUSE
    return DumpOptions(
        pid=container.init_pid,
        images_dir=images_dir,
        after=After.STOP if is_stop else After.CONTINUE,
        tcp=TcpPolicy.REFUSE if refuse else TcpPolicy.CLOSE,
        container=True,
        runtime_seccomp_filters=runtime_filters(pod, container.name, filters.installed),
        read_filter=filters.read,
        freezer_cgroups=(container.cgroup,),
        timeout_s=left_s,
        memory=_WAYS[spec.memory.way],
        precopy=_rules(spec, left_s),
        follower=follower,
    )


def not_as_asked(spec: CheckpointSpec, name: str, report: DumpReport) -> tuple[str, ...]:
    """What to tell of a container whose memory was taken in another way than was asked for."""
    asked = _WAYS[spec.memory.way]
    if asked is MemoryWay.AUTO or report.memory_way is asked:
        return ()
    return (f"memory of {name} was taken by {report.memory_way.value}: {report.memory_reason}",)


def _rules(spec: CheckpointSpec, left_s: float) -> PreCopyRules:
    """Of a pod that stops, rounds go to the store, and so does what is left to the stop."""
    most = spec.memory.max_rounds
    if spec.after_checkpoint is not AfterCheckpoint.STOP:
        return PreCopyRules(max_rounds=most)
    return PreCopyRules(max_rounds=most, pause_goal_s=_ROAD_S, max_seconds=left_s / 2)


def runtime_filters(pod: JsonObject, name: str, installed: int) -> int:
    """How many seccomp filters of the init the runtime has put there.

    A profile that the pod names is one filter. Where it names none, kubelet may still have set
    the default one (``seccompDefault``): then an init that has any filter got its first so.
    """
    return 0 if _profile(pod, name) == "Unconfined" else min(1, installed)


def _profile(pod: JsonObject, name: str) -> str:
    """Type of a container's seccomp profile; empty when the pod names none."""
    container = next(each for each in pod["spec"]["containers"] if each["name"] == name)
    own = container.get("securityContext") or {}
    if own.get("privileged"):
        return "Unconfined"
    of_pod = pod["spec"].get("securityContext") or {}
    profile = own.get("seccompProfile") or of_pod.get("seccompProfile") or {}
    return str(profile.get("type", ""))


def _check_profile(pod: JsonObject, container: Container, read_filter: ReadFilter) -> None:
    """A profile of the operator's own may kill for what a dump asks of a task: it is read."""
    if _profile(pod, container.name) != "Localhost":
        return
    try:
        read_filter(container.init_pid, 0)
    except Vanished:
        raise
    except Error as error:
        raise Refused(
            "its seccomp profile cannot be read, and may harm it when a dump asks it anything",
            subject=f"container {container.name}",
            cause=str(error),
            remedy="install the chart with agent.readSeccompFilters, or use RuntimeDefault",
        ) from error
