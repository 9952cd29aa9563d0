# SPDX-License-Identifier: Apache-2.0
"""Kinds of objects that torpor reads or writes, and their paths in the API."""

from dataclasses import dataclass

from torpor.plugin.api.common import GROUP, VERSION
from torpor.plugin.api.v1alpha1 import Checkpoint, CheckpointStore, Restore


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A resource of the API server."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """``group/version``, or the version alone in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """URL path of the collection, of one object, or of a subresource."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(parts)


PODS = Kind(group="", version="v1", kind="Pod", plural="pods")
NODES = Kind(group="", version="v1", kind="Node", plural="nodes", namespaced=False)
LEASES = Kind(group="coordination.k8s.io", version="v1", kind="Lease", plural="leases")
EVENTS = Kind(group="events.k8s.io", version="v1", kind="Event", plural="events")
CHECKPOINTS = Kind(group=GROUP, version=VERSION, kind=Checkpoint.KIND, plural=Checkpoint.PLURAL)
RESTORES = Kind(group=GROUP, version=VERSION, kind=Restore.KIND, plural=Restore.PLURAL)
STORES = Kind(
    group=GROUP,
    version=VERSION,
    kind=CheckpointStore.KIND,
    plural=CheckpointStore.PLURAL,
    namespaced=False,
)
