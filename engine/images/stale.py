# SPDX-License-Identifier: Apache-2.0
"""Whether torpor.json is left from an earlier dump, and another program has dumped over it.

CRIU writes its images into a directory without asking what is there: it replaces the inventory and
the files of the tasks that it dumps, and leaves torpor.json. Then that says nothing of the images.
Damage does not look like this: it would have hit the inventory in the number of its run, and the
state of every task.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from torpor.engine.errors import BadImage
from torpor.engine.images.manifest import Manifest
from torpor.engine.images.proto import criu_pb2 as pb

RUN = "run_id"
"""Fact of a dump: the number of its run, which the inventory has as well."""


class Images(Protocol):
    """What is asked of an image directory."""

    def messages(self, name: str, message_type: Any, /) -> Iterator[Any]:  # noqa: ANN401
        """The messages of an image."""

    def is_as_listed(self, name: str, listed: Manifest, /) -> bool:
        """Whether an image has the digest of a manifest."""


def is_stale(images: Images, listed: Manifest) -> bool:
    """Whether the images are of another dump than the manifest."""
    run = listed.facts.get("dump", {}).get(RUN)
    if not isinstance(run, str):
        return False
    try:
        if run in [
            one.dump_criu_run_id for one in images.messages("inventory", pb.inventory_entry)
        ]:
            return False
        pids = [one.pid for one in images.messages("pstree", pb.pstree_entry)]
        return bool(pids) and not any(images.is_as_listed(f"core-{n}", listed) for n in pids)
    except BadImage:
        return False
