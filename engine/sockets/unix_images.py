# SPDX-License-Identifier: Apache-2.0
"""Unix sockets in images: CRIU's unix_sk_entry, sk-queues.img, and what these cannot say.

torpor.json, section `unix`, key the file's id: see `unsaid`. Where a file was moved, CRIU's entry
has the name by which it is found now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from torpor.engine.files.common import decode_owner, encode_owner
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.abi import S_IFSOCK, SOCK, TCPState
from torpor.engine.kind import FileId, ImageSink, ImageSource, Message
from torpor.engine.sockets import options as sockopts
from torpor.engine.sockets.unix_state import (
    FAMILY_SIZE,
    NOWHERE,
    SCM_RIGHTS,
    Creator,
    Place,
    UnixState,
    strip_name,
)

USK_EXTERN = 1
SECTION = "unix"


def write(
    states: Mapping[FileId, UnixState], outside: Mapping[FileId, bool], images: ImageSink
) -> None:
    """All of them."""
    callers = {inode: s.inode for s in states.values() for inode in s.pending}
    for file_id in _writing_order(states):
        state = states[file_id]
        entry = _message(file_id, state, outside[file_id])
        entry.peer = callers.get(state.inode, entry.peer)
        images.add("files", pb.file_entry(type=pb.UNIXSK, id=file_id, usk=entry))
        for message in state.queue:
            packet = pb.sk_packet_entry(id_for=file_id, length=len(message.data))
            if message.rights:
                packet.scm.add(type=SCM_RIGHTS, rights=message.rights)
            images.add("sk-queues", packet, message.data)
        sockopts.keep(images, file_id, state.options)
        said = unsaid(state)
        if said:
            images.extra(SECTION, str(file_id), said)


def read(images: ImageSource) -> Mapping[FileId, UnixState]:
    """Back."""
    queues: dict[int, list[Message]] = {}
    for entry, payload in images.entries("sk-queues"):
        rights = tuple(FileId(one) for c in entry.scm if c.type == SCM_RIGHTS for one in c.rights)
        message = Message(data=payload, fds=len(rights), rights=rights)
        queues.setdefault(entry.id_for, []).append(message)
    return _with_waiting(
        {
            file_id: _state(images, file_id, message, queues.get(file_id, []))
            for file_id, message in images.files("UNIXSK")
        }
    )


def _with_waiting(states: dict[FileId, UnixState]) -> Mapping[FileId, UnixState]:
    """Clients that wait to be accepted: CRIU names the listener as their peer."""
    listeners = {s.inode: i for i, s in states.items() if s.listening}
    for file_id, state in sorted(states.items()):
        server = listeners.get(state.peer or 0) if state.stream else None
        if server is not None:
            states[file_id] = replace(state, peer=0)
            if state.inode not in states[server].pending:
                pending = (*states[server].pending, state.inode)
                states[server] = replace(states[server], pending=pending)
    return states


def _writing_order(states: Mapping[FileId, UnixState]) -> list[FileId]:
    """Of a pair the end with the higher id first.

    CRIU makes a pair in the task that holds the second one, and that must be the task which
    is there first (seen with 4.2.1).
    """
    by_inode = {s.inode: i for i, s in states.items()}

    def place(file_id: FileId) -> tuple[int, int]:
        other = by_inode.get(states[file_id].peer or 0, file_id)
        if states[other].peer != states[file_id].inode:
            return file_id, 0
        return min(file_id, other), -file_id

    return sorted(states, key=place)


def _message(file_id: FileId, state: UnixState, outside: bool) -> Any:  # noqa: ANN401
    place = state.place
    if state.listening:
        number = TCPState.LISTEN
    else:
        connected = state.peer is not None and state.stream
        number = TCPState.ESTABLISHED if connected else TCPState.CLOSE
    name = place.at.encode("utf-8", "surrogateescape") if place.at else state.name
    message = pb.unix_sk_entry(
        id=file_id,
        ino=state.inode,
        type=state.kind,
        state=number,
        flags=state.flags,
        uflags=USK_EXTERN if outside else 0,
        backlog=state.backlog,
        peer=max(state.peer or 0, 0),
        fown=encode_owner(state.owner),
        opts=sockopts.encode(state.options),
        name=name + b"\0" if state.has_path else name,
        ns_id=sockopts.NET_NS_ID,
    )
    if state.shutdown:
        message.shutdown = cast(Any, state.shutdown)
    if state.has_path:
        message.file_perms.CopyFrom(
            pb.file_perms_entry(mode=place.mode | S_IFSOCK, uid=place.uid, gid=place.gid)
        )
        if place.directory and not place.at:
            message.name_dir = place.directory.encode("utf-8", "surrogateescape") + b"\0"
        if place.deleted:
            message.deleted = True
    return message


def unsaid(state: UnixState) -> dict[str, Any]:
    """What CRIU's messages have no room for; JSON-able."""
    found: dict[str, Any] = {}
    if state.pending:
        found["pending"] = list(state.pending)
    if state.reset:
        found["reset"] = True
    if state.peer is not None and state.peer <= 0:
        found["peer"] = state.peer
    if state.peer_name:
        found["peer_name"] = state.peer_name.hex()
    if state.peer_folder:
        found["peer_folder"] = state.peer_folder
    if state.creator is not None:
        found["creator"] = asdict(state.creator)
    found |= _unsaid_of_place(state)
    if any(m.address[FAMILY_SIZE:] for m in state.queue):
        found["senders"] = [m.address.hex() for m in state.queue]
    if any(m.creds for m in state.queue):
        found["creds"] = [list(m.creds or ()) for m in state.queue]
    return found


