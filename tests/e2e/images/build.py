# SPDX-License-Identifier: Apache-2.0
"""Builds the test images: each is a Dockerfile in a folder named after it."""

from pathlib import Path

from deploy.image.build import build_image
from deploy.image.progress import Progress

FOLDER = Path(__file__).parent
IMAGES = tuple(sorted(path.parent.name for path in FOLDER.glob("*/Dockerfile")))
TAG = "1"


def name_of(image: str) -> str:
    """The full name that pods use (imagePullPolicy: Never or IfNotPresent)."""
    return f"localhost/torpor-test-{image}:{TAG}"


def archive(image: str, progress: Progress) -> Path:
    """The OCI archive of a test image, built if it is not in the cache."""
    return build_image(FOLDER / image / "Dockerfile", FOLDER, name_of(image), progress)
