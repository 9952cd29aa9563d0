# SPDX-License-Identifier: Apache-2.0
"""What the support matrix says beyond the table of kinds: who reads whose images, and which tests.

Cells about CRIU say only what a test of this repository shows: `tested` when the other side
restores it there, `same messages` when the images hold it in CRIU's messages (whose schema
a test compares with pycriu's) and nothing more is proved.
"""

from dataclasses import dataclass

SAME, TESTED, OWN = "same messages", "tested", "own file only"
FILES_FROM_CRIU = "tests/compat/test_files_from_criu.py"
FILES_TO_CRIU = "tests/compat/test_files_to_criu.py"
REGULAR = "tests/functional/workloads/files_regular.py"
PIPES = "tests/functional/workloads/files_pipes.py"
EVENTS = "tests/functional/workloads/files_events.py"
ANONYMOUS = "tests/functional/workloads/files_anonymous.py"
PTY = "tests/functional/workloads/devices_pty.c"
UNIX = "tests/functional/workloads/sockets_unix.py"
MORE = "tests/functional/workloads/sockets_more.py"
INTERNET = "tests/functional/workloads/sockets_internet.py"
INET = "tests/functional/workloads/sockets_inet.py"
NAMES = "tests/functional/workloads/sockets_names.py"
STATES = "tests/functional/workloads/sockets_states.py"
BACKLOG = "tests/functional/workloads/sockets_backlog.py"
QUEUES = "tests/functional/workloads/sockets_queues.py"
CREDENTIALS = "tests/functional/workloads/sockets_credentials.py"
SCM = "tests/functional/workloads/sockets_scm.py"
OPTIONS = "tests/functional/workloads/sockets_options.py"
DATAGRAM = "tests/functional/workloads/sockets_datagram.py"
TCP = "tests/functional/workloads/sockets_tcp.py"
CATALOGUE = "tests/compat/test_catalogue.py"
TASK_STATE = "tests/functional/workloads/task_state.py"
CORE = "tests/functional/workloads/core_"
TASKS = "tests/functional/workloads/tasks_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """A row: ``tests`` are paths of this repository, live workloads first."""

    tests: tuple[str, ...] = ()
    ours: str = SAME
    """CRIU reads ours."""
    theirs: str = SAME
    """We read CRIU's."""
    is_taken: bool = True


REFUSED = Support(
    is_taken=False, ours="–", theirs="refused", tests=("tests/functional/test_files_live.py",)
)

KINDS: dict[str, Support] = {
    "eventfd": Support(
        ours=f"{SAME}; loses EFD_SEMAPHORE", theirs=f"{SAME}; without EFD_SEMAPHORE",
        tests=(ANONYMOUS,),
    ),
    "signalfd": Support(tests=(ANONYMOUS,)),
    "timerfd": Support(ours=f"{SAME}; absolute timers as time left", tests=(ANONYMOUS,)),
    "inotify": Support(theirs=f"{SAME}; needs --force-irmap", tests=(EVENTS, ANONYMOUS)),
    "fanotify": Support(
        ours=f"{SAME}; without marks of file systems", theirs=f"{SAME}; needs --force-irmap",
        tests=(EVENTS,),
    ),
    "pipe": Support(ours=TESTED, theirs=TESTED, tests=(PIPES, FILES_FROM_CRIU, FILES_TO_CRIU)),
    "fifo": Support(ours=TESTED, theirs=TESTED, tests=(PIPES, FILES_FROM_CRIU, FILES_TO_CRIU)),
    "unix socket": Support(
        ours=f"{SAME}; without senders of datagrams, credentials, names other than the last",
        tests=(
            UNIX, NAMES, STATES, BACKLOG, QUEUES, CREDENTIALS, SCM,
            "tests/functional/test_sockets_unix.py", CATALOGUE,
        ),
    ),
    "TCP and UDP socket": Support(
        ours=TESTED, theirs=TESTED,
        tests=(
            INET, TCP, INTERNET, DATAGRAM, OPTIONS, "tests/functional/test_sockets_inet.py",
            CATALOGUE,
        ),
    ),
    "netlink socket": Support(tests=(MORE, INET, "tests/functional/test_sockets_netlink.py")),
    "packet socket": Support(
        ours=TESTED, theirs=TESTED,
        tests=("tests/functional/workloads/sockets_packet.py", CATALOGUE),
    ),
    "other sockets": Support(
        is_taken=False, ours="–", theirs="refused",
        tests=(MORE, "tests/functional/test_sockets_netlink.py", CATALOGUE),
    ),
    "pidfd": Support(ours=TESTED, theirs=TESTED, tests=(PIPES, FILES_FROM_CRIU, FILES_TO_CRIU)),
    "BPF map": Support(tests=("tests/functional/workloads/devices_bpf.c",)),
    "io_uring": Support(
        ours="–", theirs="–", tests=("tests/functional/workloads/devices_uring.c",),
    ),
    "memfd": Support(ours=f"{SAME}; not the content of one that is not mapped", tests=(ANONYMOUS,)),
    "procfs": Support(theirs=TESTED, tests=(REGULAR, FILES_FROM_CRIU)),
    "message queue": Support(
        ours=OWN, theirs="–", tests=("tests/functional/workloads/files_mqueue.py",)
    ),
    "namespace": Support(
        ours=TESTED, theirs=TESTED, tests=("tests/functional/workloads/files_proc.py",)
    ),
    "device": Support(theirs=TESTED, tests=(REGULAR, FILES_FROM_CRIU)),
    "tun": Support(
        ours="the same messages; CRIU takes them with a network namespace only",
        theirs="with a network namespace only, which is refused",
        tests=("tests/functional/workloads/devices_tun.py", "tests/functional/test_tun.py"),
    ),
    "path of a socket": Support(tests=(NAMES,)),
    "regular": Support(
        ours=f"{SAME}; an O_TMPFILE cannot be linked any more", theirs=TESTED,
        tests=(REGULAR, FILES_FROM_CRIU),
    ),
    "terminal": Support(
        ours=f"{TESTED}; loses unusual states, see the catalogue", theirs=TESTED,
        tests=(PTY, "tests/functional/catalogue/devices.py", "tests/compat/test_catalogue.py"),
    ),
    "refused": REFUSED,
    "epoll": Support(ours=TESTED, theirs=TESTED, tests=(PIPES, FILES_FROM_CRIU, FILES_TO_CRIU)),
}  # fmt: skip

