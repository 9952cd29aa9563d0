# SPDX-License-Identifier: Apache-2.0
"""CRIU 4.2's commands and options, and what becomes of each: the one table.

`docs/criu-compat.md` is generated from it. An option is either done, or accepted because
leaving it aside changes nothing for the worse (it only permits something, or asks for what is
done anyway), or refused with a reason. None is ignored silently.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Fate(Enum):
    """What becomes of an option."""

    DONE = "done"
    ACCEPTED = "accepted"
    REFUSED = "refused"


class Takes(Enum):
    """Whether an option has a value."""

    NOTHING = ""
    VALUE = "VALUE"
    OPTIONAL = "[VALUE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option. ``key`` is its name in what `parse` returns; ``why`` explains the fate.

    ``refuses`` looks at the value of an option that is otherwise done or accepted, and says why
    it is refused nevertheless.
    """

    long: str
    short: str = ""
    takes: Takes = Takes.NOTHING
    fate: Fate
    why: str
    refuses: Callable[[str], str | None] | None = None

    @property
    def key(self) -> str:
        """Name with underscores."""
        return self.long.replace("-", "_")

    @property
    def text(self) -> str:
        """`-t, --tree VALUE`."""
        names = ", ".join([f"-{self.short}"] * bool(self.short) + [f"--{self.long}"])
        return f"{names} {self.takes.value}".rstrip()


def _cgroups(mode: str) -> str | None:
    if mode in ("none", "ignore", ""):
        return None
    return "cgroups are left as they are; say --manage-cgroups=ignore"


def _done(long: str, why: str, short: str = "", takes: Takes = Takes.NOTHING) -> Option:
    return Option(long=long, short=short, takes=takes, fate=Fate.DONE, why=why)


def _accepted(long: str, why: str, short: str = "", takes: Takes = Takes.NOTHING) -> Option:
    return Option(long=long, short=short, takes=takes, fate=Fate.ACCEPTED, why=why)


def _refused(long: str, why: str, short: str = "", takes: Takes = Takes.NOTHING) -> Option:
    return Option(long=long, short=short, takes=takes, fate=Fate.REFUSED, why=why)


VALUE, OPTIONAL = Takes.VALUE, Takes.OPTIONAL
LATER = "not yet"
INCREMENTAL = "images of an earlier dump are not used yet"
LAZY = "pages are always restored at once, for now"
SERVER = "pages are written to files only, for now"
MOUNTS = "mount namespaces are not restored yet; a container's are made by its runtime"
NETWORK = "network namespaces are not restored yet; a container's are made by its runtime"
TLS = "there is no page server to talk to"
CGROUPS = "cgroups are left as they are"

