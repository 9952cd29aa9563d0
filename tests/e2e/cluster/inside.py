# SPDX-License-Identifier: Apache-2.0
"""Pid 1 of a node: builds the node's view of the world in fresh namespaces, then reaps.

Started by node.py in new namespaces with a JSON description as its only argument. Says `ready` on
standard output, and never returns. Everything it uses of Python is imported before pivot_root,
because afterwards the machine's files are not there.

Facts: kubelet writes some sysctls of the whole machine if they differ from what it wants, so files
that hold the wanted values are bound over them; the boot id gets the same treatment, because
kubelet tells a reboot by it. containerd and kubelet keep overlay mounts and must not do so on an
overlay, so their directories are bound from the state directory.
"""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
OWN_DIRECTORIES = ("containerd", "kubelet", "etcd", "torpor", "cni")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def main(description: str) -> None:
    """Becomes the node."""
    # Blocked before any child exists, so that no exit is missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    node = json.loads(description)
    os.environ["PATH"] = PATH
    build(node)
    print("ready", flush=True)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    reap()


def build(node: dict[str, str]) -> None:
    """Mounts the node's root and moves into it."""
    state = Path(node["state"])
    new = state / "root"
    for name in ("root", "upper", "work", "lib"):
        (state / name).mkdir(parents=True, exist_ok=True)
    layers = f"lowerdir={node['root']},upperdir={state}/upper,workdir={state}/work"
    mount("-t", "overlay", "overlay", "-o", layers, str(new))
    mount("-t", "proc", "proc", f"{new}/proc")
    mount("-t", "sysfs", "sysfs", f"{new}/sys")
    mount_devices(new)
    for name in ("run", "tmp"):
        (new / name).mkdir(exist_ok=True)
        mount("-t", "tmpfs", "tmpfs", f"{new}/{name}")
    (new / "run/lock").mkdir()
    (new / "tmp").chmod(0o1777)
    for name, value in SYSCTLS.items():
        cover(new, f"proc/sys/{name}", value)
    cover(new, "proc/sys/kernel/random/boot_id", str(uuid.uuid4()))
    for name in OWN_DIRECTORIES:
        bind(state / "lib" / name, new / "var/lib" / name)
    bind(Path(node["shared"]), new / "cluster/shared")
    bind(Path(node["programs"]), new / "cluster/bin")
    bind(Path(node["etc"]), new / "etc/kubernetes")
    mount_cgroups(new, json.loads(node["hierarchies"]))
    write_identity(new, node["name"])
    enter(new)


def mount(*arguments: str) -> None:
    """mount(8)."""
    command("mount", *arguments)


def command(*argv: str) -> None:
    """Runs a program of the machine, or, after pivot_root, of the node."""
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def bind(source: Path, target: Path) -> None:
    """Binds a directory, made if it is not there."""
    source.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    mount("--bind", str(source), str(target))


def cover(new: Path, name: str, value: str) -> None:
    """Puts a file with that value over one of /proc."""
    if (new / name).exists():
        file = new / "run" / f"covered-{name.replace('/', '.')}"
        file.write_text(value + "\n")
        mount("--bind", str(file), str(new / name))


def mount_devices(new: Path) -> None:
    """The machine's devices, with terminals, shared memory and queues of the node's own."""
    mount("--bind", "/dev", f"{new}/dev")
    for name, options in (
        ("devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("tmpfs", "mode=1777"),
        ("mqueue", ""),
    ):
        where = new / "dev" / {"devpts": "pts", "tmpfs": "shm"}.get(name, name)
        if where.is_dir():
            mount("-t", name, name, *(("-o", options) if options else ()), str(where))


def mount_cgroups(new: Path, hierarchies: list[list[str]]) -> None:
    """The hierarchies again, seen from the node's cgroup namespace: its own group is their root."""
    top = new / "sys/fs/cgroup"
    if all(where != "." for where, _, _ in hierarchies):
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(top))
    for where, kind, options in hierarchies:
        target = top / where
        target.mkdir(exist_ok=True)
        mount("-t", kind, kind, *(("-o", options) if options else ()), str(target))


def write_identity(new: Path, name: str) -> None:
    """Host name, machine id and the files of names."""
    command("hostname", name)
    (new / "etc/hostname").write_text(f"{name}\n")
    (new / "etc/hosts").write_text(f"127.0.0.1 localhost {name}\n")
    machine = new / "etc/machine-id"
    machine.unlink(missing_ok=True)
    machine.write_text(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.torpor.test").hex + "\n")
    resolv = new / "etc/resolv.conf"
    resolv.unlink(missing_ok=True)
    resolv.write_text("nameserver 127.0.0.1\n")


def enter(new: Path) -> None:
    """Makes the new root the root, and lets go of the machine's."""
    os.chdir(new)
    Path(".machine").mkdir(exist_ok=True)
    command("pivot_root", ".", ".machine")
    os.chdir("/")
    command("umount", "-l", "/.machine")
    Path("/.machine").rmdir()
    command("mount", "--make-rshared", "/")
    command("ip", "link", "set", "lo", "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def reap() -> None:
    """Collects the node's orphans for ever."""
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main(sys.argv[1])
