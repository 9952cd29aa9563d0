# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: PTH208 (works on descriptors, which have no path)
"""What changed in a container's root file system, and its emptyDir volumes.

Facts: the upper directory of the overlay names what changed; the content is read from the
merged view, since an upper file may hold metadata alone (metacopy). An opaque directory is
marked by a trusted xattr that only CAP_SYS_ADMIN may read: instead, each directory of the
upper layer is recorded with all names it shows, and what it does not show is removed on
restore. That covers deletions and opaque directories alike, without that capability.

LIMITS: device nodes are refused; sockets are left out (their binder makes them anew);
a lower directory that was renamed on a kernel with redirect_dir=on is noted, not taken.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.engine.errors import Denied, Error, KernelError, Refused, Vanished
from torpor.plugin.agent.locate import PLACEHOLDER_MOUNT, Container, VolumePart
from torpor.plugin.agent.openat2 import IN_ROOT, INSIDE, openat2
from torpor.plugin.agent.pack import Packer
from torpor.plugin.agent.procview import Mount, NodeView
from torpor.plugin.agent.treefile import ENTRIES, Grown, Writer
from torpor.plugin.agent.unpack import Unpacker


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What was taken of one tree."""

    entries: int
    size_bytes: int
    notes: tuple[str, ...]


def root_directory(name: str) -> str:
    """Where a container's changed files lie in the staged tree."""
    return f"rootfs/{name}"


def volume_directory(key: str) -> str:
    """Where an emptyDir lies in the staged tree."""
    return f"volumes/{key}"


