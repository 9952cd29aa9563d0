# SPDX-License-Identifier: Apache-2.0
"""Tasks, threads, credentials, signals, timers."""

from tests.functional.catalogue.case import Case

BLOCKED = (
    "read", "write", "poll", "poll_timed", "ppoll", "select", "epoll_wait", "epoll_wait_timed",
    "futex", "futex_timed", "nanosleep", "nanosleep_absolute", "recv", "recv_timed", "accept",
    "wait4", "sigwaitinfo", "sigtimedwait", "sigsuspend", "read_eventfd",
)  # fmt: skip
SAYS_INTERRUPTED = (
    "poll", "poll_timed", "nanosleep", "futex_timed", "epoll_wait", "epoll_wait_timed",
    "recv_timed", "sigwaitinfo", "sigtimedwait",
)  # fmt: skip
OTHER_USER = "may not read the limits of another user's task without CAP_SYS_RESOURCE"

NO_ORPHANS = "cannot make orphans again on the host: they would go to its init"
NO_SHARED_TABLES = "shares tables neither between siblings nor, of directories, at all"
TREES = {
    "orphans": ("orphans of an ended session leader", NO_ORPHANS),
    "orphan_groups": ("orphans of an ended session leader, in groups of their own", NO_ORPHANS),
    "zombie_leader": ("orphans of a session leader that nobody has waited for", NO_ORPHANS),
    "living_session": ("an orphan whose session leader lives in another branch", NO_ORPHANS),
    "two_reapers": ("orphans at a subreaper inside of the tree", NO_ORPHANS),
    "sessions_left": ("tasks in a session that their parents have left", ""),
    "group_elsewhere": ("a process group with members in several branches", ""),
    "files_of_parent": ("a descriptor table shared with the parent", ""),
    "files_of_sibling": ("a descriptor table shared with a sibling", NO_SHARED_TABLES),
    "fs_of_parent": ("directories and umask shared with the parent", NO_SHARED_TABLES),
    "fs_of_sibling": ("directories and umask shared with a sibling", NO_SHARED_TABLES),
    "zombies": ("zombies, ended and killed, leading sessions and groups", ""),
    "exit_signal": ("exit signals other than SIGCHLD", "has no place for it in its images"),
}

CASES: tuple[Case, ...] = (
    Case(state="threads: registers, TLS, robust lists, rseq", program="core_threads"),
    Case(state="signals: actions, masks, queues, alternative stacks", program="core_signals"),
    Case(state="SIGTRAP handled", program="tasks_trap", arguments=("handled",)),
    Case(
        state="SIGTRAP ignored",
        program="tasks_trap",
        arguments=("ignored",),
        criu="comes back with the default action",
    ),
    Case(state="tree: sessions, groups, zombies", program="core_tree"),
    Case(state="name, arguments, environment, exe, cwd, umask", program="core_identity"),
    Case(state="tasks stopped by a signal", program="core_stopped"),
    Case(
        state="limits, niceness, scheduling, affinity",
        program="core_settings",
        criu="does not keep the affinity",
    ),
    Case(state="seccomp filters", program="core_seccomp"),
    Case(state="ids, groups, capabilities", program="core_user", criu=OTHER_USER),
    Case(state="a tree that computes all the time", program="core_busy", busy=True),
    Case(state="threads that come and go", program="core_threaded", busy=True),
    *(
        Case(state=state, program="tasks_tree", arguments=(mode,), criu=why)
        for mode, (state, why) in TREES.items()
    ),
    *(
        Case(
            state=f"a child in a {kind} namespace of its own",
            program="tasks_namespace",
            arguments=(kind,),
            refused="in a namespace of its own below the root.*namespace",
        )
        for kind in ("net", "mnt", "uts", "ipc", "pid", "time", "cgroup")
    ),
    *(
        Case(
            state=f"blocked in {call}",
            program="core_blocked",
            arguments=(call,),
            criu="tells the program that the call was interrupted"
            if call in SAYS_INTERRUPTED
            else "",
        )
        for call in BLOCKED
    ),
)
