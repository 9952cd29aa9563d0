# SPDX-License-Identifier: Apache-2.0
"""Memory and System V IPC."""

from tests.functional.catalogue.case import Case

CASES: tuple[Case, ...] = (
    Case(state="private, heap, stack, files, madvise, mlock", program="core_memory"),
    Case(state="pages shared copy-on-write after fork", program="core_cow"),
    Case(state="shared memory that tasks write all the time", program="core_shared", busy=True),
    Case(
        state="System V segments",
        program="core_sysv",
        criu="takes System V memory only with its ipc namespace",
    ),
)
