# SPDX-License-Identifier: Apache-2.0
"""What is fed with mutated input. A target says whether the input was refused.

Only errors of torpor.engine.errors may come out, and no Bug: `run.feed` counts anything else as
a failure, and what `guard` sees as well.
"""

import json
import os
import shutil
import socket
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random

from tests.fuzz.corpus import Dumped, Image, encoded, tree_archive
from tests.fuzz.mutate import alter, alter_json, damaged
from torpor.engine.criu.asked import dump_options, restore_options
from torpor.engine.criu.parse import parse
from torpor.engine.criu.rpc import Peer, decode
from torpor.engine.criu.rpcoptions import words
from torpor.engine.errors import Bug, Error
from torpor.engine.images import manifest
from torpor.engine.images.directory import ImageDirectory, Verify
from torpor.engine.images.format import read_entries
from torpor.engine.images.pages import read_pagemap
from torpor.engine.images.proto import rpc_pb2
from torpor.engine.inspect.archive import directory_of
from torpor.engine.inspect.plan import plan_lines, restore_plan
from torpor.engine.inspect.read import read
from torpor.engine.inspect.render import lines
from torpor.engine.text import printable
from torpor.plugin.agent.treefile import DATA, ENTRIES
from torpor.plugin.agent.unpack import Unpacker
from torpor.plugin.hook.nri import NriPlugin, NriSettings
from torpor.plugin.hook.packets import PACKET_LIMIT, _read_call
from torpor.plugin.hook.ttrpc import TO_PLUGIN, Channel
from torpor.plugin.proto import hook_pb2, nri_pb2
from torpor.plugin.store import manifest as store

LONG_PACKET = 4 * PACKET_LIMIT
Feed = Callable[[Random], bool]


@dataclass(frozen=True, slots=True)
class Target:
    """A reader of foreign input; ``share`` of all inputs, in thousandths."""

    name: str
    share: int
    feed: Feed


class Images:
    """Image directories, one file of which is other than it was."""

    def __init__(self, dumped: list[Dumped]) -> None:
        self.dumped = dumped
        self.known = {one.path: one.numbers() for one in dumped}

    def pick(self, chance: Random) -> tuple[Dumped, Image]:
        """Every program as often, and every kind of file."""
        one = chance.choice(self.dumped)
        kinds = sorted({image.kind.name for image in one.images})
        kind = chance.choice(kinds)
        return one, chance.choice([image for image in one.images if image.kind.name == kind])

    def framing(self, chance: Random) -> bool:
        """Bytes of one file, its messages only."""
        _, image = self.pick(chance)
        _, other = self.pick(chance)
        content = damaged(image.content, chance, other.content)
        kind = other.kind if chance.random() < 0.05 else image.kind
        try:
            for _ in read_entries(BytesIO(content), image.name, kind):
                pass
        except Error:
            return True
        return False

    def whole(self, chance: Random) -> bool:
        """A directory with a file of other messages: loaded and planned."""
        return self._with_other(chance, self._plan)

    def shown(self, chance: Random) -> bool:
        """As `whole`, for `torpor show`."""
        return self._with_other(chance, self._show)

    def _with_other(self, chance: Random, use: Callable[[Path], None]) -> bool:
        one, image = self.pick(chance)
        if chance.random() < 0.1:
            one.mend(image.name, None)
        else:
            one.put(image.name, self._other(one, image, chance))
        try:
            return refused(use, one.path)
        finally:
            one.mend(image.name, image.content)

    def _other(self, one: Dumped, image: Image, chance: Random) -> bytes:
        """Messages altered; seldom bytes, but such that the file can still be read."""
        if chance.random() < 0.2:
            for _ in range(8):
                content = damaged(image.content, chance)
                if readable(content, image):
                    return content
        entries = list(image.entries)
        for _ in range(chance.choice((1, 1, 2))):
            _alter_entries(entries, chance, self.known[one.path])
        return encoded(image.kind, entries)

    def own(self, chance: Random) -> bool:
        """torpor.json, with a digest that is right."""
        one = chance.choice(self.dumped)
        document = json.loads(one.manifest)
        part = "facts" if chance.random() < 0.8 else "files"
        document[part] = alter_json(document[part], chance)
        document.pop("digest")
        document["digest"] = manifest._digest(document)
        one.put(manifest.NAME, json.dumps(document).encode())
        try:
            return refused(self._plan if chance.random() < 0.8 else self._show, one.path)
        finally:
            one.mend(manifest.NAME, one.manifest)

    def own_bytes(self, chance: Random) -> bool:
        """torpor.json, its bytes."""
        one = chance.choice(self.dumped)
        return refused(manifest.decode, damaged(one.manifest, chance))

    def pagemap(self, chance: Random) -> bool:
        """A pagemap against its pages."""
        one = chance.choice(self.dumped)
        image = chance.choice([image for image in one.images if image.kind.name == "PAGEMAP"])
        one.put(image.name, self._other(one, image, chance))
        try:
            with ImageDirectory.open(one.path, verify=Verify.NOTHING) as images:
                return refused(lambda name: read_pagemap(images, name),
                               image.name.removesuffix(".img"))  # fmt: skip
        finally:
            one.mend(image.name, image.content)

    @staticmethod
    def _plan(path: Path) -> None:
        for text, _ in plan_lines(restore_plan(path, verify=Verify.NOTHING)):
            printable(text)

    @staticmethod
    def _show(path: Path) -> None:
        for _ in lines(read(path, verify=Verify.NOTHING)):
            pass


