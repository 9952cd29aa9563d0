# SPDX-License-Identifier: Apache-2.0
"""Dumps on demand, each in a new process that has the engine loaded: one that can be killed.

Reads `PID FOLDER WAY` lines, WAY that of taking memory, answers each with `begun
PID_OF_THE_ENGINE`, and when that process has ended, with `ended WAIT_STATUS`. A dump leaves its
tree running. It prints its report as JSON on the same pipe before `ended`.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from torpor.engine import api
from torpor.engine.dump import pipeline  # noqa: F401 - so that children need not load it
from torpor.engine.options import After, DumpOptions, MemoryWay


def dump(pid, folder, way):
    options = DumpOptions(
        pid=pid, images_dir=Path(folder), after=After.CONTINUE, memory=MemoryWay(way)
    )
    (report,) = api.dump([options])
    tell(json.dumps({"frozen_s": report.frozen_s, "total_s": report.total_s,
                     "way": report.memory_way.value,
                     "copied": sum(one.copied_bytes for one in report.rounds),
                     "phases_s": dict(report.phases_s)}))  # fmt: skip


def tell(line):
    """One write, so that a killed engine has told a whole line or none.

    `print` writes the line's end by itself where output has no buffer (PYTHONUNBUFFERED).
    """
    os.write(1, f"{line}\n".encode())


def main():
    for line in sys.stdin:
        pid, folder, way = line.split()
        engine = os.fork()
        if engine == 0:
            status = 1
            try:
                dump(int(pid), folder, way)
                status = 0
            except BaseException:  # noqa: BLE001 - the parent is told by the status
                traceback.print_exc()
            finally:
                os._exit(status)
        tell(f"begun {engine}")
        _, status = os.waitpid(engine, 0)
        tell(f"ended {status}")


main()
