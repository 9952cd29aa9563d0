# SPDX-License-Identifier: Apache-2.0
"""`python3 tests/e2e/images [NAME...]` builds test images and prints where their archives are."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[3])

from deploy.image.process import BuildError  # noqa: E402
from deploy.image.progress import Progress  # noqa: E402
from tests.e2e.images.build import IMAGES, archive, name_of  # noqa: E402


def main() -> int:
    """Builds and returns the exit status."""
    progress = Progress()
    try:
        for image in sys.argv[1:] or IMAGES:
            print(f"{name_of(image)}\t{archive(image, progress)}", flush=True)
    except BuildError as failure:
        print(f"images: {failure}", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