STATE: dict[str, Support] = {
    "main threads that have ended before others": Support(
        ours="refused by CRIU",
        theirs="–",
        tests=(f"{TASKS}main_ended.c", "tests/compat/test_main_ended.py"),
    ),
    "tree: sessions, groups, zombies, orphans, stopped tasks, old pids": Support(
        ours="tested, but for orphans",
        theirs="tested, but for orphans",
        tests=(
            "tests/functional/workloads/tasks_tree.c",
            f"{CORE}tree.py",
            f"{CORE}stopped.py",
            FILES_FROM_CRIU,
            FILES_TO_CRIU,
        ),
    ),
    "threads: registers with all XSAVE state, TLS, robust lists, rseq": Support(
        tests=(f"{CORE}threads.c", f"{CORE}busy.c")
    ),
    "system calls that were interrupted": Support(tests=(f"{CORE}blocked.c", f"{TASKS}waiting.c")),
    "signals: actions, masks, queues, alternative stacks": Support(
        ours=TESTED, theirs=TESTED, tests=(f"{TASKS}signals.c", f"{CORE}signals.c")
    ),
    "timers: itimers, POSIX timers": Support(
        ours="tested, but for overruns",
        theirs="tested, but for overruns",
        tests=(f"{TASKS}timers.c", f"{CORE}signals.c"),
    ),
    "name, arguments, environment, exe, cwd, root, umask": Support(
        ours="tested, but for root", tests=(f"{CORE}identity.py", FILES_TO_CRIU)
    ),
    "limits, niceness, scheduling, affinity": Support(tests=(f"{CORE}settings.py",)),
    "prctl state: dumpable, no_new_privs, subreaper, pdeathsig, THP, TSC, MCE, MDWE": Support(
        ours=f"{SAME}; what CRIU has no field for in our own file",
        tests=(TASK_STATE, f"{CORE}tree.py"),
    ),
    "ids, groups, capabilities, securebits": Support(tests=(f"{CORE}user.py", TASK_STATE)),
    "seccomp filters, strict mode": Support(
        tests=(f"{CORE}seccomp.c", f"{TASKS}strict.c", TASK_STATE)
    ),
    "memory: private, heap, stack, files, madvise, mlock": Support(
        theirs="tested: private, files", tests=(f"{CORE}memory.c", FILES_FROM_CRIU)
    ),
    "memory: shared copy-on-write after fork": Support(tests=(f"{CORE}cow.c",)),
    "memory: shared anonymous, between tasks too": Support(tests=(f"{CORE}memory.c",)),
    "memory: System V segments": Support(ours=OWN, theirs="not taken", tests=(f"{CORE}sysv.c",)),
    "memory: rings of events (io_setup)": Support(
        ours=TESTED,
        theirs=TESTED,
        tests=("tests/functional/workloads/devices_aio.c", "tests/compat/test_catalogue.py"),
    ),
    "vDSO, also of another kernel": Support(tests=("tests/functional/test_vdso.py",)),
    "file locks": Support(
        theirs=TESTED, tests=(REGULAR, "tests/functional/test_files_plans.py", FILES_FROM_CRIU)
    ),
}
