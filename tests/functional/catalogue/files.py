# SPDX-License-Identifier: Apache-2.0
"""Descriptors of files: paths, unlinked ones, locks, owners, notification, queues."""

from tests.functional.catalogue.case import Case

LOCKS_TOO = ("--file-locks",)
OTHER_USER = "may not read the limits of another user's task without CAP_SYS_RESOURCE"

FLAGS = (
    Case(state="all open flags", program="files_flags", arguments=("flags",),
         criu="does not give all flags back"),
    Case(state="made by O_CREAT, O_EXCL, O_TRUNC", program="files_flags",
         arguments=("created_exclusive",)),
    Case(state="O_PATH of every type", program="files_flags", arguments=("path_only",),
         criu="asks an O_PATH fifo for its content"),
    Case(state="positions", program="files_flags", arguments=("positions",)),
    Case(state="shared by dup and fork", program="files_flags", arguments=("sharing",)),
    Case(state="mode and user forbid another open", program="files_flags",
         arguments=("not_permitted",), criu=OTHER_USER),
    Case(state="of running programs", program="files_flags", arguments=("running_program",)),
    Case(state="renamed while open", program="files_flags", arguments=("renamed",)),
    Case(state="odd and long names", program="files_flags", arguments=("odd_names",)),
    Case(state="position in a directory", program="files_flags",
         arguments=("directory_position",)),
    Case(state="numbers up to the limit", program="files_flags", arguments=("numbers",),
         criu="has no room for its own descriptors above the highest"),
)  # fmt: skip

GONE = (
    Case(state="deleted, shared by descriptors and tasks", program="files_gone",
         arguments=("plain",)),
    Case(state="deleted, empty or write-only", program="files_gone", arguments=("empty",)),
    Case(state="deleted, 7 GiB of holes", program="files_gone", arguments=("sparse",)),
    Case(state="deleted, above the default limit", program="files_gone", arguments=("large",),
         options=("--ghost-limit", "4M")),
    Case(state="deleted, zeros written", program="files_gone", arguments=("written_zeros",)),
    Case(state="deleted, the name taken by another", program="files_gone",
         arguments=("name_taken",)),
    Case(state="three deleted of one name", program="files_gone", arguments=("two_of_one_name",)),
    Case(state="deleted, opened by three names", program="files_gone", arguments=("names",),
         criu="leaves the directories it makes"),
    Case(state="opened by two deleted names, a third is left", program="files_gone",
         arguments=("linked_names",), criu="takes it with --link-remap only"),
    Case(state="deleted, another name is left", program="files_gone", arguments=("linked_near",),
         criu="takes it with --link-remap only"),
    Case(state="deleted, another name is left elsewhere", program="files_gone",
         arguments=("linked_far",), criu="takes it with --link-remap only"),
    Case(state="deleted, another name is left, with --link-remap", program="files_gone",
         arguments=("remapped",), options=("--link-remap",)),
    Case(state="deleted with its directories", program="files_gone", arguments=("parent_gone",),
         criu="leaves the directories it makes"),
    Case(state="deleted, its directory renamed", program="files_gone",
         arguments=("parent_renamed",)),
    Case(state="deleted directory", program="files_gone", arguments=("directory",),
         criu="does not take a removed directory whose name is a file now"),
    Case(state="deleted working directory", program="files_gone", arguments=("cwd",)),
    Case(state="deleted working directory that is open", program="files_gone",
         arguments=("cwd_and_descriptor",),
         criu="removes the directory that has the name now"),
    Case(state="O_TMPFILE", program="files_gone", arguments=("tmpfile",),
         changes={r"fd \d+$": "the inode number is the name of an O_TMPFILE"},
         criu="brings it back without the right to be linked"),
    Case(state="deleted fifo", program="files_gone", arguments=("fifo",)),
    Case(state="deleted symbolic link", program="files_gone", arguments=("symlink",)),
    Case(state="deleted socket and device", program="files_gone",
         arguments=("socket_and_device",), criu="takes an O_PATH socket for a socket"),
    Case(state="deleted with extended attributes", program="files_gone",
         arguments=("attributes",), criu="loses them"),
    Case(state="deleted on tmpfs", program="files_gone", arguments=("on_tmpfs",),
         options=("--link-remap",)),
    Case(state="two hundred deleted", program="files_gone", arguments=("many",)),
)  # fmt: skip