def _alter_entries(entries, chance, known):
    at = chance.randrange(len(entries)) if entries else None
    if at is None:
        return
    message, payload = entries[at]
    match chance.randrange(10):
        case 0:
            del entries[at]
        case 1:
            entries.append(entries[at])
        case 2:
            entries.append(entries.pop(at))
        case 3 if payload:
            entries[at] = (message, damaged(payload, chance))
        case _:
            fresh = type(message)()
            fresh.CopyFrom(message)
            alter(fresh, chance, known)
            entries[at] = (fresh, payload)


def readable(content: bytes, image: Image) -> bool:
    """Whether its framing is right."""
    try:
        for _ in read_entries(BytesIO(content), image.name, image.kind):
            pass
    except Error:
        return False
    return True


def refused(use: Callable, argument) -> bool:
    """Whether it was; a bug is none."""
    try:
        use(argument)
    except Bug:
        raise
    except Error:
        return True
    return False


class Archives:
    """Archives: tar as runtimes export them, and torpor's own of directory trees."""

    def __init__(self, folder: Path, dumped: list[Dumped]) -> None:
        self.folder, self.tars = folder, [self._tar(one) for one in smallest(dumped)]
        archive = tree_archive(folder)
        self.entries = [json.loads(line) for line in (archive / ENTRIES).open()]
        self.data = (archive / DATA).read_bytes()

    @staticmethod
    def _tar(one: Dumped) -> bytes:
        stream = BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for path in sorted(one.path.iterdir()):
                archive.add(path, f"checkpoint/{path.name}")
        return stream.getvalue()

    def tar(self, chance: Random) -> bool:
        """A tar archive for `torpor show`: bytes, mostly those of headers."""
        content = bytearray(chance.choice(self.tars))
        for _ in range(chance.choice((1, 2, 8))):
            header = content.rfind(b"ustar", 0, chance.randrange(len(content))) - 257
            at = max(0, header)
            content[at : at + 512] = damaged(bytes(content[at : at + 512]), chance)[:512]
        path = self.folder / "archive.tar"
        path.write_bytes(content)
        return refused(self._show, path)

    @staticmethod
    def _show(path: Path) -> None:
        with directory_of(path) as directory:
            read(directory, verify=Verify.NOTHING)

    def tree(self, chance: Random) -> bool:
        """A tree's archive, unpacked into a hostile directory."""
        archive, target = self.folder / "mutated", self.folder / "root"
        archive.mkdir(exist_ok=True)
        (archive / ENTRIES).write_bytes(self._lines(chance))
        (archive / DATA).write_bytes(self.data[: chance.choice((None, None, 0, 100))])
        target.mkdir()
        (target / "a").symlink_to(self.folder)
        root = os.open(target, os.O_PATH | os.O_DIRECTORY)
        try:
            return refused(lambda one: one.run(), Unpacker(root=root, archive=archive))
        except OSError:  # "it could not be written": a name that is too long, a link in the way
            return True
        finally:
            os.close(root)
            shutil.rmtree(target)

    def _lines(self, chance: Random) -> bytes:
        if chance.random() < 0.3:
            text = "\n".join(json.dumps(entry) for entry in self.entries)
            return damaged(text.encode(), chance)
        entries = alter_json(self.entries, chance)
        found = entries if isinstance(entries, list) else [entries]
        return "".join(json.dumps(entry) + "\n" for entry in found).encode()


