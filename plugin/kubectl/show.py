# SPDX-License-Identifier: Apache-2.0
"""How Checkpoints and Restores look on a terminal."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from torpor.plugin.api.conditions import Condition, find
from torpor.plugin.api.reasons import ConditionType
from torpor.plugin.api.v1alpha1 import Checkpoint, CheckpointStore, Restore

Item = Checkpoint | Restore | CheckpointStore

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


WIDE = 240
"""Columns of an output that is no terminal: nothing is cut in a pipe."""


def wide_console() -> Console:
    """For tables: a line is as long as it needs to be, as with kubectl."""
    return Console(width=max(WIDE, Console().width), soft_wrap=True)


def text_console() -> Console:
    """For prose: wrapped on a terminal, whole lines in a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE, soft_wrap=True)


def format_size(size_bytes: int | None) -> str:
    """Binary units with three digits."""
    if size_bytes is None:
        return "-"
    value = float(size_bytes)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return "-"


def format_age(moment: datetime | None, now: datetime | None = None) -> str:
    """As kubectl prints ages."""
    if moment is None:
        return "-"
    seconds = int(((now or datetime.now(UTC)) - moment).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def state_of(item: Item) -> str:
    """Ready, or the reason why not."""
    ready = find(item.status.conditions, ConditionType.READY)
    if ready is None:
        return "Pending"
    return "Ready" if ready.status == "True" else ready.reason


def checkpoint_table(items: Iterable[Checkpoint], *, namespaces: bool) -> Table:
    """A row a Checkpoint."""
    columns = ("Name", "Pod", "Node", "State", "Size", "Pause", "Store", "Age")
    table = _table(columns, namespaces=namespaces)
    for item in items:
        status = item.status
        cells = (
            item.metadata.name,
            item.spec.pod_ref.name,
            status.node_name or "-",
            _coloured(item),
            format_size(status.size_bytes),
            status.pause or "-",
            status.store_name or "-",
            format_age(item.metadata.creation_timestamp),
        )
        table.add_row(*((item.metadata.namespace,) if namespaces else ()), *cells)
    return table


def restore_table(items: Iterable[Restore], *, namespaces: bool) -> Table:
    """A row a Restore."""
    columns = ("Name", "Checkpoint", "Pod", "Node", "State", "Downtime", "Age")
    table = _table(columns, namespaces=namespaces)
    for item in items:
        status = item.status
        cells = (
            item.metadata.name,
            item.spec.checkpoint_ref.name,
            status.pod_name or "-",
            status.node_name or "-",
            _coloured(item),
            status.downtime or "-",
            format_age(item.metadata.creation_timestamp),
        )
        table.add_row(*((item.metadata.namespace,) if namespaces else ()), *cells)
    return table


def print_checkpoint(console: Console, item: Checkpoint) -> None:
    """All there is to say of a Checkpoint."""
    status = item.status
    tree = Tree(f"[bold]Checkpoint {item.metadata.namespace}/{item.metadata.name}[/] "
                f"{_coloured(item)}")  # fmt: skip
    tree.add(f"pod {item.spec.pod_ref.name} (uid {status.pod_uid or '?'}) "
             f"on node {status.node_name or '?'}; then {item.spec.after_checkpoint}")  # fmt: skip
    tree.add(f"store {status.store_name or '?'}: {status.path or 'nothing yet'}")
    tree.add(
        f"size {format_size(status.size_bytes)}, "
        f"{format_size(status.stored_bytes)} stored; pause {status.pause or '-'}"
    )
    if status.pause_steps:
        tree.add("pause by step: " + _steps(status.pause_steps))
    if status.steps:
        tree.add("steps: " + _steps(status.steps))
    if status.manifest_digest:
        tree.add(f"manifest {status.manifest_digest}")
    branch = tree.add("containers")
    for container in status.containers:
        leaf = branch.add(
            f"{container.name}: {container.tasks or '?'} tasks, "
            f"{format_size(container.memory_bytes)} memory, pause {container.pause or '-'}, "
            f"image {container.image or '?'}"
        )
        if container.memory_way:
            leaf.add(f"memory by {escape(container.memory_way)}")
    _add_timeline(tree, item)
    console.print(tree)


def print_restore(console: Console, item: Restore) -> None:
    """All there is to say of a Restore."""
    status = item.status
    tree = Tree(f"[bold]Restore {item.metadata.namespace}/{item.metadata.name}[/] "
                f"{_coloured(item)}")  # fmt: skip
    tree.add(f"checkpoint {item.spec.checkpoint_ref.name}")
    tree.add(f"pod {status.pod_name or '?'} on node {status.node_name or '?'}")
    tree.add(f"downtime {status.downtime or '-'}")
    if status.steps:
        tree.add("steps: " + _steps(status.steps))
    branch = tree.add("containers")
    for container in status.containers:
        branch.add(
            f"{container.name}: pid {container.pid or '?'}, {container.tasks or '?'} tasks, "
            f"{container.restore_seconds or '?'} s"
        )
    _add_timeline(tree, item)
    console.print(tree)


def progress_line(item: Item) -> str:
    """One line for a status that changes."""
    ready = find(item.status.conditions, ConditionType.READY)
    text = f"{ready.reason}: {ready.message}" if ready else "waiting for the controller"
    progress = getattr(item.status, "progress", None)
    if progress is not None and (ready is None or ready.status != "True"):
        percent = "" if progress.percent is None else f" {progress.percent}%"
        text = f"{progress.phase}{percent}: {progress.text}" if progress.text else text
    return text


def _add_timeline(tree: Tree, item: Item) -> None:
    branch = tree.add("timeline")
    start = item.metadata.creation_timestamp
    branch.add(f"{start:%H:%M:%S}  +0s  created" if start else "not created yet")
    for entry in sorted(item.status.conditions, key=_moment):
        after_s = int((entry.last_transition_time - start).total_seconds()) if start else 0
        colour = "green" if entry.status == "True" else "yellow"
        if entry.type == ConditionType.FAILED:
            colour = "red"
        branch.add(
            f"{entry.last_transition_time:%H:%M:%S}  +{after_s}s  "
            f"[{colour}]{entry.type}={entry.status}[/] {entry.reason}"
            + (f": {escape(entry.message)}" if entry.message else "")
        )


def _steps(steps: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {took}" for name, took in steps.items())


def _moment(entry: Condition) -> datetime:
    return entry.last_transition_time


def _coloured(item: Item) -> str:
    state = state_of(item)
    failed = find(item.status.conditions, ConditionType.FAILED)
    if failed is not None and failed.status == "True":
        return f"[red]{state}[/]"
    return f"[green]{state}[/]" if state == "Ready" else f"[yellow]{state}[/]"


def _table(columns: tuple[str, ...], *, namespaces: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (("Namespace",) if namespaces else ()) + columns:
        table.add_column(name.upper(), no_wrap=True)
    return table
