# SPDX-License-Identifier: Apache-2.0
"""The contract of kinds: each has types, limits with a remedy, tests, and a live workload."""

import importlib
import pkgutil
from pathlib import Path

import pytest

from torpor.engine import files, sockets
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import Limit
from torpor.engine.kinds import FILE_KINDS

ROOT = Path(__file__).resolve().parents[1]
REFUSING = ("refused", "other sockets")
"""Kinds that only refuse: they have no type and nothing to run."""
HELPERS = {
    "common", "ghost", "later", "linked", "locks", "magics", "revive", "watched", "table",
    "grouping",
    "address", "options", "option_plan", "option_tables", "tcp", "udp",
    "unix_bind", "unix_creds", "unix_images", "unix_messages", "unix_names", "unix_plan",
    "unix_state",
    "inet_images", "inet_state", "multicast", "segment", "tcp_kept", "tcp_stream",
    "tty", "ttyimages", "ttyplan", "tunlink",
}  # fmt: skip
KINDS = {kind.name: kind for kind in FILE_KINDS}


def module_of(kind):
    return importlib.import_module(type(kind).__module__)


def workloads():
    """Texts of everything that makes live objects and restores them."""
    found = [*(ROOT / "tests/functional").rglob("*.py"), *(ROOT / "tests/functional").rglob("*.c")]
    return "\n".join(path.read_text(encoding="utf-8") for path in found)


WORDS = {
    "eventfd": "eventfd", "signalfd": "signalfd", "timerfd": "timerfd", "inotify": "inotify",
    "pipe": "os.pipe", "fifo": "mkfifo", "unix socket": "AF_UNIX", "TCP and UDP socket": "AF_INET",
    "netlink socket": "AF_NETLINK", "packet socket": "AF_PACKET",
    "pidfd": "pidfd_open", "memfd": "memfd_create",
    "procfs": "/proc/self", "fanotify": "fanotify_init",
    "namespace": "/ns/", "message queue": "mq_open",
    "BPF map": "BPF_MAP_CREATE", "io_uring": "io_uring_setup",
    "path of a socket": "O_PATH",
    "device": "/dev/null", "tun": "TUNSETIFF", "regular": "O_APPEND",
    "terminal": "openpty", "epoll": "epoll",
}  # fmt: skip


def test_names_are_words_of_their_own():
    assert len(KINDS) == len(FILE_KINDS)
    assert list(KINDS)[-1] == "epoll"


@pytest.mark.parametrize("name", KINDS)
def test_types_are_those_of_the_images(name):
    types = KINDS[name].types
    assert set(types) <= set(pb.fd_types.keys())
    assert bool(types) != (name in REFUSING)


def test_no_two_kinds_write_one_type_by_accident():
    """REG is what a path has, of whatever kind; EXT what CRIU has no message for."""
    owners = {}
    for kind in FILE_KINDS:
        for one in kind.types:
            owners.setdefault(one, []).append(kind.name)
    assert {one for one, names in owners.items() if len(names) > 1} <= {"REG", "EXT"}


@pytest.mark.parametrize("name", KINDS)
def test_limits_tell_what_and_how_to_make_it_work(name):
    limits = KINDS[name].limits
    assert all(isinstance(limit, Limit) for limit in limits)
    assert len({limit.case for limit in limits}) == len(limits)
    for limit in limits:
        assert limit.case
        assert limit.what
        assert limit.remedy, f"{name}: {limit.case} has no remedy"
        assert not limit.remedy.endswith(".")


@pytest.mark.parametrize("module", ["memory.areas", "memory.vdso", "tasks.seccomp", "dump.sharing"])
def test_limits_of_tasks_and_memory(module):
    limits = importlib.import_module(f"torpor.engine.{module}").LIMITS
    assert limits
    assert all(limit.case and limit.what and limit.remedy for limit in limits)


@pytest.mark.parametrize("name", KINDS)
def test_a_test_module_lies_beside_it(name):
    path = Path(module_of(KINDS[name]).__file__)
    named = f"{path.stem}.KIND"
    beside = path.with_name(f"test_{path.name}")
    others = path.parent.glob("test_*.py")
    assert beside.exists() or any(named in one.read_text(encoding="utf-8") for one in others)


@pytest.mark.parametrize("name", [n for n in KINDS if n not in REFUSING])
def test_a_workload_has_one(name):
    assert WORDS[name] in workloads(), f"no workload has a {name} ({WORDS[name]})"


@pytest.mark.parametrize("package", [files, sockets])
def test_every_module_is_listed_or_a_helper(package):
    listed = {type(kind).__module__.rpartition(".")[2] for kind in FILE_KINDS}
    modules = {one.name for one in pkgutil.iter_modules(package.__path__)}
    kinds = {name for name in modules if not name.startswith("test_")} - HELPERS
    assert kinds <= listed
