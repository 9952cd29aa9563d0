# SPDX-License-Identifier: Apache-2.0
"""`criu pre-dump` and `criu dedup`."""

from dataclasses import replace

from torpor.engine import logs
from torpor.engine.criu import dump, session
from torpor.engine.criu.asked import dump_options
from torpor.engine.criu.parse import CommandLine
from torpor.engine.criu.session import Session
from torpor.engine.errors import Error, Refused
from torpor.engine.options import DumpOptions
from torpor.engine.text import size

log = logs.logger(__name__)


def run(line: CommandLine) -> int:
    """Copy the memory of a tree that runs on."""
    asked = dump_options(line)
    if line.flag("lazy_pages"):
        raise Refused("a pre-dump leaves no pages for later", subject="--lazy-pages",
                      remedy="give it to the dump")  # fmt: skip
    begun = session.begin(line)
    try:
        carry_out(asked, begun)
    except Error as error:
        session.tell_failure(error, "Pre-dumping FAILED.")
        return 1
    return 0


def carry_out(asked: DumpOptions, begun: Session) -> None:
    """Copy memory with all that a command line asks for beside.

    Raises: Error.
    """
    from torpor.engine import api

    line = begun.line
    asked = dump.with_server(asked, line)
    report = api.pre_dump(
        replace(asked, images_dir=begun.images_dir, work_dir=begun.work_dir),
        progress=session.tell_progress,
    )
    dump.tell(report)
    if line.flag("display_stats"):
        from torpor.engine.criu import statistics

        statistics.show_dump(begun.work_dir)
    log.info("Pre-dumping finished successfully")


def run_dedup(line: CommandLine) -> int:
    """Take pages away from earlier dumps that later ones have."""
    begun = session.begin(line)
    from torpor.engine.images.dedup import dedup
    from torpor.engine.images.directory import ImageDirectory, Verify

    with ImageDirectory.open(begun.images_dir, verify=Verify.WITHOUT_PAGES) as images:
        log.info("Deduplicated %s", size(dedup(images)))
    return 0