def _unsaid_of_place(state: UnixState) -> dict[str, Any]:
    place, found = state.place, dict[str, Any]()
    if place.at:
        found["name"], found["at"] = state.name.hex(), place.at
        found["directory"] = place.directory
    if place.links:
        found["links"] = list(place.links)
    if place.folder:
        found["folder"] = place.folder
    if place.file:
        found["file"] = place.file
    return found


def _place(message: Any, said: Mapping[str, Any]) -> Place:  # noqa: ANN401
    if not message.name or message.name[:1] == b"\0":
        return NOWHERE
    perms = message.file_perms
    directory = message.name_dir.rstrip(b"\0").decode("utf-8", "surrogateescape")
    return Place(
        directory=str(said.get("directory", directory)),
        at=str(said.get("at", "")),
        links=tuple(map(str, said.get("links", ()))),
        deleted=message.deleted,
        folder=str(said.get("folder", "")),
        file=int(said.get("file", 0)),
        mode=perms.mode & 0o7777 if message.HasField("file_perms") else 0o777,
        uid=perms.uid,
        gid=perms.gid,
    )


def _creator(said: Mapping[str, Any]) -> Creator | None:
    found = said.get("creator")
    if not found:
        return None
    groups = tuple(int(one) for one in found["groups"])
    return Creator(
        pid=int(found["pid"]), uid=int(found["uid"]), gid=int(found["gid"]), groups=groups
    )


def _creds(found: tuple[int, ...]) -> tuple[int, int, int] | None:
    return (found[0], found[1], found[2]) if len(found) == 3 else None


def _state(
    images: ImageSource,
    file_id: FileId,
    message: Any,  # noqa: ANN401
    queue: Sequence[Message],
) -> UnixState:
    said = images.extra(SECTION, str(file_id)) or {}
    # connect(2) marks a datagram receiver as established as well, so that says nothing.
    closed = message.state == TCPState.ESTABLISHED and message.type != SOCK.DGRAM
    peer = message.peer or (0 if closed else None)
    senders = [bytes.fromhex(s) for s in said.get("senders", ())]
    creds = [tuple(map(int, one)) for one in said.get("creds", ())]
    listening = message.state == TCPState.LISTEN
    return UnixState(
        inode=message.ino,
        kind=message.type,
        flags=message.flags,
        name=bytes.fromhex(said["name"]) if "name" in said else strip_name(message.name),
        place=_place(message, said),
        peer=None if listening else said.get("peer", peer),
        peer_name=bytes.fromhex(said.get("peer_name", "")),
        peer_folder=str(said.get("peer_folder", "")),
        listening=listening,
        backlog=message.backlog,
        pending=tuple(said.get("pending", ())),
        shutdown=message.shutdown,
        reset=bool(said.get("reset", False)),
        creator=_creator(said),
        owner=decode_owner(message.fown),
        options=sockopts.decode(message.opts, images, file_id),
        queue=tuple(
            replace(
                message,
                address=senders[i] if i < len(senders) else b"",
                creds=_creds(creds[i]) if i < len(creds) else None,
            )
            for i, message in enumerate(queue)
        ),
    )