ROOTS = (
    Case(state="a root of its own", program="files_roots", arguments=("chroot",)),
    Case(state="removed root directory", program="files_roots", arguments=("removed_root",)),
    Case(state="working directory outside of the root", program="files_roots",
         arguments=("outside_root",)),
)  # fmt: skip

LOCKS = (
    Case(state="flock, shared and exclusive", program="files_locks", arguments=("flocks",),
         options=LOCKS_TOO, restore_options=LOCKS_TOO),
    Case(state="POSIX locks of two tasks", program="files_locks", arguments=("posix",),
         options=LOCKS_TOO, restore_options=LOCKS_TOO),
    Case(state="waiters for locks", program="files_locks", arguments=("posix_waits",),
         options=LOCKS_TOO, restore_options=LOCKS_TOO),
    Case(state="OFD locks", program="files_locks", arguments=("ofds",),
         options=LOCKS_TOO, restore_options=LOCKS_TOO),
    Case(state="all locks on one file", program="files_locks", arguments=("mixed",),
         options=LOCKS_TOO, restore_options=LOCKS_TOO),
    Case(state="read lease", program="files_locks", arguments=("lease_read",),
         options=LOCKS_TOO, restore_options=LOCKS_TOO),
    Case(state="write lease with F_SETSIG", program="files_locks", arguments=("lease_write",),
         options=LOCKS_TOO, restore_options=LOCKS_TOO),
    Case(state="lease that is being broken", program="files_locks",
         arguments=("lease_breaking",), options=LOCKS_TOO, restore_options=LOCKS_TOO),
    Case(state="leases that writers break", program="files_locks",
         arguments=("lease_breaking_write",), options=LOCKS_TOO, restore_options=LOCKS_TOO,
         criu="sends the signal again"),
    Case(state="F_NOTIFY", program="files_locks", arguments=("notify",),
         refused="F_NOTIFY"),
)  # fmt: skip

OWNERS = (
    Case(state="owners of all kinds", program="files_owners", arguments=("kinds",),
         criu="cannot give signals to a thread"),
    Case(state="signals to owners", program="files_owners", arguments=("delivered",)),
    Case(state="owner set with other ids", program="files_owners", arguments=("of_child",)),
    Case(state="owner that has ended", program="files_owners", arguments=("dead",)),
    Case(state="owner is another process group", program="files_owners",
         arguments=("group_of_child",)),
    Case(state="owner outside of the tree", program="files_owners", arguments=("outside",),
         refused="task outside of the tree"),
)  # fmt: skip

QUEUES = (
    Case(state="pipes of all sizes", program="files_queues", arguments=("sizes",)),
    Case(state="pipes with one end, and more than two", program="files_queues",
         arguments=("ends",)),
    Case(state="pipes with packets", program="files_queues", arguments=("packets",),
         criu="takes no packets"),
    Case(state="a thousand pipes", program="files_queues", arguments=("many",)),
    Case(state="tasks that wait in pipes", program="files_queues", arguments=("waiting",)),
    Case(state="fifos", program="files_queues", arguments=("fifos",)),
    Case(state="spliced content of a pipe", program="files_queues", arguments=("splice",)),
    Case(state="pipe that leads out of the tree, as CRIU takes it", program="files_queues",
         arguments=("outside",)),
)  # fmt: skip

EVENTS = (
    Case(state="eventfd", program="files_events", arguments=("eventfds",),
         criu="changes large counts"),
    Case(state="timerfd", program="files_events", arguments=("timers",),
         changes={"info$": "timers run on"},
         criu="loses the ticks that were not counted yet"),
    Case(state="timerfd of clocks that wake", program="files_events", arguments=("alarm_timers",),
         criu="does not know these clocks"),
    Case(state="signalfd", program="files_events", arguments=("signalfds",)),
    Case(state="inotify", program="files_events", arguments=("inotify",),
         criu="loses IN_ONESHOT"),
    Case(state="inotify on deleted files", program="files_events", arguments=("inotify_gone",),
         changes={"fd 4 info": "the deleted file is a new inode"},
         criu="tells of its own work"),
    Case(state="inotify with queued events", program="files_events",
         arguments=("inotify_queued",)),
    Case(state="fanotify on inodes", program="files_events", arguments=("fanotify",)),
    Case(state="fanotify on mounts", program="files_events", arguments=("fanotify_mount",),
         criu="drops marks of file systems"),
)  # fmt: skip

