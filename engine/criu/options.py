# SPDX-License-Identifier: Apache-2.0
"""CRIU 4.2's commands and options, and what becomes of each: the one table.

`docs/criu-compat.md` is generated from it. An option is either done, or accepted because
leaving it aside changes nothing for the worse (it only permits something, or asks for what is
done anyway). None is ignored silently.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from torpor.engine.text import parse_size


class Fate(Enum):
    """What becomes of an option."""

    DONE = "done"
    ACCEPTED = "accepted"


class Takes(Enum):
    """Whether an option has a value."""

    NOTHING = ""
    VALUE = "VALUE"
    OPTIONAL = "[VALUE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option. ``key`` is its name in what `parse` returns; ``why`` explains the fate.

    ``wrong`` tells what is wrong with a value.
    """

    long: str
    short: str = ""
    takes: Takes = Takes.NOTHING
    fate: Fate
    why: str
    wrong: Callable[[str], str | None] | None = None

    @property
    def key(self) -> str:
        """Name with underscores."""
        return self.long.replace("-", "_")

    @property
    def text(self) -> str:
        """`-t, --tree VALUE`."""
        names = ", ".join([f"-{self.short}"] * bool(self.short) + [f"--{self.long}"])
        return f"{names} {self.takes.value}".rstrip()


def _one_of(*choices: str) -> Callable[[str], str | None]:
    def wrong(value: str) -> str | None:
        return None if value in choices else f"one of {', '.join(choices)}"

    return wrong


def _number(value: str) -> str | None:
    return None if value.isascii() and value.isdecimal() else "a number"


def _pid(value: str) -> str | None:
    return None if not _number(value) and int(value) > 0 else "the pid of a task"


def _size(value: str) -> str | None:
    try:
        parse_size(value)
    except ValueError:
        return "a size, such as 4096, 64K, 2M or 1G"
    return None


def _external(value: str) -> str | None:
    return None if EXTERNAL.match(value) else "the name of something external, as KIND[ID]:NAME"


def _lsm(value: str) -> str | None:
    kind, colon, _ = value.partition(":")
    return None if colon and kind == "none" else "a profile that can be set (none:NAME)"


def _capabilities(value: str) -> str | None:
    words = [word.removeprefix("^") for word in value.split(",")] if value else []
    return None if set(words) <= set(CAPABILITIES) else f"some of {', '.join(CAPABILITIES)}"


def _fate(fate: Fate) -> Callable[..., Option]:
    def make(
        long: str,
        why: str,
        short: str = "",
        takes: Takes = Takes.NOTHING,
        wrong: Callable[[str], str | None] | None = None,
    ) -> Option:
        return Option(long=long, short=short, takes=takes, fate=fate, why=why, wrong=wrong)

    return make


_done, _accepted = (_fate(fate) for fate in Fate)
EXTERNAL = re.compile(
    r"(tty|file)\[[0-9a-f]+:[0-9a-f]+\]$|unix\[\d+\]$|(mnt|dev|net|pid|veth|macvlan)\["
)
CAPABILITIES = ("cpu", "fpu", "ins", "all", "none")
CGROUP_MODES = ("none", "props", "soft", "full", "strict", "ignore", "")
VALUE, OPTIONAL = Takes.VALUE, Takes.OPTIONAL
MOUNTS = "about mounts of the tree's own, and a tree of the host has none"
NETWORK = "about a network of the tree's own, and a tree of the host has none"

