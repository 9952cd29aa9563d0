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
    "recv_timed", "sigwaitinfo", "sigtimedwait", "epoll_pwait", "semop", "semtimedop",
)  # fmt: skip
WAITING = (
    "select_timed", "pselect_timed", "ppoll_timed", "epoll_pwait", "semop", "semtimedop", "msgrcv",
    "flock", "ofd_lock", "mutex", "mutex_pi", "condition", "sem_wait", "pause", "waitid",
    "open_fifo", "read_timerfd", "read_signalfd", "read_inotify", "join",
)  # fmt: skip
OTHER_USER = "may not read the limits of another user's task without CAP_SYS_RESOURCE"

STATES = (
    "plain", "fsuid", "securebits", "locked_securebits", "keepcaps", "keepcaps_of_a_user", "user",
    "ambient", "ambient_not_to_be_raised", "bounding", "pdeathsig", "pdeathsig_of_a_user",
    "subreaper", "not_dumpable", "thp_disable", "timerslack", "ioprio", "oom_score_adj", "umask",
    "personality", "personality_read_implies_exec", "core_limit", "limits", "no_new_privs", "nice",
    "batch", "idle", "round_robin", "fifo", "deadline", "policies_of_threads", "ioprio_realtime",
    "ioprio_idle", "ioprio_of_threads", "affinity", "loginuid", "thread", "credentials_of_threads",
    "many_groups", "dropped_capabilities", "mce_kill_early", "mce_kill_late", "mdwe",
    "memory_merge", "thp_disable_but_advised", "membarrier", "coredump_filter",
    "filter_that_logs", "filters_of_threads", "filter_without_no_new_privs", "autogroup", "numa",
)  # fmt: skip
LOST_BY_CRIU = (
    "ambient_not_to_be_raised", "pdeathsig", "timerslack", "ioprio", "personality",
    "personality_read_implies_exec", "deadline", "ioprio_realtime", "ioprio_idle",
    "ioprio_of_threads", "affinity", "thread", "mce_kill_early", "mce_kill_late", "mdwe",
    "memory_merge", "thp_disable_but_advised", "coredump_filter", "filter_without_no_new_privs",
    "autogroup", "numa",
)  # fmt: skip
OF_ANOTHER_USER = ("keepcaps_of_a_user", "user", "ambient", "pdeathsig_of_a_user")
STATES_REFUSED = {"process_keyring": "a keyring of its own"}
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

TELLS_AGAIN = "sends SIGCHLD again, and lets the parent wait again"
STOPS = {
    "told": "a stopped child of which the parent has been told",
    "untold": "a stopped child that the parent has not waited for",
    "by_terminal": "a child stopped by SIGTSTP",
    "threads": "a stopped child with threads",
    "pending": "a stopped child for which a signal waits",
}

TIMERS = {
    "kinds": "POSIX timers of all clocks and notifications, ids with gaps",
    "intervals": "interval timers of three clocks",
    "overrun": "a POSIX timer with overruns and its signal blocked",
    "once": "a POSIX timer that has expired, with its signal blocked",
    "periodic": "a POSIX timer that ticks while it is moved",
    "periodic_other": "a POSIX timer that ticks for another thread",
}

ODD = {
    "names": "names of threads with brackets, line breaks, and no text",
    "many_threads": "three hundred threads",
    "raw_clone": "a thread that no libc knows of",
    "dead_owner": "robust locks, and one that lends priority, whose owner ends later",
    "moved_arguments": "arguments that were moved by PR_SET_MM_MAP",
    "no_arguments": "an empty argument vector and a huge environment",
}

MAIN_ENDED = {
    "child": "a main thread that has ended before others",
    "root": "a main thread of the root that has ended before others",
    "user": "a main thread that has ended as another user than its threads",
    "mask": "a main thread that has ended with signals blocked",
    "children": "a main thread that has ended before others, with children and a zombie",
    "stopped": "a stopped task whose main thread has ended",
    "last_thread": "a main thread that has ended before others, which then end one by one",
}

REFUSED = {
    "vfork": ("a parent that waits inside of vfork", "shares its whole memory"),
    "landlock": ("a landlock domain", "a landlock domain"),
    "traced": ("a task with a tracer", r"is traced.*\(tasks_refused"),
    "clone_vm": ("memory shared by clone without CLONE_THREAD", "shares its whole memory"),
}

