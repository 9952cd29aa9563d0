# SPDX-License-Identifier: Apache-2.0
"""`Images` as lines for people: a summary, the tree of tasks, then each task."""

from collections.abc import Iterator, Sequence

from torpor.engine.inspect.lines import DIM, HEADING, NAME, WARN, Line, line
from torpor.engine.inspect.model import Images, Task
from torpor.engine.text import count, duration, size

LABEL = 12


def lines(images: Images) -> Iterator[Line]:
    """Everything."""
    yield line((f"images in {images.path}", HEADING))
    yield from _summary(images)
    yield line()
    yield line(("tasks", HEADING))
    yield from tree(images.tasks)
    for task in images.tasks:
        if task.state != "zombie":
            yield line()
            yield from _task(task)


def tree(tasks: Sequence[Task]) -> Iterator[Line]:
    """The tree: a line for each task, children under their parents."""
    children: dict[int, list[Task]] = {}
    for task in tasks[1:]:
        children.setdefault(task.ppid, []).append(task)
    stack = [(tasks[0], "", "")]
    while stack:
        task, lead, below = stack.pop()
        yield line((lead, DIM), *_title(task))
        under = sorted(children.get(task.pid, ()), key=lambda t: t.pid, reverse=True)
        for i, child in enumerate(under):
            last = i == 0
            stack.append((child, below + ("└─ " if last else "├─ "),
                          below + ("   " if last else "│  ")))  # fmt: skip


def _title(task: Task) -> tuple[str | tuple[str, str], ...]:
    if task.state == "zombie":
        return f"{task.pid} ", (task.comm, NAME), (f"  zombie, {task.exit_status}", WARN)
    words = " ".join(task.args) if task.args else task.exe
    more = f"  ({count(len(task.threads), 'thread')})" if len(task.threads) > 1 else ""
    state = f"  {task.state}" if task.state != "running" else ""
    return f"{task.pid} ", (task.comm, NAME), f"  {words}", (more + state, DIM)


def _summary(images: Images) -> Iterator[Line]:
    origin = images.origin
    where = f" on {origin.machine['node']}" if origin.machine.get("node") else ""
    kernel = f", Linux {origin.machine['release']}" if origin.machine.get("release") else ""
    about = " (time of the inventory file)" if origin.approximate else ""
    yield _item("dumped", f"{origin.time}{about} by {origin.tool}{where}{kernel}")
    yield _item("images", f"{count(images.files, 'file')}, {size(images.size_bytes)}, "
                          f"format {images.format_version}, {images.architecture}; "
                          f"{images.verified}")  # fmt: skip
    if images.pause is not None:
        steps = ", ".join(f"{name} {duration(s)}" for name, s in images.pause.steps_s.items())
        yield _item("pause", f"{duration(images.pause.frozen_s)} frozen" + (steps and f": {steps}"))
    alive = [t for t in images.tasks if t.state != "zombie"]
    dead = len(images.tasks) - len(alive)
    zombies = f" ({count(dead, 'zombie')})" if dead else ""
    yield _item(
        "tasks",
        f"{len(images.tasks)}{zombies}, "
        f"{count(sum(len(t.threads) for t in alive), 'thread')}, "
        f"{count(sum(len(t.descriptors) for t in alive), 'descriptor')}",
    )
    mapped = sum(t.memory.mapped_bytes for t in alive if t.memory)
    stored = sum(t.memory.stored_bytes for t in alive if t.memory)
    shared = sum(s.stored_bytes for s in images.segments)
    extra = f", and {size(shared)} of shared memory" if images.segments else ""
    yield _item("memory", f"{size(mapped)} mapped, {size(stored)} stored{extra}")
    if images.namespaces:
        host = f" (host name {images.hostname})" if images.hostname else ""
        yield _item("namespaces", ", ".join(images.namespaces) + host)
    if images.tcp_close:
        yield _item("tcp", "connections to the outside come back closed")
    for text in images.warnings:
        yield line((f"  {'warning':<{LABEL}}", WARN), text)


def _item(label: str, text: str) -> Line:
    return line((f"  {label:<{LABEL}}", DIM), text)


def _task(task: Task) -> Iterator[Line]:
    yield line((f"task {task.pid} ({task.comm})", HEADING))
    yield _item("program", task.exe)
    if task.args is None:
        yield _item("arguments", "not in these images")
    else:
        yield _item("arguments", " ".join(task.args))
    yield _item("directory", task.cwd + (f" (root {task.root})" if task.root != "/" else ""))
    yield _item("ids", f"parent {task.ppid}, group {task.pgid}, session {task.sid}, "
                       f"uid {task.uid}, gid {task.gid}")  # fmt: skip
    if task.seccomp_filters:
        yield _item("seccomp", count(task.seccomp_filters, "filter"))
    if len(task.threads) > 1:
        yield _item("threads", ", ".join(f"{t.tid} {t.comm}" for t in task.threads))
    if task.memory is not None:
        yield _item("memory", f"{size(task.memory.mapped_bytes)} in "
                              f"{count(task.memory.areas, 'area')}, "
                              f"{size(task.memory.stored_bytes)} stored")  # fmt: skip
        for kind in task.memory.kinds:
            yield line(f"    {kind.kind:<24}{kind.areas:>5} ", ("areas", DIM),
                       f"{size(kind.mapped_bytes):>12} ", ("mapped", DIM),
                       f"{size(kind.stored_bytes):>12} ", ("stored", DIM))  # fmt: skip
    if task.shares_descriptors_of is not None:
        yield _item("files", f"shared with task {task.shares_descriptors_of}")
    elif task.descriptors:
        yield _item("files", count(len(task.descriptors), "descriptor"))
    for one in task.descriptors:
        tail = ", ".join(part for part in (one.detail, "close-on-exec" * one.cloexec) if part)
        yield line(f"    {one.fd:>5}  ", (f"{one.kind:<15}", NAME), f" {one.name}",
                   (f"  ({tail})" if tail else "", DIM))  # fmt: skip
