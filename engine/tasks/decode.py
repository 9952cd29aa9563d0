# SPDX-License-Identifier: Apache-2.0
"""The tree of tasks read from CRIU's messages and from what `encode` keeps beside them."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import index
from typing import Any

from torpor.engine.errors import BadImage
from torpor.engine.images.failures import readable
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import ImageSource
from torpor.engine.memory import areaimages, marks, policies
from torpor.engine.memory.areaimages import MappedFiles, MemfdInode
from torpor.engine.tasks import checks, creds, registers, signals, timers
from torpor.engine.tasks.attributes import Scheduling
from torpor.engine.tasks.cgroups import OWN_SET
from torpor.engine.tasks.encode import MARKERS
from torpor.engine.tasks.model import (
    ALIVE,
    DEAD,
    MAIN_ENDED,
    SIGCHLD,
    EndedThread,
    Memory,
    TaskImage,
    ThreadImage,
    Tree,
)
from torpor.engine.tasks.registers import Component
from torpor.engine.tasks.seccomp import Filter


def decode_tree(
    images: ImageSource, components: tuple[Component, ...], template: bytes
) -> tuple[Tree, Mapping[int, int]]:
    """The tree, and the number of each task's descriptor table (for fdinfo-N).

    Raises:
        BadImage: a file is missing or says something that does not fit.
    """
    files = MappedFiles(
        paths={
            int(number): message.name.decode("utf-8", "surrogateescape")
            for number, message in images.files("REG")
        },
        memfds=_read_memfds(images),
        nameless={remap.orig_id for remap, _ in images.entries("remap-fpath")},
    )
    filters = _read_filters(images)
    tasks, tables, directories = [], dict[int, int](), dict[int, int]()
    known: set[int] = set()
    for entry, _ in images.entries("pstree"):
        if entry.pid in known or (known and entry.ppid not in known):
            raise BadImage(
                "a task appears twice or before its parent", subject=f"pstree.img, task {entry.pid}"
            )
        known.add(entry.pid)
        reader = _TaskReader(images, entry, files, filters, components, template)
        with readable(f"core-{entry.pid}.img"):
            tasks.append(reader.task())
        if reader.ids is not None:
            tables[entry.pid] = reader.ids.files_id
            directories[entry.pid] = reader.ids.fs_id
    if not tasks:
        raise BadImage("there are no tasks", subject="pstree.img")
    checks.check_tasks(tasks)
    shared = _shared(tasks, "files_of", tables)
    return Tree(tasks=tuple(_shared(shared, "fs_of", directories))), tables


def _shared(tasks: Sequence[TaskImage], name: str, tables: Mapping[int, int]) -> list[TaskImage]:
    """Tasks with the same number of a table have it in common; 0 is none."""
    first: dict[int, int] = {}
    result = []
    for task in tasks:
        number = tables.get(task.pid)
        owner = first.setdefault(number, task.pid) if number else task.pid
        change: dict[str, Any] = {name: owner}
        result.append(task if owner == task.pid else replace(task, **change))
    return result


def _read_filters(images: ImageSource) -> list[tuple[Filter, int | None]]:
    for message, _ in images.entries("seccomp"):
        return [
            (Filter(program=f.filter, flags=f.flags), f.prev if f.HasField("prev") else None)
            for f in message.seccomp_filters
        ]
    return []


def _read_memfds(images: ImageSource) -> dict[int, MemfdInode]:
    inodes = {
        message.inode_id: MemfdInode(name=message.name, shared_id=message.shmid)
        for message, _ in images.entries("memfd")
    }
    return {
        int(number): inodes[message.inode_id]
        for number, message in images.files("MEMFD")
        if message.inode_id in inodes
    }


class _TaskReader:
    """Reads the files of one task."""

    def __init__(
        self,
        images: ImageSource,
        entry: Any,  # noqa: ANN401
        files: MappedFiles,
        filters: list[tuple[Filter, int | None]],
        components: tuple[Component, ...],
        template: bytes,
    ) -> None:
        self.images, self.entry, self.files, self.filters = images, entry, files, filters
        self.components, self.template = components, template
        self.ids: Any = None

    def one(self, name: str) -> Any:  # noqa: ANN401
        for message, _ in self.images.entries(name):
            return message
        raise BadImage(
            "is missing or empty",
            subject=f"{name}.img",
            remedy="take the images from an intact copy, or dump again",
        )

    def task(self) -> TaskImage:
        entry = self.entry
        core = self.one(f"core-{entry.pid}")
        if core.mtype != pb.core_entry.X86_64:
            raise BadImage(
                "images of another architecture",
                subject=f"core-{entry.pid}.img",
                cause=pb.core_entry.march.Name(core.mtype),
                remedy="restore on a machine of that architecture",
            )
        tc = core.tc
        has_main = tc.task_state != MAIN_ENDED
        own = self.images.extra("tasks", str(entry.pid)) or {}
        exit_signal = index(own.get("exit_signal", SIGCHLD))
        if tc.task_state in (DEAD, 6):
            return TaskImage(
                pid=entry.pid,
                ppid=entry.ppid,
                pgid=entry.pgid,
                sid=entry.sid,
                state=DEAD,
                exit_code=tc.exit_code,
                comm=tc.comm,
                exit_signal=exit_signal,
            )
        self.ids = core.ids if core.HasField("ids") else self.one(f"ids-{entry.pid}")
        fs = self.one(f"fs-{entry.pid}")
        removed = {remap.orig_id for remap, _ in self.images.entries("remap-fpath")}
        plain, posix = timers.decode(tc.timers)
        return TaskImage(
            pid=entry.pid,
            ppid=entry.ppid,
            pgid=entry.pgid,
            sid=entry.sid,
            state=tc.task_state if has_main else index(own.get("state", ALIVE)),
            exit_code=tc.exit_code,
            comm=tc.comm,
            cgroup_set=core.thread_core.cg_set or tc.cg_set or OWN_SET,
            threads=tuple(self.threads(core, has_main=has_main)),
            memory=self.memory(index(own.get("thp_flags", 0))),
            cwd=self.path(fs.cwd_id, "fs", "cwd_id"),
            root=self.path(fs.root_id, "fs", "root_id"),
            cwd_file=fs.cwd_id if fs.cwd_id in removed else None,
            root_file=fs.root_id if fs.root_id in removed else None,
            umask=fs.umask,
            personality=tc.personality,
            subreaper=tc.child_subreaper,
            oom_score_adj=tc.oom_score_adj,
            loginuid=tc.loginuid if tc.HasField("loginuid") else None,
            rlimits=tuple((r.cur, r.max) for r in tc.rlimits.rlimits),
            actions=signals.decode_actions(tc),
            itimers=plain,
            posix_timers=posix,
            shared_pending=signals.decode_queue(tc.signals_s),
            settings=_decode_settings(own),
            membarrier=tc.membarrier_registration_mask,
            coredump_filter=index(own["coredump_filter"]) if "coredump_filter" in own else None,
            session_nice=index(own.get("session_nice", 0)),
            stop_signal=0 if own.get("stop_told", not tc.stop_signo) else tc.stop_signo,
            exit_signal=exit_signal,
            ended=None if has_main else _decode_ended(core.thread_core),
        )

    def path(self, number: int, image: str, field_name: str) -> str:
        try:
            return self.files.paths[number]
        except KeyError:
            raise BadImage(
                "names a file that is not there",
                subject=f"{image}-{self.entry.pid}.img, {field_name} {number}",
            ) from None

    def program(self, number: int) -> str:
        """The path of the exe link."""
        memfd = self.files.memfds.get(number)
        return memfd.path if memfd else self.path(number, "mm", "exe_file_id")

    def is_nameless(self, number: int) -> bool:
        """Whether a program can be had by its description only."""
        return number in self.files.nameless or number in self.files.memfds

    def threads(self, leader: Any, *, has_main: bool) -> list[ThreadImage]:  # noqa: ANN401
        tids = [self.entry.pid] if has_main else []
        tids += [t for t in self.entry.threads if t != self.entry.pid]
        return [
            self.thread(
                tid, leader if tid == self.entry.pid else self.one(f"core-{tid}"), leader.tc.comm
            )
            for tid in tids
        ]

    def thread(self, tid: int, core: Any, comm: bytes) -> ThreadImage:  # noqa: ANN401
        own = self.images.extra("threads", str(tid)) or {}
        raw = base64.b64decode(own["xstate"]) if "xstate" in own else None
        entry = core.thread_core
        rseq = entry.rseq_entry
        return ThreadImage(
            tid=tid,
            comm=entry.comm if entry.HasField("comm") else comm,
            registers=registers.decode(
                core.thread_info, raw, self.components, self.template, f"core-{tid}.img"
            ),
            sigmask=entry.blk_sigset if entry.HasField("blk_sigset") else core.tc.blk_sigset,
            pending=signals.decode_queue(entry.signals_p),
            altstack=signals.AltStack(
                pointer=entry.sas.ss_sp,
                size_bytes=entry.sas.ss_size,
                flags=entry.sas.ss_flags if entry.HasField("sas") else 2,
            ),
            rseq=(rseq.rseq_abi_pointer, rseq.rseq_abi_size, rseq.signature, 0)
            if entry.HasField("rseq_entry")
            else (0, 0, 0, 0),
            robust=(entry.futex_rla, entry.futex_rla_len),
            tid_address=core.thread_info.clear_tid_addr,
            pdeathsig=entry.pdeath_sig,
            scheduling=Scheduling(
                policy=entry.sched_policy,
                priority=entry.sched_prio,
                nice=entry.sched_nice,
                affinity=bytes.fromhex(own["affinity"]) if own.get("affinity") else None,
                ioprio=index(own.get("ioprio", 0)),
                timerslack_ns=index(own.get("timerslack_ns", 0)),
                deadline=_decode_deadline(own),
            ),
            creds=creds.decode(entry.creds),
            seccomp=tuple(self.chain(entry)),
            seccomp_strict=entry.seccomp_mode == pb.strict,
            settings=_decode_settings(own),
        )

    def chain(self, entry: Any) -> list[Filter]:  # noqa: ANN401
        if entry.seccomp_mode != pb.filter:
            return []
        chain, at, steps = [], entry.seccomp_filter, 0
        while at is not None:
            if not 0 <= at < len(self.filters) or steps > len(self.filters):
                raise BadImage("a chain of filters leads nowhere", subject="seccomp.img")
            one, at = self.filters[at]
            chain.append(one)
            steps += 1
        return chain[::-1]

    def memory(self, thp_flags: int) -> Memory:
        entry = self.one(f"mm-{self.entry.pid}")
        found = [
            areaimages.decode(vma, self.files) for vma in entry.vmas if not vma.status & marks.GUARD
        ]
        auxv = b"".join(word.to_bytes(8, "little") for word in entry.mm_saved_auxv)
        return Memory(
            **{name: getattr(entry, field_name) for name, field_name in MARKERS.items()},
            auxv=auxv,
            areas=tuple(found),
            exe=self.program(entry.exe_file_id),
            exe_file=entry.exe_file_id if self.is_nameless(entry.exe_file_id) else 0,
            marks=marks.decode(
                self.images.extra("marks", str(self.entry.pid)), marks.decode_guards(entry.vmas)
            ),
            policies=policies.decode(self.images.extra("policies", str(self.entry.pid))),
            dumpable=entry.dumpable if entry.HasField("dumpable") else 1,
            thp_disabled=entry.thp_disabled,
            thp_flags=thp_flags,
        )


def _decode_ended(entry: Any) -> EndedThread:  # noqa: ANN401
    return EndedThread(
        sigmask=entry.blk_sigset,
        nice=entry.sched_nice,
        policy=entry.sched_policy,
        priority=entry.sched_prio,
        creds=creds.decode(entry.creds),
    )


def _decode_settings(own: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): index(value) for name, value in own.get("settings", {}).items()}


def _decode_deadline(own: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    if own.get("deadline") is None:
        return None
    flags, runtime, deadline, period = (index(word) for word in own["deadline"])
    return flags, runtime, deadline, period