SIGNALS = {
    "shapes": "pending signals with siginfo of all shapes",
    "shapes_of_thread": "signals of all shapes that wait for one thread",
    "queue": "three hundred queued signals with values",
    "flags": "actions of all signals with all flags",
    "altstack": "a handler that runs on an alternate stack",
    "autodisarm": "a handler on an alternate stack with SS_AUTODISARM",
    "nested": "a handler inside of a handler on the alternate stack",
    "no_zombies": "children that leave no zombies (SA_NOCLDWAIT)",
    "ignored_children": "SIGCHLD ignored",
}

CASES: tuple[Case, ...] = (
    Case(state="threads: registers, TLS, robust lists, rseq", program="core_threads"),
    Case(state="signals: actions, masks, queues, alternative stacks", program="core_signals"),
    Case(state="SIGTRAP handled", program="tasks_trap", arguments=("handled",)),
    Case(
        state="SIGTRAP queued to a task and a thread",
        program="tasks_trap",
        arguments=("pending",),
        criu="takes the signal for one of its own stops: the dump fails",
    ),
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
    Case(
        state="PR_SET_TSC of each thread",
        program="tasks_tsc",
        criu="does not keep PR_SET_TSC",
    ),
    Case(state="seccomp strict mode, of a task and of a thread", program="tasks_strict"),
    Case(state="seccomp filters", program="core_seccomp"),
    Case(state="ids, groups, capabilities", program="core_user", criu=OTHER_USER),
    Case(state="a tree that computes all the time", program="core_busy", busy=True),
    Case(state="threads that come and go", program="core_threaded", busy=True),
    *(
        Case(
            state=f"settings: {name.replace('_', ' ')}",
            program="task_state",
            arguments=(name,),
            criu=OTHER_USER
            if name in OF_ANOTHER_USER
            else "does not keep it"
            if name in LOST_BY_CRIU
            else "",
        )
        for name in STATES
    ),
    *(
        Case(
            state=f"settings: {name.replace('_', ' ')}",
            program="task_state",
            arguments=(name,),
            refused=text,
        )
        for name, text in STATES_REFUSED.items()
    ),
    *(
        Case(state=state, program="tasks_stopped", arguments=(mode,), criu=TELLS_AGAIN)
        for mode, state in STOPS.items()
    ),
    *(
        Case(
            state=state,
            program="tasks_timers",
            arguments=(mode,),
            criu="loses overruns that were not taken" if mode == "overrun" else "",
            busy=mode in ("overrun", "periodic", "periodic_other"),
        )
        for mode, state in TIMERS.items()
    ),
    *(
        Case(state=state, program="tasks_tree", arguments=(mode,), criu=why)
        for mode, (state, why) in TREES.items()
    ),
    Case(
        state="a sleep until a deadline of CLOCK_MONOTONIC",
        program="tasks_clocks",
        arguments=("goes_on",),
    ),
    Case(
        state="a time namespace for its children only",
        program="tasks_clocks",
        arguments=("for_children",),
        refused="another namespace than the engine.*time namespace",
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
    *(
        Case(
            state=f"blocked in {call}",
            program="tasks_waiting",
            arguments=(call,),
            criu="tells the program that the call was interrupted"
            if call in SAYS_INTERRUPTED
            else "takes locks only when it is told to (--file-locks)"
            if "lock" in call
            else "ends the program at times"
            if call == "join"
            else "",
        )
        for call in WAITING
    ),
    *(Case(state=state, program="tasks_odd", arguments=(mode,)) for mode, state in ODD.items()),
    *(
        Case(
            state=state,
            program="tasks_main_ended",
            arguments=(mode,),
            criu="does not support zombies with threads",
        )
        for mode, state in MAIN_ENDED.items()
    ),
    *(
        Case(state=state, program="tasks_refused", arguments=(mode,), refused=text)
        for mode, (state, text) in REFUSED.items()
    ),
    *(
        Case(
            state=state,
            program="tasks_signals",
            arguments=(mode,),
            criu="cannot queue what the kernel has sent to a thread"
            if mode == "shapes_of_thread"
            else "",
        )
        for mode, state in SIGNALS.items()
    ),
)