class Plugin:
    """Manifests of the store and the wires of the hook."""

    def __init__(self, stored: bytes) -> None:
        self.stored = stored
        self.call = hook_pb2.Call(checkpoint=hook_pb2.CheckpointRequest()).SerializeToString()
        self.nri = NriPlugin(NriSettings(directory=Path("/nonexistent")))

    def manifest(self, chance: Random) -> bool:
        """A manifest of the store."""
        if chance.random() < 0.3:
            content = damaged(self.stored, chance)
        else:
            content = json.dumps(alter_json(json.loads(self.stored), chance)).encode()
        return refused(store.decode, content)

    def packet(self, chance: Random) -> bool:
        """A packet at the hook's socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            request = hook_pb2.Call()
            alter(request, chance, [])
            content = damaged(request.SerializePartialToString() or self.call, chance)
            theirs.send((content * (PACKET_LIMIT if chance.random() < 0.01 else 1))[:LONG_PACKET])
            theirs.shutdown(socket.SHUT_WR)
            return refused(_read_call, ours)

    def ttrpc(self, chance: Random) -> bool:
        """Frames of a runtime at the NRI plugin."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            method = chance.choice(sorted(self.nri._handlers))
            body = nri_pb2.CreateContainerRequest()
            alter(body, chance, [])
            request = nri_pb2.TtrpcRequest(
                service="s", method=method, payload=damaged(body.SerializeToString(), chance)
            ).SerializeToString()
            message = len(request).to_bytes(4, "big") + b"\0\0\0\1\1\0" + request
            frame = TO_PLUGIN.to_bytes(4, "big") + len(message).to_bytes(4, "big") + message
            theirs.send(damaged(frame, chance) if chance.random() < 0.7 else frame)
            theirs.shutdown(socket.SHUT_WR)
            return refused(self._converse, Channel(ours))

    def _converse(self, channel: Channel) -> None:
        while True:
            frame = channel.receive()
            if frame.connection == TO_PLUGIN:
                channel.answer(frame, self.nri._handlers)
            else:
                self.nri._registered(frame)


NOBODYS = Peer(pid=1 << 22, uid=0, gid=0)
"""A caller that has no descriptors."""


def rpc(chance: Random) -> bool:
    """A request of CRIU's RPC, up to what the engine is asked for."""
    request = rpc_pb2.criu_req(type=rpc_pb2.DUMP)
    request.opts.images_dir, request.opts.pid = "/images", 1
    alter(request, chance, [])
    packet = request.SerializePartialToString()
    return refused(_answer_rpc, damaged(packet, chance) if chance.random() < 0.5 else packet)


def _answer_rpc(packet: bytes) -> None:
    request = decode(packet)
    for name in ("status_fd", "cgroup_props_file"):  # would be opened, and are not there
        request.opts.ClearField(name)
    for command, options_of in (("dump", dump_options), ("restore", restore_options)):
        options_of(parse([*words(command, request.opts, NOBODYS), command]))


def smallest(dumped: list[Dumped]) -> list[Dumped]:
    """Some with the least memory, which has to be written for each input."""
    return sorted(dumped, key=lambda one: sum(p.stat().st_size for p in one.path.iterdir()))[:3]


def all_targets(folder: Path, dumped: list[Dumped]) -> tuple[Target, ...]:
    """Every target; shares add up to 1000."""
    from torpor.plugin.store.test_manifest import manifest as example

    images, archives = Images(dumped), Archives(folder, dumped)
    plugin = Plugin(store.encode(example()))
    return (
        Target("image file, bytes", 570, images.framing),
        Target("image directory, load and plan", 50, images.whole),
        Target("image directory, show", 30, images.shown),
        Target("pagemap against pages", 40, images.pagemap),
        Target("torpor.json, facts", 25, images.own),
        Target("torpor.json, bytes", 60, images.own_bytes),
        Target("tar archive, show", 15, archives.tar),
        Target("archive of a tree, unpack", 30, archives.tree),
        Target("manifest of the store", 60, plugin.manifest),
        Target("packets of the hook", 45, plugin.packet),
        Target("wire of ttrpc and NRI", 45, plugin.ttrpc),
        Target("requests of CRIU's RPC", 30, rpc),
    )
