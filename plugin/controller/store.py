# SPDX-License-Identifier: Apache-2.0
"""CheckpointStores: whether the agents mount them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from torpor.plugin.api.reasons import ConditionType, Reason
from torpor.plugin.api.v1alpha1 import CheckpointStore
from torpor.plugin.controller.actions import Actions, Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreView:
    """A store, and where the agents mount which store (``TORPOR_STORES``)."""

    store: CheckpointStore
    mounts: Mapping[str, str]
    now: datetime


def decide(view: StoreView) -> Actions:
    """What to say of a store."""
    metadata = view.store.metadata
    if metadata.deletion_timestamp:
        return ()
    stamp = Stamp(generation=metadata.generation, now=view.now)
    if metadata.name in view.mounts:
        text = f"agents mount it at {view.mounts[metadata.name]}"
        return (stamp.status(stamp.true(ConditionType.READY, Reason.MOUNTED, text)),)
    text = "agents do not mount it; remedy: install the chart with a store of this name"
    return (stamp.status(stamp.false(ConditionType.READY, Reason.NOT_MOUNTED, text)),)
