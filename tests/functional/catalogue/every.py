# SPDX-License-Identifier: Apache-2.0
"""All entries, by area."""

from tests.functional.catalogue import devices, files, memory, sockets, tasks
from tests.functional.catalogue.case import Case

AREAS: dict[str, tuple[Case, ...]] = {
    "tasks": tasks.CASES,
    "memory": memory.CASES,
    "files": files.CASES,
    "devices": devices.CASES,
    "sockets": sockets.CASES,
}
CASES = tuple(case for cases in AREAS.values() for case in cases)