PROC = (
    Case(state="/proc/self", program="files_proc", arguments=("own",)),
    Case(state="/proc of other tasks and threads", program="files_proc", arguments=("others",),
         criu="opens files of threads before there are any"),
    Case(state="/proc of dead tasks", program="files_proc", arguments=("dead",),
         criu="cannot stat /proc/PID/fd of a dead task"),
    Case(state="/proc of dead threads", program="files_proc", arguments=("dead_thread",),
         refused="a thread that has ended"),
    Case(state="/proc of a zombie", program="files_proc", arguments=("zombie",)),
    Case(state="/proc, /sys, cgroups", program="files_proc", arguments=("system",)),
    Case(state="namespace descriptors", program="files_proc", arguments=("namespaces",)),
    Case(state="/proc of a task outside of the tree", program="files_proc",
         arguments=("outside",), refused="outside of the tree"),
)  # fmt: skip

EPOLL = (
    Case(state="epoll five deep", program="files_epoll", arguments=("nested",)),
    Case(state="epoll flags", program="files_epoll", arguments=("flags",)),
    Case(state="one shots that have fired", program="files_epoll", arguments=("spent",),
         criu="has them watch for errors", options=("--tcp-established",),
         restore_options=("--tcp-established",)),
    Case(state="epoll of numbers that were closed", program="files_epoll",
         arguments=("closed_number",), criu="cannot add a target twice"),
    Case(state="epoll of two tasks", program="files_epoll", arguments=("shared",),
         criu="looks for a target in one task only"),
    Case(state="epoll over every kind", program="files_epoll", arguments=("every_kind",)),
    Case(state="hundreds of epolls and targets", program="files_epoll", arguments=("many",)),
    Case(state="a task that waits in a nested epoll", program="files_epoll",
         arguments=("waiting",)),
    Case(state="epoll of a target that is closed", program="files_epoll", arguments=("gone",)),
)  # fmt: skip

MOUNTS = (
    Case(state="a mount namespace with the same mounts", program="files_mounts",
         arguments=("same_mounts",), refused="mount namespace"),
    Case(state="a file below a mount of its own namespace", program="files_mounts",
         arguments=("other_mounts",), refused="mount namespace"),
    Case(state="a child with a mount namespace of its own", program="files_mounts",
         arguments=("child_elsewhere",), refused="mount namespace"),
)  # fmt: skip

NO_QUEUES = "takes no POSIX message queues"
MQUEUES = (
    Case(state="POSIX message queue with content", program="files_mqueue", arguments=("named",),
         criu=NO_QUEUES),
    Case(state="POSIX message queue with a notification", program="files_mqueue",
         arguments=("notified",), criu=NO_QUEUES),
    Case(state="deleted POSIX message queue", program="files_mqueue", arguments=("deleted",),
         criu=NO_QUEUES),
    Case(state="deleted POSIX message queue with content", program="files_mqueue",
         arguments=("deleted_full",), refused="holds messages"),
)  # fmt: skip

TOGETHER = (
    Case(state="files of many kinds", program="files_regular",
         changes={r"fd \d+$": "the inode number is the name of an O_TMPFILE"},
         options=LOCKS_TOO, restore_options=LOCKS_TOO, criu="loses the right to link"),
    Case(state="pipes, fifos, epoll and pidfd", program="files_pipes"),
)  # fmt: skip

CASES: tuple[Case, ...] = (
    *FLAGS, *GONE, *ROOTS, *LOCKS, *OWNERS, *QUEUES, *EVENTS, *PROC, *EPOLL, *MOUNTS, *MQUEUES,
    *TOGETHER,
)  # fmt: skip
