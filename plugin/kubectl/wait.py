# SPDX-License-Identifier: Apache-2.0
"""Following one object until it is Ready or has failed."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from torpor.engine.errors import Error, Timeout, Vanished
from torpor.plugin.api import codec
from torpor.plugin.api.conditions import find, is_true
from torpor.plugin.api.reasons import ConditionType
from torpor.plugin.api.v1alpha1 import Checkpoint, Restore
from torpor.plugin.k8s.client import Client, Selector
from torpor.plugin.k8s.kinds import Kind
from torpor.plugin.k8s.queue import Key
from torpor.plugin.k8s.watch import Watcher

Item = TypeVar("Item", Checkpoint, Restore)


class Failed(Error):
    """The object came to its end without being Ready."""

    exit_code = 2


def until_ready(
    client: Client,
    kind: Kind,
    model: type[Item],
    key: Key,
    *,
    timeout_s: float,
    on_change: Callable[[Item], None],
) -> Item:
    """Follow the object; returns it when it is Ready.

    Raises:
        Failed: its condition Failed is True.
        Timeout: neither happened in time.
        Vanished: it was deleted.
    """
    changed = threading.Event()
    selector = Selector(namespace=key.namespace, fields=f"metadata.name={key.name}")
    watcher = Watcher(client, kind, lambda _: changed.set(), selector=selector)
    watcher.start()
    deadline_monotonic_s = time.monotonic() + timeout_s
    subject = f"{kind.kind} {key}"
    item: Item | None = None
    try:
        while (left_s := deadline_monotonic_s - time.monotonic()) > 0:
            changed.wait(min(left_s, 1.0))
            if not changed.is_set():
                continue
            changed.clear()
            body = watcher.get(key)
            if body is None:
                raise Vanished("was deleted", subject=subject)
            item = codec.decode(model, body)
            on_change(item)
            if is_true(item.status.conditions, ConditionType.READY):
                return item
            _raise_if_failed(item, subject)
    finally:
        watcher.stop()
    raise Timeout(
        f"not Ready after {timeout_s:.0f} s",
        subject=subject,
        cause=_state(item),
        remedy=f"kubectl torpor inspect {key.name} -n {key.namespace}",
    )


def _raise_if_failed(item: Item, subject: str) -> None:
    failed = find(item.status.conditions, ConditionType.FAILED)
    if failed is not None and failed.status == "True":
        raise Failed(failed.reason, subject=subject, cause=failed.message)


def _state(item: Item | None) -> str:
    ready = find(item.status.conditions, ConditionType.READY) if item else None
    return f"{ready.reason}: {ready.message}" if ready else "the controller has not seen it yet"
