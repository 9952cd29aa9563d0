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

CASES: tuple[Case, ...] = (
    Case(state="private, heap, stack, files, madvise, mlock", program="core_memory"),
    Case(state="pages shared copy-on-write after fork", program="core_cow"),
    Case(state="shared memory that tasks write all the time", program="core_shared", busy=True),
    Case(
        state="System V segments",
        program="core_sysv",
        criu="takes System V memory only with its ipc namespace",
    ),
    *(
        Case(state=text, program="memory_shared", arguments=(name,))
        for name, text in SHARED.items()
    ),
)