OPTIONS: Sequence[Option] = (
    _done("tree", "root of the tree to dump", "t", VALUE, _pid),
    _done("images-dir", "where the images are; the current directory if not given", "D", VALUE),
    _done("work-dir", "where logs, pid files and statistics go, and scripts run", "W", VALUE),
    _done("leave-running", "the tasks run on after the dump", "R"),
    _done("leave-stopped", "the tasks are stopped (SIGSTOP) after the dump or restore", "s"),
    _done("restore-detached", "return when the tree runs; of servers, when they can be connected "
          "to", "d"),
    _done("daemon", "the same as -d, of servers"),
    _done("restore-sibling", "the root is made as a child of our parent; with -d only", "S"),
    _done("shell-job", "the tree belongs to a shell on a terminal", "j"),
    _done("tcp-established", "TCP connections go on; those inside the tree always do"),
    _done("tcp-close", "all TCP connections come back as closed sockets"),
    _done("skip-in-flight", "connections that wait to be accepted may be lost"),
    _done("tcp-skip-in-flight", "the same by its RPC name"),
    _done("network-lock", "how packets of kept connections are held back; the lock is made by "
          "nftables for `iptables` as well", "", VALUE, _one_of("iptables", "nftables", "skip")),
    _done("freeze-cgroup", "a control group that holds all tasks: it is frozen for the dump",
          takes=VALUE),
    _done("ghost-limit", "largest deleted file to save; 1M if not given", "", VALUE, _size),
    _done("timeout", "give up when the tasks are not stopped in that many seconds; 10 if not given",
          "", VALUE, _number),
    _done("inherit-fd", "of `restore`: a descriptor of the caller takes the place of one of the "
          "tree, as fd[N]:NAME (pipe[INODE], socket[INODE], tty[RDEV:DEV], a path)", takes=VALUE),
    _done("pidfile", "the pid of the restored root, or of a server, is written there", takes=VALUE),
    _done("log-file", "log there, in CRIU's shape; without, to stderr", "o", VALUE),
    _done("verbosity", "what is logged: 0 nothing, 1 errors, 2 warnings too, 3 what is done and "
          "when, 4 everything", "v", OPTIONAL),
    _done("action-script", "run it at each stage, which CRTOOLS_SCRIPT_ACTION names", takes=VALUE),
    _done("exec-cmd", "after a restore, become the command behind `--`"),
    _done("close", "close this descriptor before anything else", "", VALUE, _number),
    _done("config", "read options from this file as well", takes=VALUE),
    _done("no-default-config", "do not read /etc/criu/default.conf and ~/.criu/default.conf"),
    _done("display-stats", "print the statistics at the end"),
    _done("cpu-cap", "what of the processor is written on dump and compared on restore",
          "", OPTIONAL, _capabilities),
    _done("prev-images-dir", "an earlier dump, seen from -D: pages that it has are left out",
          takes=VALUE),
    _done("auto-dedup", "take pages from the images once a later dump, or the restored tree, has "
          "them"),
    _done("manage-cgroups", "what a restore does about control groups; `soft` if not given",
          "", OPTIONAL, _one_of(*CGROUP_MODES)),
    _done("cgroup-root", "takes the place of the root task's group on restore", takes=VALUE),
    _done("cgroup-dump-controller", "keep groups of this controller only", takes=VALUE),
    _done("cgroup-props", "settings of groups that a dump keeps: "
          '`"CONTROLLER":\\n - "strategy": "replace"\\n - "properties": ["FILE", ...]`, or `merge`',
          takes=VALUE),
    _done("cgroup-props-file", "the same, in a file", takes=VALUE),
    _done("lsm-profile", "`none:NAME`; as with a kernel that has neither, `apparmor:NAME` and "
          "`selinux:NAME` are not", "", VALUE, _lsm),
    _done("page-server", "send pages to a page server"),
    _done("address", "of the page server, or of the dump that is one", takes=VALUE),
    _done("port", "of the page server, or of the dump that is one", "", VALUE, _number),
    _done("ps-socket", "a connected socket in place of address and port", "", VALUE, _number),
    _done("tls", "connections of pages are encrypted, and both sides show certificates"),
    _done("tls-cacert", "who has to have signed the other's certificate", takes=VALUE),
    _done("tls-cacrl", "certificates that are no longer trusted", takes=VALUE),
    _done("tls-cert", "our certificate", takes=VALUE),
    _done("tls-key", "its key", takes=VALUE),
    _done("tls-no-cn-verify", "the server's certificate may have another name"),
    _done("lazy-pages", "a restore leaves large memory to `criu lazy-pages`; a dump leaves it out "
          "and serves it until the other side has it; `page-server` serves it from images"),
    _done("feature", "of `check`: only this one; a name that is none lists all", takes=VALUE),
    _done("extra", "of `check`: what some trees need as well"),
    _done("experimental", "of `check`: what nothing needs yet as well"),
    _done("all", "of `check`: --extra and --experimental"),
    _done("help", "this text", "h"),
    _done("version", "the version of CRIU that is spoken, and ours", "V"),
    _accepted("ext-unix-sk", "permits what is refused anyway: a Unix socket whose peer is outside",
              "x", OPTIONAL),
    _accepted("file-locks", "locks of the tree are always taken", "l"),
    _done("link-remap", "files that lost the name they were opened by, but have another, get one "
          "until they are restored; without, their other name is looked for"),
    _accepted("evasive-devices", "devices are opened by their own path only"),
    _accepted("force-irmap", "paths of watches are always looked up"),
    _accepted("irmap-scan-path", "a hint where to look; torpor looks everywhere", takes=VALUE),
    _accepted("ghost-fiemap", "another way to read deleted files; torpor has one way"),
    _accepted("file-validation", "files are compared by size, time and build id in any case",
              "", VALUE, _one_of("filesize", "buildid")),
    _done("skip-file-rwx-check", "modes and sizes of open files are not compared with those at the "
          "dump; a file must still be long enough"),
    _accepted("unprivileged", "torpor never asks for more rights than a tree needs, and tells "
              "which are missing"),
    _accepted("weak-sysctls", "no sysctl is restored"),
    _accepted("allow-uprobes", "permits probes in the program of a task, which are refused anyway"),
    _done("status-fd", "a zero byte when it can be connected to", "", VALUE, _number),
    _done("log-pid", "a restore makes LOG.PID for each task; the lines of all are in the one log"),
    _accepted("mntns-compat-mode", "of `restore`: another way to make mounts; torpor makes none"),
    _accepted("cgroup-yard", "groups are reached where they are mounted", takes=VALUE),
    _accepted("libdir", "where plugins would be; there are none, but it must exist", "L", VALUE),
    _accepted("track-mem", "a dump compares pages with those of its parent"),
    _accepted("pre-dump-mode", "pages are copied from outside, while the tree is stopped",
              "", VALUE, _one_of("splice", "read")),
    _accepted("root", MOUNTS, "r", VALUE),
    _done("external", "tty[RDEV:DEV], unix[INODE] or file[MNT_ID:INODE], for which the restore "
          "will be given another by --inherit-fd; mnt, dev, net, pid, veth and macvlan are taken, "
          "but a tree of the host has none of its own", takes=VALUE, wrong=_external),
    _accepted("ext-mount-map", MOUNTS, "M", VALUE),
    _accepted("enable-external-sharing", MOUNTS),
    _accepted("enable-external-masters", MOUNTS),
    _accepted("skip-mnt", MOUNTS, takes=VALUE),
    _accepted("enable-fs", MOUNTS, takes=VALUE),
    _accepted("lsm-mount-context", MOUNTS, takes=VALUE),
    _accepted("empty-ns", NETWORK, "", VALUE, _one_of("net")),
    _accepted("veth-pair", NETWORK, takes=VALUE),
    _done("join-ns", "the tree comes back in this namespace: net, uts, ipc or time, as "
          "KIND:PID or KIND:FILE", "J", VALUE),
    _done("stream", "images go to criu-image-streamer, which listens in the image directory, or "
          "come from it"),
)  # fmt: skip
LONG: Mapping[str, Option] = {option.long: option for option in OPTIONS}
SHORT: Mapping[str, Option] = {option.short: option for option in OPTIONS if option.short}

COMMANDS: Mapping[str, str | None] = {
    "dump": None,
    "restore": None,
    "check": None,
    "cpuinfo": None,
    "pre-dump": None,
    "lazy-pages": None,
    "page-server": None,
    "dedup": None,
    "service": None,
    "swrk": None,
}
"""Command → None, or why it is refused."""

GONE: Mapping[str, str] = {
    "exec": 'The "exec" action is deprecated by the Compel library.',
    "show": 'The "show" action is deprecated by the CRIT utility; use `crit decode -i FILE '
    "--pretty` or `torpor show`.",
}
"""Commands that CRIU itself has given up, and what it says then."""
