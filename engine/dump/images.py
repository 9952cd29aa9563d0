# SPDX-License-Identifier: Apache-2.0
"""Writing the images of a tree; its tasks may run on already."""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack

from torpor.engine.dump import pages
from torpor.engine.dump.report import Phases, flat, stats_of
from torpor.engine.dump.treedump import TreeDump
from torpor.engine.errors import BadImage, Bug, Error
from torpor.engine.files import table
from torpor.engine.images import stale
from torpor.engine.images.dedup import dedup
from torpor.engine.images.directory import ImageDirectory, Verify
from torpor.engine.images.inventory import write_inventory
from torpor.engine.images.pageserver import Client
from torpor.engine.images.parents import Chain
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.stats import write_stats
from torpor.engine.images.writing import NewImageDirectory, withdraw
from torpor.engine.kernel.clocks import SECOND_NS, Clocks
from torpor.engine.kinds import FILE_KINDS
from torpor.engine.memory import semaphores, sysv
from torpor.engine.options import (
    DumpOptions,
    NetworkLock,
    ProgressFn,
    TcpPolicy,
)
from torpor.engine.restore.load import load, processor_components
from torpor.engine.tasks.cgroups import OWN_SET
from torpor.engine.tasks.cgroups import encode as encode_cgroups
from torpor.engine.tasks.encode import NAMESPACE_IDS, encode_tree


def parents_of(options: DumpOptions, cleanup: ExitStack) -> Chain | None:
    """Earlier dumps whose pages need not be written again."""
    if not options.parent:
        return None
    return cleanup.enter_context(Chain.open((options.images_dir / options.parent).resolve()))


OWN_TIME = 0
"""Number of the image of a tree's clocks."""


def directory_for(options: DumpOptions) -> NewImageDirectory:
    """The directory to write."""
    images = NewImageDirectory.create(options.images_dir, replace=options.replace)
    images.follower = options.follower
    if options.follower is not None:
        options.follower.begin()
    return images


def write_all(
    dumps: Sequence[TreeDump], images: Sequence[NewImageDirectory], phase: Phases, frozen_s: float
) -> None:
    """The directories of all trees, whole at the end."""
    with phase("write"):
        for dump, out in zip(dumps, images, strict=True):
            out.extra("dump", "pause_s", flat(phase.pause))
            _write(dump, out, phase.progress)
    with phase("sync"):
        for dump, out in zip(dumps, images, strict=True):
            finish(dump, out, phase, frozen_s)
    with phase("read back"):
        read_back(dumps)


def read_back(dumps: Sequence[TreeDump]) -> None:
    """See that a restore understands what was written, while the tasks are still there.

    Of pages it is seen that they have a place and are there, not what they hold.

    Raises: Bug, and nothing is kept.
    """
    for dump in dumps:
        options = dump.options
        if options.page_server is not None:
            continue
        later = options.serve is not None
        try:
            load(options.images_dir, verify=Verify.NOTHING, with_parents=True, later=later).close()
        except BadImage as error:
            for each in dumps:
                withdraw(each.options.images_dir)
            raise Bug(
                "the images that were written cannot be read",
                subject=str(options.images_dir),
                cause=str(error),
                remedy="report it; no checkpoint was made and the tasks run on",
            ) from error
        except Error as error:  # of this process, not of the images: too many open files
            dump.warnings.append(f"what was written was not read again: {error}")


def finish(dump: TreeDump, out: NewImageDirectory, phase: Phases, frozen_s: float) -> None:
    """Have the images whole, then what goes beside them."""
    path = out.finish()
    if dump.options.dedup and dump.parents is not None:
        with ImageDirectory.open(path, verify=Verify.NOTHING) as images:
            dedup(images)
    try:
        write_stats(dump.options.work_dir or path, stats_of(dump, phase, frozen_s))
    except Error as error:  # the images are whole
        dump.warnings.append(f"no statistics: {error}")
    places = (path, *out.directories_inside)
    dump.image_bytes = sum(f.stat().st_size for p in places for f in p.iterdir() if f.is_file())


def _write(dump: TreeDump, out: NewImageDirectory, told: ProgressFn) -> None:
    assert dump.tree is not None
    assert dump.taken is not None
    inventory(
        out,
        tcp_close=dump.options.tcp is TcpPolicy.CLOSE_ALL,
        locked=dump.options.tcp is TcpPolicy.KEEP
        and dump.options.network_lock is NetworkLock.NFTABLES,
        run_id=dump.run_id,
    )
    table.encode_tables(dump.files, FILE_KINDS, out)
    if dump.cgroups is not None:
        encode_cgroups(dump.cgroups, out)
    encode_tree(dump.tree, out, processor_components(), dump.files.first_free_id)
    segments = {
        number: sysv.parse(number, raw) for c in dump.captured for number, raw in c.segments.items()
    }
    sysv.encode(segments.values(), out)
    semaphores.encode(dump.semaphores, out)
    out.extra(
        "dump",
        "machine",
        dict(zip(("system", "node", "release", "version", "machine"), os.uname(), strict=True)),
    )
    out.add(f"timens-{OWN_TIME}", _clocks(dump.clocks))
    out.extra("dump", "realtime_ns", dump.realtime_ns)
    out.extra("dump", "time", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    out.extra("dump", "warnings", dump.warnings)
    write_pages(dump, out, told)


def _clocks(told: Clocks) -> pb.timens_entry:
    monotonic, boottime = (divmod(ns, SECOND_NS) for ns in told)
    return pb.timens_entry(
        monotonic=pb.timespec(tv_sec=monotonic[0], tv_nsec=monotonic[1]),
        boottime=pb.timespec(tv_sec=boottime[0], tv_nsec=boottime[1]),
    )


def inventory(
    out: NewImageDirectory, *, tcp_close: bool = False, locked: bool = False, run_id: str = ""
) -> None:
    """What every directory has."""
    write_inventory(
        out,
        root_ids=pb.task_kobj_ids_entry(
            vm_id=1, files_id=1, fs_id=1, sighand_id=1, **NAMESPACE_IDS
        ),
        root_cgroup_set=OWN_SET,
        tcp_close=tcp_close,
        locked=locked,
        run_id=run_id,
    )
    out.extra("dump", stale.RUN, run_id)


def write_pages(dump: TreeDump, out: NewImageDirectory, told: ProgressFn) -> None:
    """Pagemaps, pages and the link to those that have the others; then memory is let go.

    But for what is served afterwards.
    """
    assert dump.taken is not None
    assert dump.way is not None
    if dump.parents is not None:
        out.link_parent(dump.options.parent)
    with dump.way.reading():
        if dump.options.page_server is not None:
            out.pages_elsewhere()
            pages.send(dump.taken, Client(dump.options.page_server))
            dump.written_bytes = dump.taken.size_bytes
        else:
            dump.written_bytes = pages.write(dump.taken, out, dump.parents, told, dump.way.writers)
    if dump.options.serve is None:
        dump.way.close()
