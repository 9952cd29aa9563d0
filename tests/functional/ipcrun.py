# SPDX-License-Identifier: Apache-2.0
"""A workload that is dumped and restored in the ipc namespace of this process; tells its verdict.

unshare --ipc python -m tests.functional.ipcrun FOLDER WORKLOAD
"""

import ctypes
import sys
from pathlib import Path

from tests.conftest import PR_SET_CHILD_SUBREAPER
from tests.functional.conftest import program
from tests.functional.harness import Live


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    folder, name = Path(sys.argv[1]), sys.argv[2]
    live = Live(folder, [*program(name), str(folder)])
    try:
        live.await_ready()
        live.dump()
        live.restore()
        print(live.verdict())
    finally:
        live.end()


if __name__ == "__main__":
    main()
