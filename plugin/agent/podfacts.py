# SPDX-License-Identifier: Apache-2.0
"""Facts of a pod beside the images of its containers: written at the checkpoint, read back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torpor.engine.errors import BadImage

FACTS = "facts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was written beside the images at the checkpoint."""

    cpu_flags: tuple[str, ...]
    data_links: Mapping[str, dict[str, str]]
    pod_ips: tuple[str, ...] = ()


def write(facts: Facts, tree: Path) -> None:
    """Have them in the tree of a checkpoint."""
    document = {
        "cpuFlags": facts.cpu_flags,
        "podIPs": facts.pod_ips,
        "dataLinks": facts.data_links,
    }
    (tree / FACTS).write_text(json.dumps(document, sort_keys=True))


def read(tree: Path) -> Facts:
    """Read and check them.

    Raises:
        BadImage: they are not what was written.
    """
    try:
        document = json.loads((tree / FACTS).read_text())
        links = {
            str(name): {str(point): str(target) for point, target in found.items()}
            for name, found in document["dataLinks"].items()
        }
        flags = tuple(str(flag) for flag in document["cpuFlags"])
        addresses = tuple(str(address) for address in document.get("podIPs", ()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadImage(
            "the facts of the checkpoint cannot be read",
            subject=FACTS,
            cause=str(error),
            remedy="take the checkpoint anew",
        ) from error
    for found in links.values():
        if any("/" in target or target in (".", "..") for target in found.values()):
            raise BadImage(
                "the facts of the checkpoint lead elsewhere",
                subject=FACTS,
                remedy="see who may write to the store",
            )
    return Facts(cpu_flags=flags, data_links=links, pod_ips=addresses)
