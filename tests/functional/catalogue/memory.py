# SPDX-License-Identifier: Apache-2.0
"""Memory and System V IPC."""

from tests.functional.catalogue.case import Case

SHARED = {
    "holes": "shared anonymous memory with holes",
    "swapped": "pieces of shared anonymous memory in another order, some twice",
    "siblings": "shared by children whose parent has unmapped it",
    "cousins": "shared by tasks of different branches at different places",
    "protected": "shared anonymous memory of any protection, touched or not",
    "dev_zero": "mappings of /dev/zero",
    "memfd_closed": "memfd that is mapped and open nowhere",
    "memfd_private": "private mappings of memfds",
    "memfd_unmapped": "memfds that are mapped in part, or not at all",
    "memfd_seals": "seals of memfds",
}

FILES = {
    "own_pages": "private file mappings with own pages behind every protection",
    "deleted_shared": "shared mapping of a deleted file",
    "deleted_private": "private mapping of a deleted file",
    "deleted_open": "mapping of a deleted file that is open, too",
    "replaced": "mapping of a file in whose place is another one now",
    "posix_shm": "POSIX shared memory, named and unlinked",
    "beyond": "mappings beyond the end of a file",
    "none": "PROT_NONE over content, other protection in a child",
    "lost_program": "a program whose file was deleted",
    "memfd_program": "a program that was executed from a memfd",
}
FLAGS = {
    "grows_down": "MAP_GROWSDOWN, grown",
    "mlock": "mlock",
    "mlock_onfault": "mlock2 with MLOCK_ONFAULT",
    "mlockall_current": "mlockall(MCL_CURRENT)",
    "mlockall_future": "mlockall(MCL_CURRENT | MCL_FUTURE)",
    "mlockall_onfault": "mlockall with MCL_ONFAULT",
    "advice": "every lasting madvise",
    "advice_of_child": "WIPEONFORK and DONTFORK seen from a child",
    "freed": "MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_DONTNEED",
    "guards": "guard regions",
    "droppable": "MAP_DROPPABLE",
    "sealed": "mseal",
    "keys": "memory protection keys",
}
EDGES = {
    "sparse": "terabytes with a few pages",
    "areas": "32,000 areas",
    "lowest": "the lowest and the highest page",
    "brk_moved": "heap that was shrunk",
    "brk_none": "heap of no size",
    "vdso_moved": "vDSO elsewhere than where it was mapped",
    "vdso_of_child": "a child with its vDSO elsewhere than its parent",
    "generations": "copy-on-write pages over five generations",
    "merged": "pages that are merged (KSM)",
    "executed": "a child that has executed a program",
    "stack_gone": "the initial stack unmapped",
    "stack_rights": "a page of the stack with other rights",
    "stack_top": "the first page of the stack with other rights",
}

HUGE = {
    "private": "private memory of reserved huge pages",
    "shared": "shared memory of reserved huge pages",
    "copied": "reserved huge pages copy-on-write after fork",
    "memfd": "memfd of reserved huge pages, mapped twice",
    "unmapped": "memfd of reserved huge pages that is not mapped",
    "sysv": "System V segment of reserved huge pages",
}

SYSV = {
    "pieces": "System V segment that is attached in pieces",
    "marked": "System V segment that is marked for destruction",
    "read_only": "System V segment attached read-only, for execution, without access",
    "semaphores": "System V semaphores, and what SEM_UNDO will undo",
    "messages": "System V message queue",
}
REFUSED = {
    "userfaultfd": ("memory registered with userfaultfd", "userfaultfd"),
    "secret": ("memory of memfd_secret", "secret"),
}
WITH_NAMESPACE = "takes System V memory only with its ipc namespace"
NOT_FOR_CRIU = {
    **dict.fromkeys(("pieces", "marked", "read_only", "sysv"), WITH_NAMESPACE),
    "semaphores": "forgets what is to be undone",
    "mlockall_future": "forgets mlockall(MCL_FUTURE)",
    "mlockall_onfault": "forgets mlockall(MCL_FUTURE)",
    "sealed": "forgets seals",
    "memfd_program": "looks for the program among files with a name",
}
PROGRAMS = {
    "shared": SHARED,
    "files": FILES,
    "flags": FLAGS,
    "edges": EDGES,
    "sysv": SYSV,
    "huge": HUGE,
}

CASES: tuple[Case, ...] = (
    Case(state="private, heap, stack, files, madvise, mlock", program="core_memory"),
    Case(state="pages shared copy-on-write after fork", program="core_cow"),
    Case(state="shared memory that tasks write all the time", program="core_shared", busy=True),
    Case(
        state="System V segments",
        program="core_sysv",
        criu=WITH_NAMESPACE,
    ),
    *(
        Case(
            state=text,
            program=f"memory_{program}",
            arguments=(name,),
            criu=NOT_FOR_CRIU.get(name, ""),
        )
        for program, states in PROGRAMS.items()
        for name, text in states.items()
    ),
    *(
        Case(state=text, program="memory_refused", arguments=(name,), refused=refused)
        for name, (text, refused) in REFUSED.items()
    ),
)
