# SPDX-License-Identifier: Apache-2.0
"""`python3 deploy/image` builds torpor's image: build/torpor-image.tar, for `ctr images import`."""

import argparse
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from deploy.image.build import build_image  # noqa: E402
from deploy.image.process import BuildError  # noqa: E402
from deploy.image.progress import Progress  # noqa: E402


def main() -> int:
    """Builds and returns the exit status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", type=Path, default=ROOT / "build" / "torpor-image.tar")
    options.add_argument("--name", default="localhost/torpor:dev")
    chosen = options.parse_args()
    progress = Progress()
    try:
        archive = build_image(ROOT / "Dockerfile", ROOT, chosen.name, progress)
    except BuildError as failure:
        print(f"image: {failure}", file=sys.stderr)
        return 1
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    partial = chosen.output.with_name(f"{chosen.output.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(archive, partial)
    except OSError:  # the cache is on another file system
        shutil.copyfile(archive, partial)
    partial.rename(chosen.output)
    size_mib = chosen.output.stat().st_size / 2**20
    progress.say(f"{chosen.output}: {chosen.name}, {size_mib:.0f} MiB")
    return 0


sys.exit(main())
