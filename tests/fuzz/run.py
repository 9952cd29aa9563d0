# SPDX-License-Identifier: Apache-2.0
"""Feeds targets. An input is known by (seed, target, number), given the same corpus.

    python -m tests.fuzz.run [INPUTS [SEED]]

writes docs/fuzzing.md. What fails is printed with its trace, and the run goes on; the exit status
tells. Needs root, since the corpus is dumped from live workloads.
"""

import gc
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.conftest import pytest_configure
from tests.fuzz import corpus, guard, targets
from tests.fuzz.targets import Target

INPUTS, SEED = 1_000_000, 5
DOCUMENT = Path(__file__).parents[2] / "docs" / "fuzzing.md"
FAILURES_SHOWN = 40
TEXT = """\
# Fuzzing

Everything that reads what others wrote is fed with mutated input: image directories dumped from
workloads of the catalogue, archives, manifests, the hook's wires. Bytes are flipped, cut and
spliced; messages get dangling ids, odd numbers, strange paths, long lists; entries are dropped and
doubled. Only an error with a remedy may come out. A crash, a hang, hundreds of MiB of memory, a
descriptor left, a file opened outside of the input's place is a failure.

`make fuzz` is the long run that writes this page when nothing fails (`tests/fuzz/run.py`); `make
faults` has a short one.

The last long run: {total:,} inputs, seed {seed}, no failure.
"""


@dataclass(slots=True)
class Outcome:
    """What a target made of its inputs."""

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    failures: Counter = field(default_factory=Counter)
    traces: list[str] = field(default_factory=list)


def feed(target: Target, inputs: int, seed: int, folder: Path) -> Outcome:
    """Give a target so many inputs."""
    outcome, begin = Outcome(), time.monotonic()
    descriptors, memory = guard.open_descriptors(), guard.peak_kib()
    with guard.timed() as again, guard.watched(folder):
        for number in range(inputs):
            if number % 64 == 0:
                again()
            _one(target, f"{seed}/{target.name}/{number}", outcome)
    gc.collect()
    if guard.open_descriptors() > descriptors:
        outcome.failures["descriptors were left open"] += 1
    if guard.peak_kib() - memory > guard.MOST_GROWTH_KIB:
        outcome.failures[f"took {guard.peak_kib() - memory} KiB more memory"] += 1
    outcome.seconds = time.monotonic() - begin
    return outcome


def _one(target: Target, name: str, outcome: Outcome) -> None:
    try:
        outcome.refused += target.feed(Random(name))
    except (Exception, guard.Offence) as error:  # noqa: BLE001 - that is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        key = f"{type(error).__name__} at {place}: {error!s:.100}"
        if key not in outcome.failures:
            outcome.traces.append(f"input {name}\n{traceback.format_exc()}")
        outcome.failures[key] += 1
    outcome.inputs += 1


def document(outcomes: dict[str, Outcome], cases: Sequence[str], seed: int) -> str:
    """docs/fuzzing.md."""
    total = sum(outcome.inputs for outcome in outcomes.values())
    rows = [f"| {name} | {o.inputs:,} | {o.refused:,} | {o.inputs - o.refused:,} |"
            for name, o in outcomes.items()]  # fmt: skip
    head = TEXT.format(total=total, seed=seed)
    table = ["| what | inputs | refused | taken, or harmless |", "|---|---|---|---|", *rows]
    return "\n".join([head, *table, "", f"Images came from: {', '.join(cases)}.", ""])


def main() -> int:
    """The long run."""
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else INPUTS
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else SEED
    pytest_configure(None)
    os.nice(10)
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="torpor-fuzz-") as place:
        folder = Path(place)
        folder.chmod(0o755)
        tempfile.tempdir = place
        dumped = list(corpus.dump(folder, corpus.cases()))
        outcomes = {
            target.name: feed(target, inputs * target.share // 1000, seed, folder)
            for target in targets.all_targets(folder, dumped)
        }
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome.inputs} inputs, {outcome.refused} refused, "
              f"{sum(outcome.failures.values())} failed, {outcome.seconds:.0f} s")  # fmt: skip
        print("\n".join(outcome.traces[:FAILURES_SHOWN]))
        for key, times in outcome.failures.most_common():
            print(f"  {times} x {key}")
    if any(outcome.failures for outcome in outcomes.values()):
        return 1
    if inputs >= INPUTS:
        DOCUMENT.write_text(document(outcomes, [one.case for one in dumped], seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
