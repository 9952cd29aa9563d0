# SPDX-License-Identifier: Apache-2.0
"""Terminals, devices, and anonymous kernel objects."""

from tests.functional.catalogue.case import Case

PTY = "devices_pty"

PAIRS = (
    Case(state="settings, size and owner of a pair", program=PTY, arguments=("settings",)),
    Case(state="a speed of any number, mode of the node", program=PTY, arguments=("speeds",),
         criu="speeds and modes are lost"),
    Case(state="packet mode, O_NONBLOCK, several slaves", program=PTY, arguments=("packets",)),
    Case(state="a locked and exclusive pair", program=PTY, arguments=("closed",),
         criu="exclusive mode is lost"),
    Case(state="lines, ends of file and an unfinished line queued", program=PTY,
         arguments=("lines",), criu="all but the first line is lost"),
    Case(state="raw bytes queued in both directions", program=PTY, arguments=("bytes",)),
    Case(state="output stopped by a character", program=PTY, arguments=("stopped",),
         criu="output goes on"),
    Case(state="a master whose slave was never open", program=PTY, arguments=("fresh",)),
    Case(state="a master whose slave was closed, data queued", program=PTY,
         arguments=("abandoned",), criu="the master waits for ever"),
    Case(state="slaves of a master that was closed", program=PTY, arguments=("orphan",)),
    Case(state="a slave hung up while its master lives", program=PTY, arguments=("vhangup",),
         criu="it is not hung up"),
    Case(state="many pairs, with holes in their numbers", program=PTY, arguments=("many",)),
)  # fmt: skip

SESSION = "devices_session"

LEADER_ONLY = "only the leader gets the terminal back, not its children"

SESSIONS = (
    Case(state="the leader of a session on a slave", program=SESSION, arguments=("lone",)),
    Case(state="a session on a slave, jobs in front and behind", program=SESSION,
         arguments=("plain",), criu=LEADER_ONLY),
    Case(state="the root has master and slave of a child's session", program=SESSION,
         arguments=("both",), criu=LEADER_ONLY),
    Case(state="/dev/tty held open beside the terminal", program=SESSION, arguments=("current",),
         criu=LEADER_ONLY),
    Case(state="a job stopped because it read in the background", program=SESSION,
         arguments=("background",), criu=LEADER_ONLY),
    Case(state="a member of a session that has given its terminal up", program=SESSION,
         arguments=("given_up",), criu=LEADER_ONLY),
    Case(state="a controlling terminal that nobody has open", program=SESSION,
         arguments=("nofd",), criu=LEADER_ONLY),
)  # fmt: skip

RINGS = (
    Case(state="rings of io_setup, empty and with events", program="devices_aio"),
)  # fmt: skip

PIDFD = "devices_pidfd"

PIDFDS = (
    Case(state="pidfds of a living child and of itself, in an epoll", program=PIDFD,
         arguments=("living",), criu="PIDFD_THREAD is not supported"),
    Case(state="a pidfd of a zombie", program=PIDFD, arguments=("zombie",)),
    Case(state="pidfds of tasks that were reaped, with their status", program=PIDFD,
         arguments=("reaped",), criu="their status is lost"),
    Case(state="pidfds of tasks that were reaped", program=PIDFD, arguments=("reaped", "criu")),
    Case(state="a pidfd of a thread", program=PIDFD, arguments=("threads",),
         criu="PIDFD_THREAD is not supported"),
    Case(state="a pidfd of a task outside", program=PIDFD, arguments=("outside",),
         refused="outside of the tree"),
)  # fmt: skip

BPF = "devices_bpf"
NEW_ID = {r"fd \d+ info": "a map gets a new id"}

MAPS = (
    Case(state="BPF maps: a hash, a frozen array, an empty one", program=BPF, needs="BPF",
         changes=NEW_ID, criu="Debian's is built without BPF"),
    Case(state="a BPF map with a second description, for reading only", program=BPF,
         arguments=("twice",), needs="BPF", changes=NEW_ID, criu="Debian's is built without BPF"),
    Case(state="a BPF ring buffer", program=BPF, arguments=("ring",), needs="BPF",
         refused="neither a hash nor an array"),
    Case(state="a BPF program", program=BPF, arguments=("program",), needs="BPF",
         refused="a BPF program"),
)  # fmt: skip

URING = "devices_uring"
NO_URING = "it knows no io_uring"

URINGS = (
    Case(state="io_uring, used before, completions not taken, a thread waiting", program=URING,
         arguments=("used",), needs="io_uring", criu=NO_URING),
    Case(state="io_uring inherited by a child", program=URING, arguments=("inherited",),
         needs="io_uring", criu=NO_URING),
    Case(state="io_uring with a request under way", program=URING, arguments=("busy",),
         needs="io_uring", refused="1 under way"),
    Case(state="io_uring with registered files", program=URING, arguments=("registered",),
         needs="io_uring", refused="registered files"),
)  # fmt: skip

NODES = "devices_nodes"

DEVICES = (
    Case(state="devices by another name, O_APPEND, O_NONBLOCK, O_PATH", program=NODES,
         arguments=("plain",)),
    Case(state="the kernel's log, read and written", program=NODES, arguments=("log",),
         needs="/dev/kmsg", crosswise="a reader starts at the beginning"),
    Case(state="tun, fuse, autofs and userfaultfd devices, not used yet", program=NODES,
         arguments=("unused",), needs="tun", criu="knows none of them but autofs"),
    Case(state="a block device", program=NODES, arguments=("block",), needs="loop",
         refused="a block device"),
)  # fmt: skip

TUN = "devices_tun"
OWN_NETWORK = "it takes them with a network namespace of the tree only"

TUNS = (
    Case(state="a tun interface with addresses, routes and a socket bound to it", program=TUN,
         arguments=("tun",), needs="tun", criu=OWN_NETWORK),
    Case(state="a tap interface: headers, offloads, owner, no carrier", program=TUN,
         arguments=("tap",), needs="tun", criu=OWN_NETWORK),
    Case(state="a tun interface with heads of packets (without IFF_NO_PI)", program=TUN,
         arguments=("info",), needs="tun", criu=OWN_NETWORK),
    Case(state="three queues of a tun interface, one detached, one shared", program=TUN,
         arguments=("queues",), needs="tun", criu=OWN_NETWORK),
    Case(state="a tap interface with a filter", program=TUN, arguments=("filtered",), needs="tun",
         refused="cannot be read back"),
)  # fmt: skip

OBJECTS = {
    "perf": "a performance counter",
    "userfaultfd": "userfaultfd",
    "landlock": "landlock",
    "secret": "secret memory",
    "notifier": "seccomp",
    "mount": "a file system being set up",
    "kvm": "KVM",
    "fuse": "FUSE",
}
REFUSED = tuple(
    Case(state=f"{name}: refused by name", program="devices_refused", arguments=(name,),
         needs=name, refused=words)
    for name, words in OBJECTS.items()
)  # fmt: skip

CASES: tuple[Case, ...] = (
    REFUSED + DEVICES + PAIRS + SESSIONS + RINGS + PIDFDS + MAPS + URINGS + TUNS
)  # fmt: skip
