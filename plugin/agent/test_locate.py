# SPDX-License-Identifier: Apache-2.0
"""Finding containers in recorded shapes of /proc and of cgroup trees."""

import pytest

from torpor.engine.errors import Refused, Vanished
from torpor.plugin.agent.locate import TolerateAll, TolerateCallers, foreign_tasks, locate
from torpor.plugin.agent.procview import parse_mount

CID = "3f" * 32
SIDE = "4e" * 32
MOUNTINFO = """\
910 800 0:120 / / rw,relatime master:300 - overlay overlay rw,lowerdir=/s/1/fs,upperdir=/var/lib/c/5/fs,workdir=/var/lib/c/5/work
911 910 0:121 / /proc rw,nosuid - proc proc rw
912 910 8:1 /var/lib/kubelet/pods/u/etc-hosts /etc/hosts rw - ext4 /dev/sda1 rw
913 910 8:1 /var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/data /data\\040dir rw - ext4 /dev/sda1 rw
"""  # noqa: E501


@pytest.fixture(autouse=True)
def _mountinfo(machine):
    """Every task that a test makes has these mounts."""
    plain = machine.task

    def task(pid, *args, **kwargs):
        plain(pid, *args, **kwargs)
        (machine.root / "proc" / str(pid) / "mountinfo").write_text(MOUNTINFO)

    machine.task = task


def v1(path: str) -> str:
    return f"12:freezer:{path}\n3:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::/\n"


def pod(**spec):
    containers = [
        {"name": "app", "volumeMounts": [{"name": "data", "mountPath": "/data dir"}]},
        {"name": "side", "volumeMounts": [{"name": "data", "mountPath": "/d"}]},
    ]
    return {
        "metadata": {"namespace": "ns", "name": "p", "uid": "u"},
        "spec": {"containers": containers[:1], "volumes": [{"name": "data", "emptyDir": {}}]}
        | ({"containers": containers} if spec.pop("two", False) else {})
        | spec,
        "status": {
            "containerStatuses": [
                {
                    "name": "app",
                    "containerID": f"containerd://{CID}",
                    "state": {"running": {}},
                    "image": "redis:7",
                    "imageID": "sha256:12",
                },
                {"name": "side", "containerID": f"containerd://{SIDE}", "state": {"running": {}}},
            ]
        },
    }


def test_v1(machine):
    path = f"/kubepods/burstable/podu/{CID}"
    for pid, parent, ns in ((100, 50, 1), (101, 100, 7), (102, 101, 8)):
        machine.task(pid, parent, ns, v1(path))
    machine.task(50, 1, 50, v1("/system.slice/containerd.service"), name="shim")
    directory = machine.cgroup(f"freezer{path}", [100, 101, 102])
    (found,) = locate(pod(), [], machine.view)
    assert (found.init_pid, found.pids) == (100, (100, 101, 102))
    assert found.cgroup == directory
    assert found.image == "redis:7"
    assert found.root_mount.option("upperdir") == "/var/lib/c/5/fs"
    assert found.mount_points == ("/proc", "/etc/hosts", "/data dir")
    assert [part.key for part in found.volumes] == ["data"]
    assert foreign_tasks(found, machine.view) == ()


def test_v2_systemd_scope_with_conmon_and_nested_cgroup(machine):
    slice_ = "/kubepods.slice/kubepods-podu.slice"
    machine.task(90, 1, 90, f"0::{slice_}/crio-conmon-{CID}.scope\n", name="conmon")
    machine.task(100, 90, 1, f"0::{slice_}/crio-{CID}.scope/container\n")
    (machine.root / "cg" / "cgroup.controllers").write_text("cpu\n")
    top = machine.cgroup(f"{slice_.lstrip('/')}/crio-{CID}.scope", [])
    machine.cgroup(f"{slice_.lstrip('/')}/crio-{CID}.scope/container", [100])
    (found,) = locate(pod(), ["app"], machine.view)
    assert found.cgroup == top
    assert found.pids == (100,)


def test_hybrid_takes_the_v1_freezer(machine):
    path = f"/kubepods/podu/{CID}"
    machine.task(100, 50, 1, v1(path))
    machine.cgroup(f"unified{path}", [100])
    directory = machine.cgroup(f"freezer{path}", [100])
    assert locate(pod(), [], machine.view)[0].cgroup == directory


def test_path_of_another_cgroup_namespace_is_searched(machine):
    machine.task(100, 50, 1, f"0::/../../podu/cri-containerd-{CID}.scope\n")
    (machine.root / "cg" / "cgroup.controllers").write_text("cpu\n")
    directory = machine.cgroup(f"kubepods.slice/podu/cri-containerd-{CID}.scope", [100])
    assert locate(pod(), [], machine.view)[0].cgroup == directory


def test_no_cgroup_tree(machine):
    machine.task(100, 50, 1, v1(f"/kubepods/podu/{CID}"))
    with pytest.raises(Refused, match="freezer cgroup") as caught:
        locate(pod(), [], machine.view)
    assert "TORPOR_CGROUP_ROOT" in caught.value.remedy


def test_exec_in_the_container_is_refused(machine):
    path = f"/kubepods/podu/{CID}"
    machine.task(100, 50, 1, v1(path))
    machine.task(105, 50, 9, v1(path), name="bash")
    machine.task(106, 100, 10, v1(path), name="gone", state="Z (zombie)")
    machine.cgroup(f"freezer{path}", [100, 105])
    with pytest.raises(Refused, match="runs a command") as caught:
        locate(pod(), [], machine.view)
    assert "105 (bash)" in caught.value.cause
    (found,) = locate(pod(), [], machine.view, tolerance=TolerateAll())
    assert [task.pid for task in foreign_tasks(found, machine.view)] == [105]