OPTIONS: Sequence[Option] = (
    _done("tree", "root of the tree to dump", "t", VALUE),
    _done("images-dir", "where the images are; the current directory if not given", "D", VALUE),
    _done("work-dir", "where relative names of log and pid files start", "W", VALUE),
    _done("leave-running", "the tasks run on after the dump", "R"),
    _done("restore-detached", "return when the tree runs", "d"),
    _done("shell-job", "the tree belongs to a shell on a terminal", "j"),
    _done("tcp-close", "connections to the outside come back closed"),
    _done("freeze-cgroup", "freeze this cgroup first", takes=VALUE),
    _done("ghost-limit", "largest deleted file to save", takes=VALUE),
    _done("timeout", "give up after that many seconds; 10 if not given", takes=VALUE),
    _done("inherit-fd", "a descriptor of the caller stands for one of the tree", takes=VALUE),
    _done("pidfile", "the pid of the restored root is written there", takes=VALUE),
    _done("log-file", "log, in CRIU's shape", "o", VALUE),
    _done("verbosity", "0 to 4", "v", OPTIONAL),
    _done("feature", "of `check`: one of those listed below", takes=VALUE),
    _done("extra", "of `check`: what torpor can do without as well"),
    _done("experimental", "of `check`: the same as --extra"),
    _done("all", "of `check`: the same as --extra"),
    _done("help", "", "h"),
    _done("version", "", "V"),
    _accepted("tcp-established", "connections inside the tree are always taken; with one to the "
              "outside the dump is refused: use --tcp-close"),
    _accepted("skip-in-flight", "torpor decides for each: a connection from outside that is not "
              "accepted yet comes back closed with --tcp-close, and is refused without"),
    _accepted("tcp-skip-in-flight", "the same by its RPC name"),
    _accepted("ext-unix-sk", "permits what is refused anyway: a Unix socket whose peer is outside",
              "x", OPTIONAL),
    _accepted("file-locks", "locks of the tree are always taken", "l"),
    _accepted("link-remap", "the content of deleted files is saved, so no link is needed"),
    _accepted("evasive-devices", "devices are opened by their own path only"),
    _accepted("force-irmap", "paths of watches are always looked up"),
    _accepted("ghost-fiemap", "another way to read deleted files; torpor has one way"),
    _accepted("skip-file-rwx-check", "permissions of files are not compared"),
    _accepted("unprivileged", "torpor never asks for more rights than a tree needs"),
    _accepted("weak-sysctls", "no sysctl is restored"),
    _accepted("allow-uprobes", "permits what is refused anyway"),
    _accepted("no-default-config", "there is no default configuration file"),
    _accepted("network-lock", "no connection to the outside is kept, so nothing is locked",
              takes=VALUE),
    Option(long="manage-cgroups", takes=OPTIONAL, fate=Fate.ACCEPTED, refuses=_cgroups,
           why="only `none` and `ignore`: cgroups are left as they are"),
    _refused("leave-stopped", "stopped tasks would be kept by nobody: use --leave-running and "
             "SIGSTOP", "s"),
    _refused("restore-sibling", "only for callers of the RPC, which is not there yet", "S"),
    _refused("root", MOUNTS, "r", VALUE),
    _refused("external", LATER, takes=VALUE),
    _refused("ext-mount-map", MOUNTS, "M", VALUE),
    _refused("enable-external-sharing", MOUNTS),
    _refused("enable-external-masters", MOUNTS),
    _refused("skip-mnt", MOUNTS, takes=VALUE),
    _refused("enable-fs", MOUNTS, takes=VALUE),
    _refused("mntns-compat-mode", MOUNTS),
    _refused("lsm-mount-context", MOUNTS, takes=VALUE),
    _refused("empty-ns", NETWORK, takes=VALUE),
    _refused("veth-pair", NETWORK, takes=VALUE),
    _refused("join-ns", "enter the namespace before, with nsenter(1)", "J", VALUE),
    _refused("cgroup-root", CGROUPS, takes=VALUE),
    _refused("cgroup-props", CGROUPS, takes=VALUE),
    _refused("cgroup-props-file", CGROUPS, takes=VALUE),
    _refused("cgroup-dump-controller", CGROUPS, takes=VALUE),
    _refused("cgroup-yard", CGROUPS, takes=VALUE),
    _refused("lsm-profile", "profiles of security modules are not set", takes=VALUE),
    _refused("track-mem", INCREMENTAL),
    _refused("prev-images-dir", INCREMENTAL, takes=VALUE),
    _refused("auto-dedup", INCREMENTAL),
    _refused("pre-dump-mode", INCREMENTAL, takes=VALUE),
    _refused("lazy-pages", LAZY),
    _refused("page-server", SERVER),
    _refused("address", SERVER, takes=VALUE),
    _refused("port", SERVER, takes=VALUE),
    _refused("ps-socket", SERVER, takes=VALUE),
    _refused("stream", SERVER),
    _refused("daemon", "there is no service yet"),
    _refused("status-fd", "there is no service yet", takes=VALUE),
    _refused("tls", TLS),
    _refused("tls-cacert", TLS, takes=VALUE),
    _refused("tls-cacrl", TLS, takes=VALUE),
    _refused("tls-cert", TLS, takes=VALUE),
    _refused("tls-key", TLS, takes=VALUE),
    _refused("tls-no-cn-verify", TLS),
    _refused("cpu-cap", "what the registers need of a processor is always checked, and only that",
             takes=OPTIONAL),
    _refused("file-validation", "there is one way only to check files", takes=VALUE),
    _refused("irmap-scan-path", "paths of watches are looked up without hints", takes=VALUE),
    _refused("action-script", LATER, takes=VALUE),
    _refused("libdir", "CRIU's plugins cannot be loaded", "L", VALUE),
    _refused("exec-cmd", "run the command after `criu restore -d`"),
    _refused("close", "close the descriptor before", takes=VALUE),
    _refused("config", "configuration files are not read yet", takes=VALUE),
    _refused("log-pid", "there is one log"),
    _refused("display-stats", "read stats-dump and stats-restore with crit, or `torpor show`"),
)  # fmt: skip

COMMANDS: Mapping[str, str | None] = {
    "dump": None,
    "restore": None,
    "check": None,
    "pre-dump": INCREMENTAL,
    "lazy-pages": LAZY,
    "page-server": SERVER,
    "dedup": INCREMENTAL,
    "service": "the RPC is not there yet",
    "swrk": "the RPC is not there yet",
    "cpuinfo": "what the registers need of a processor is always checked at restore",
    "exec": "CRIU itself has given it up",
    "show": "CRIU itself has given it up; use `torpor show`",
}
"""Command → None, or why it is refused."""

CHECKS: Mapping[str, str] = {
    "clone3_set_tid": "clone3 with set_tid",
    "get_rseq_conf": "rseq configuration",
    "pagemap_scan": "PAGEMAP_SCAN",
    "seccomp_filters": "seccomp filters",
    "seccomp_suspend": "seccomp suspended",
    "timer_cr_ids": "ids of POSIX timers",
}
"""`check --feature` → the feature that torpor probes for it."""