def capture_root(
    container: Container, view: NodeView, into: Path, grown: Grown | None = None
) -> Captured:
    """Archive what changed in the root file system; ``grown`` see `treefile.Writer`.

    Raises:
        Refused: the root is no overlay, or holds a device node.
    """
    mount = container.root_mount
    subject = f"root file system of {container.name}"
    with _translated(subject), Writer(into, grown) as writer:
        if "ro" in mount.options:
            return Captured(entries=0, size_bytes=0, notes=())
        upper_path = _upper(mount, subject)
        with (
            _opened(os.open(view.host_root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as host,
            _opened(openat2(host, upper_path, os.O_PATH | os.O_DIRECTORY, IN_ROOT)) as upper,
            _task_root(container.init_pid, view) as root,
        ):
            notes = _redirect_notes(mount, subject)
            packer = Packer(
                root=root,
                writer=writer,
                subject=subject,
                names_in=lambda path, _: _listed(upper, path),
                notes=notes,
            )
            packer.run()
        return Captured(
            entries=writer.count, size_bytes=writer.size_bytes, notes=tuple(packer.notes)
        )


def capture_volume(
    container: Container,
    part: VolumePart,
    view: NodeView,
    into: Path,
    grown: Grown | None = None,
) -> Captured:
    """Archive an emptyDir; ``grown`` see `treefile.Writer`."""
    subject = f"volume {part.name} of {container.name}"
    with (
        _translated(subject),
        Writer(into, grown) as writer,
        _volume_root(container, part, view) as root,
    ):
        packer = Packer(root=root, writer=writer, subject=subject)
        packer.run()
        return Captured(
            entries=writer.count, size_bytes=writer.size_bytes, notes=tuple(packer.notes)
        )


def apply_root(container: Container, view: NodeView, archive: Path) -> int:
    """Bring the changed files into a new container; gives the number of entries."""
    subject = f"root file system of {container.name}"
    with _translated(subject), _task_root(container.init_pid, view) as root:
        if not (archive / ENTRIES).stat().st_size:
            return 0
        mounts = frozenset(point.strip("/") for point in container.mount_points)
        return Unpacker(root=root, archive=archive, mounts=mounts).run()


def apply_volume(container: Container, part: VolumePart, view: NodeView, archive: Path) -> int:
    """Bring an emptyDir back; gives the number of entries."""
    subject = f"volume {part.name} of {container.name}"
    with _translated(subject), _volume_root(container, part, view) as root:
        return Unpacker(root=root, archive=archive, mounts=_below(container, part)).run()


def write_mark(container: Container, view: NodeView, name: str, text: str) -> None:
    """Write a file where the placeholder looks, as a whole and readable by anybody.

    Raises:
        Refused: the container has no placeholder volume.
    """
    subject = f"{PLACEHOLDER_MOUNT}/{name} of {container.name}"
    place = VolumePart(name="placeholder", sub_path="", mount_path=PLACEHOLDER_MOUNT)
    with _translated(subject), _volume_root(container, place, view) as directory:
        temporary = f".{name}.new"
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o444, dir_fd=directory), "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o444)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def has_mark(container: Container, view: NodeView, name: str) -> bool:
    """Whether that file is there."""
    place = VolumePart(name="placeholder", sub_path="", mount_path=PLACEHOLDER_MOUNT)
    subject = f"{PLACEHOLDER_MOUNT}/{name} of {container.name}"
    with _translated(subject), _volume_root(container, place, view) as directory:
        try:
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


def data_links(container: Container, view: NodeView) -> dict[str, str]:
    """Mount point -> current ``..data`` of each ConfigMap, Secret and projected volume."""
    found = {}
    with _task_root(container.init_pid, view) as root:
        for point in container.mount_points:
            try:
                with _opened(
                    openat2(root, f"{point}/..data", os.O_PATH | os.O_NOFOLLOW, IN_ROOT)
                ) as link:
                    target = os.readlink("", dir_fd=link)
            except OSError:
                continue
            if target and "/" not in target and target not in (".", ".."):
                found[point] = target
    return found


def path_map(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """Old path -> new path of the dated directories behind ``..data``."""
    return {
        f"{point}/{target}": f"{point}/{new[point]}"
        for point, target in old.items()
        if point in new and new[point] != target
    }


# ---- places ------------------------------------------------------------------------------


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _task_root(pid: int, view: NodeView) -> Iterator[int]:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        fd = os.open(view.root_of(pid), flags)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Vanished(
            "the container is gone", subject=f"process {pid}", remedy="try again"
        ) from error
    with _opened(fd) as root:
        yield root


@contextmanager
def _volume_root(container: Container, part: VolumePart, view: NodeView) -> Iterator[int]:
    subject = f"volume {part.name} of {container.name}"
    flags = os.O_PATH | os.O_DIRECTORY
    with (
        _task_root(container.init_pid, view) as root,
        _opened(openat2(root, part.mount_path, flags, IN_ROOT)) as directory,
    ):
        _check_mounted(directory, container, subject)
        yield directory


def _check_mounted(fd: int, container: Container, subject: str) -> None:
    """Raise unless the directory is one of the container's mounts, not its root.

    The container may have moved the directory above a mount point; what its path leads to
    now is then not what the pod declared.
    """
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    mount_id = next(int(line.split()[1]) for line in text.splitlines() if line[:7] == "mnt_id:")
    if not any(
        mount.mount_id == mount_id and mount.mount_point != "/" for mount in container.mounts
    ):
        raise Refused(
            "the volume is not mounted where the pod declares it",
            subject=subject,
            cause="the container moved or covered its mount point",
            remedy="let the workload leave its mount points alone",
        )


def _below(container: Container, part: VolumePart) -> frozenset[str]:
    """Mount points inside a volume, relative to it."""
    prefix = part.mount_path.rstrip("/") + "/"
    return frozenset(
        point[len(prefix) :] for point in container.mount_points if point.startswith(prefix)
    )


def _upper(mount: Mount, subject: str) -> str:
    upper = mount.option("upperdir")
    if mount.fstype != "overlay" or not upper or not upper.startswith("/"):
        raise Refused(
            "changes of this root file system cannot be found",
            subject=subject,
            cause=f"it is {mount.fstype}, not an overlay with an upper directory",
            remedy="use the runtime's overlayfs snapshotter, or a read-only root file system",
        )
    return upper


def _listed(upper: int, path: str) -> Sequence[str]:
    """Names in a directory of the upper layer; none where it has no such directory."""
    try:
        fd = openat2(upper, path, os.O_RDONLY | os.O_DIRECTORY, INSIDE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EXDEV, errno.ELOOP):
            return ()
        raise
    with _opened(fd):
        return sorted(os.listdir(fd))


def _redirect_notes(mount: Mount, subject: str) -> list[str]:
    default = Path("/sys/module/overlay/parameters/redirect_dir")
    try:
        is_default = default.read_text().strip() == "Y"
    except OSError:
        is_default = False
    if (mount.option("redirect_dir") or ("on" if is_default else "off")) != "on":
        return []
    return [f"{subject}: directories of the image that were renamed are not taken (redirect_dir)"]


@contextmanager
def _translated(subject: str) -> Iterator[None]:
    """Turn an OSError into what the user can do about it."""
    try:
        yield
    except OSError as error:
        raise _explain(error, subject) from error


def _explain(error: OSError, subject: str) -> Error:
    number = error.errno or errno.EIO
    where = f"{subject}: {error.filename}" if error.filename is not None else subject
    if number in (errno.ENOSPC, errno.EDQUOT):
        return KernelError(
            "no space is left",
            errno=number,
            subject=where,
            remedy="free space for the agent's staging directory, or in the new pod's volume",
        )
    if number in (errno.EACCES, errno.EPERM):
        return Denied(
            "files may not be read or written",
            subject=where,
            cause=os.strerror(number),
            remedy="give the agent the capabilities that its chart lists",
        )
    return KernelError("files could not be read or written", errno=number, subject=where)