def test_a_command_whose_main_thread_has_ended_is_a_stranger(machine):
    path = f"/kubepods/podu/{CID}"
    machine.task(100, 50, 1, v1(path))
    machine.task(105, 50, 9, v1(path), name="gone", state="Z (zombie)")
    machine.cgroup(f"freezer{path}", [100, 105])
    locate(pod(), [], machine.view)
    machine.task(106, 50, 10, v1(path), name="odd", state="Z (zombie)", threads=2)
    with pytest.raises(Refused, match="runs a command") as caught:
        locate(pod(), [], machine.view)
    assert "106 (odd)" in caught.value.cause


def test_a_command_that_waits_for_its_checkpoint_is_no_stranger(machine):
    """preStop: ``sh -c "torpor-hook ..."`` and nothing else besides."""
    path = f"/kubepods/podu/{CID}"
    machine.task(100, 50, 1, v1(path))
    machine.task(105, 50, 9, v1(path), name="sh")
    machine.task(106, 105, 10, v1(path), name="torpor-hook")
    machine.cgroup(f"freezer{path}", [100, 105, 106])
    waiting = TolerateCallers({CID: frozenset({106})}.__getitem__)
    (found,) = locate(pod(), [], machine.view, tolerance=waiting)
    assert found.pids == (100,)
    assert foreign_tasks(found, machine.view, waiting) == ()
    machine.task(107, 50, 11, v1(path), name="bash")
    with pytest.raises(Refused, match="runs a command") as caught:
        locate(pod(), [], machine.view, tolerance=waiting)
    assert "107 (bash)" in caught.value.cause
    assert "105" not in caught.value.cause


def test_pid_namespace_inside_the_container(machine):
    path = f"/kubepods/podu/{CID}"
    machine.task(100, 50, 1, v1(path))
    machine.task(110, 100, "20\t1", v1(path))
    machine.cgroup(f"freezer{path}", [100, 110])
    assert locate(pod(), [], machine.view)[0].init_pid == 100


def test_two_containers_share_a_volume_once(machine):
    for pid, cid in ((100, CID), (200, SIDE)):
        machine.task(pid, 50, 1, v1(f"/kubepods/podu/{cid}"))
        machine.cgroup(f"freezer/kubepods/podu/{cid}", [pid])
    app, side = locate(pod(two=True), [], machine.view)
    assert [part.mount_path for part in app.volumes] == ["/data dir"]
    assert side.volumes == ()
    (alone,) = locate(pod(two=True), ["side"], machine.view)
    assert [part.mount_path for part in alone.volumes] == ["/d"]


def test_shared_memory_of_the_pod_is_taken_once(machine):
    for pid, cid in ((100, CID), (200, SIDE)):
        machine.task(pid, 50, 1, v1(f"/kubepods/podu/{cid}"))
        machine.cgroup(f"freezer/kubepods/podu/{cid}", [pid])
        with (machine.root / "proc" / str(pid) / "mountinfo").open("a") as file:
            file.write("914 910 0:139 / /dev/shm rw - tmpfs shm rw\n")

    def keys(subject):
        return [[part.key for part in each.volumes] for each in locate(subject, [], machine.view)]

    assert keys(pod(two=True)) == [["dev.shm", "data"], []]
    own = pod(two=True)
    own["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = "/dev/shm"
    assert keys(own) == [["data"], ["dev.shm"]]


def test_sub_paths(machine):
    machine.task(100, 50, 1, v1(f"/kubepods/podu/{CID}"))
    machine.cgroup(f"freezer/kubepods/podu/{CID}", [100])
    mounts = [
        {"name": "data", "mountPath": "/a", "subPath": "x/y"},
        {"name": "data", "mountPath": "/b", "subPath": "x/y"},
        {"name": "data", "mountPath": "/c", "subPath": "z"},
        {"name": "config", "mountPath": "/etc/app"},
        {"name": "torpor-app", "mountPath": "/.torpor"},
    ]
    volumes = [
        {"name": "data", "emptyDir": {}},
        {"name": "torpor-app", "emptyDir": {}},
        {"name": "config", "configMap": {}},
    ]
    subject = pod(containers=[{"name": "app", "volumeMounts": mounts}], volumes=volumes)
    (found,) = locate(subject, [], machine.view)
    assert [(part.sub_path, part.mount_path) for part in found.volumes] == [
        ("x/y", "/a"),
        ("z", "/c"),
    ]
    assert len({part.key for part in found.volumes}) == 2
    assert all(part.key.startswith("data.") for part in found.volumes)


@pytest.mark.parametrize("key", ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"])
def test_pods_that_are_refused(machine, key: str):
    with pytest.raises(Refused, match=key):
        locate(pod(**{key: True}), [], machine.view)


def test_sidecar_is_refused(machine):
    with pytest.raises(Refused, match="sidecar"):
        locate(pod(initContainers=[{"name": "s", "restartPolicy": "Always"}]), [], machine.view)


def test_container_that_is_not_there(machine):
    with pytest.raises(Refused, match="no such container"):
        locate(pod(), ["nope"], machine.view)
    with pytest.raises(Vanished, match="no running init"):
        locate(pod(), [], machine.view)
    crashed = pod()
    crashed["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "CrashLoop"}}
    with pytest.raises(Vanished, match="not running") as caught:
        locate(crashed, [], machine.view)
    assert "CrashLoop" in caught.value.cause


def test_mount_line_without_optional_fields():
    mount = parse_mount("36 35 98:0 /a\\134b /mnt\\012x rw - ext3 /dev/root rw,errors=continue")
    assert (mount.root, mount.mount_point, mount.option("errors")) == (
        "/a\\b",
        "/mnt\nx",
        "continue",
    )
