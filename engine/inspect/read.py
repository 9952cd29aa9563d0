# SPDX-License-Identifier: Apache-2.0
"""Reading an image directory, torpor's or CRIU's, into `Images`.

Only messages are read, not what a restore needs: so images of another architecture, or with
kinds that torpor does not restore, can be shown as well.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from torpor.engine.errors import BadImage
from torpor.engine.images import manifest, references
from torpor.engine.images.directory import INVENTORY, ImageDirectory, Verify
from torpor.engine.images.failures import readable
from torpor.engine.images.kinds import file_name
from torpor.engine.images.pages import read_pagemap
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.source import Source
from torpor.engine.images.stats import read_dump_stats
from torpor.engine.inspect import memory
from torpor.engine.inspect.descriptors import Descriptions
from torpor.engine.inspect.model import Images, Origin, Pause, Segment, Task, Thread
from torpor.engine.text import name

STATES = {1: "running", 2: "zombie", 3: "stopped", 6: "zombie", 7: "main thread ended"}
NAMESPACES = {"pidns": "pid", "utsns": "uts", "ipcns-var": "ipc", "mountpoints": "mount",
              "netns": "network", "userns": "user"}  # fmt: skip
"""Images that are there when the tree had a namespace of its own."""
MAX_CHAIN = 1 << 12

MessageT = TypeVar("MessageT", bound=Message)


def read(path: Path, *, verify: Verify = Verify.ALL) -> Images:
    """Read a directory.

    Raises:
        BadImage: it is none, damaged, or does not fit together.
    """
    with ImageDirectory.open(path, verify=verify) as images:
        inventory = images.message("inventory", pb.inventory_entry)
        with readable(manifest.NAME):
            origin = _origin(images, inventory)
            warnings = tuple(map(str, images.facts.get("dump", {}).get("warnings") or ()))
            steps = _steps(images)
        reader = _Reader(images)
        references.check(images, reader.source)
        tasks = tuple(reader.tasks())
        stats = read_dump_stats(images)
        return Images(
            path=str(path), origin=origin,
            format_version=inventory.img_version, architecture=reader.architecture,
            files=len(images.names), size_bytes=sum(_sizes(images)),
            verified=_verified(images, verify), tasks=tasks,
            segments=tuple(_segments(images)),
            pause=Pause(freezing_s=stats.freezing_s, frozen_s=stats.frozen_s,
                        pages_written=stats.pages_written + stats.shared_pages_written,
                        steps_s=steps)
            if stats else None,
            namespaces=tuple(_namespaces(images)), hostname=_hostname(images),
            tcp_close=inventory.tcp_close,
            warnings=warnings,
        )  # fmt: skip


def _steps(images: ImageDirectory) -> dict[str, float]:
    found = images.facts.get("dump", {}).get("pause_s") or {}
    return {str(name): float(seconds) for name, seconds in found.items()}


def _origin(images: ImageDirectory, inventory: pb.inventory_entry) -> Origin:
    dump = images.facts.get("dump", {})
    written = os.stat(INVENTORY, dir_fd=images.fd).st_mtime
    uptime = inventory.dump_uptime / 1e6 if inventory.HasField("dump_uptime") else None
    return Origin(
        tool="torpor" if images.manifest is not None else "CRIU",
        time=str(dump.get("time") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(written))),
        approximate="time" not in dump,
        machine={str(k): str(v) for k, v in (dump.get("machine") or {}).items()},
        uptime_s=uptime,
    )


def _verified(images: ImageDirectory, verify: Verify) -> str:
    if images.manifest is None:
        return "no digests to check"
    return {
        Verify.ALL: "all digests match",
        Verify.WITHOUT_PAGES: "all digests match but those of pages, which were not checked",
        Verify.NOTHING: "digests were not checked",
    }[verify]


def _sizes(images: ImageDirectory) -> Iterator[int]:
    for image in images.names:
        yield os.stat(file_name(image), dir_fd=images.fd, follow_symlinks=False).st_size


def _segments(images: ImageDirectory) -> Iterator[Segment]:
    for image in images.names:
        if image.startswith("pagemap-shmem-"):
            pagemap = read_pagemap(images, image)
            yield Segment(name=image.removeprefix("pagemap-shmem-"),
                          stored_bytes=pagemap.stored_bytes)  # fmt: skip


def _namespaces(images: ImageDirectory) -> Iterator[str]:
    stems = {image.rstrip("0123456789").removesuffix("-") for image in images.names}
    yield from (word for stem, word in NAMESPACES.items() if stem in stems)


def _hostname(images: ImageDirectory) -> str | None:
    for image in images.names:
        if image.startswith("utsns-"):
            return name(images.message(image, pb.utsns_entry).nodename)
    return None


class _Reader:
    """Reads tasks; knows which descriptor tables have been seen."""

    def __init__(self, images: ImageDirectory) -> None:
        self.images = images
        self.architecture = ""
        self.source = Source(images)
        self._descriptions = Descriptions(images, self.source)
        self._owner: dict[int, int] = {}
        self._filters = [
            f.prev if f.HasField("prev") else None
            for message in images.messages("seccomp", pb.seccomp_entry)
            for f in message.seccomp_filters
        ]

    def tasks(self) -> Iterator[Task]:
        """Tasks, parents before children."""
        seen: set[int] = set()
        for entry in self.images.messages("pstree", pb.pstree_entry):
            if entry.pid in seen or (seen and entry.ppid not in seen):
                raise BadImage("a task appears twice or before its parent",
                               subject=f"pstree.img, task {entry.pid}")  # fmt: skip
            seen.add(entry.pid)
            yield self._task(entry)
        if not seen:
            raise BadImage("there are no tasks", subject="pstree.img")

    def _task(self, entry: pb.pstree_entry) -> Task:
        core = self.images.message(f"core-{entry.pid}", pb.core_entry)
        tc = core.tc
        self.architecture = self.architecture or pb.core_entry.march.Name(core.mtype).lower()
        state = STATES.get(tc.task_state, f"state {tc.task_state}")
        pid, ppid, pgid, sid, comm = entry.pid, entry.ppid, entry.pgid, entry.sid, name(tc.comm)
        if state == "zombie":
            return Task(pid=pid, ppid=ppid, pgid=pgid, sid=sid, state=state, comm=comm,
                        exit_status=_ended(tc.exit_code))  # fmt: skip
        ids = core.ids if core.HasField("ids") else self._one(f"ids-{pid}", pb.task_kobj_ids_entry)
        fs = self._one(f"fs-{pid}", pb.fs_entry)
        mm = self._one(f"mm-{pid}", pb.mm_entry)
        owner = self._owner.setdefault(ids.files_id, pid)
        pagemap = memory.pagemap_of(self.images, pid)
        creds = core.thread_core.creds
        return Task(
            pid=pid, ppid=ppid, pgid=pgid, sid=sid, state=state, comm=comm,
            exe=self._descriptions.path(mm.exe_file_id),
            args=memory.arguments(self.images, mm, pagemap),
            cwd=self._descriptions.path(fs.cwd_id), root=self._descriptions.path(fs.root_id),
            uid=creds.uid, gid=creds.gid, seccomp_filters=self._chain(core.thread_core),
            threads=tuple(self._threads(entry, comm)),
            descriptors=tuple(self._descriptions.table(self.images, ids.files_id))
            if owner == pid else (),
            shares_descriptors_of=owner if owner != pid else None,
            memory=memory.summarise(mm, pagemap),
        )  # fmt: skip

    def _one(self, image: str, message_type: type[MessageT]) -> MessageT:
        return self.images.message(image, message_type)

    def _threads(self, entry: pb.pstree_entry, comm: str) -> Iterator[Thread]:
        for tid in entry.threads or [entry.pid]:
            core = self._one(f"core-{tid}", pb.core_entry)
            yield Thread(tid=tid, comm=name(core.thread_core.comm) or comm)

    def _chain(self, thread: pb.thread_core_entry) -> int:
        """Number of seccomp filters of a thread."""
        if thread.seccomp_mode != pb.filter:
            return 0
        length = 0
        index: int | None = thread.seccomp_filter
        while index is not None and index < len(self._filters) and length < MAX_CHAIN:
            length, index = length + 1, self._filters[index]
        return length


def _ended(status: int) -> str:
    """Wait status in words."""
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"exit code {os.WEXITSTATUS(status)}"
