# SPDX-License-Identifier: Apache-2.0
"""`make bench`: torpor beside Debian's newest criu, in one run, A B A B, images on tmpfs.

    run.py [--rounds N] [--json FILE] [--markdown FILE] [--plot FILE] [--sizes MIB,...] [PART ...]

Parts: small, commands, restores, precopy, memory, plot; all but the plot without a word. The score
is what a goal is about: the ratio to criu's, or what stands in the measure. Medians; the first
round of each warms up and is dropped. Where a goal is not met, what the kernel alone takes in the
same run is printed below. Memory is touched before it is measured, for both engines.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from bench import commands, memory, precopy, restores, small  # noqa: E402
from bench.common import HEADER, Row, machine, place, save  # noqa: E402
from bench.plot import plot  # noqa: E402

Part = Callable[[Path, int], Iterator[Row]]
PARTS: dict[str, tuple[Part, int]] = {
    "small": (small.rows, 5),
    "commands": (commands.rows, 12),
    "restores": (restores.rows, 5),
    "precopy": (precopy.rows, 4),
    "memory": (memory.rows, 3),
}


def main() -> None:
    """Run the parts and print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, help="of each measure; without it, by part")
    options.add_argument("--json", type=Path)
    options.add_argument("--markdown", type=Path, help="the table as docs/performance.md has it")
    options.add_argument("--plot", type=Path)
    options.add_argument("--sizes", default=",".join(map(str, memory.SIZES_MIB)))
    options.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    chosen = options.parse_args()
    facts, begin, found, curves = machine(), time.monotonic(), [], {}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(HEADER)
    for name in chosen.parts:
        with place() as scratch:
            if name == "plot":
                sizes = [int(word) for word in chosen.sizes.split(",")]
                curves = memory.Bench(scratch, 2).curves(sizes)
            else:
                part, rounds = PARTS[name]
                for row in part(scratch, chosen.rounds or rounds):
                    print(row.text(), flush=True)
                    found.append(row)
        write(chosen, found, curves, facts)  # what was measured stays when a part fails
    told = [row for row in found if row.met is not None]
    print(f"{sum(row.met is True for row in told)} of {len(told)} goals met, "
          f"{time.monotonic() - begin:.0f} s")  # fmt: skip


def write(
    chosen: argparse.Namespace,
    found: Sequence[Row],
    curves: memory.Curves,
    facts: Mapping[str, object],
) -> None:
    """The files that were asked for."""
    if chosen.json:
        save(chosen.json, found, curves=curves)
    if chosen.markdown:
        chosen.markdown.write_text("".join(f"{row.markdown()}\n" for row in found))
    if chosen.plot and curves:
        chosen.plot.write_text(plot(curves, facts))


if __name__ == "__main__":
    main()
