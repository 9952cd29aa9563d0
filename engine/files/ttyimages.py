# SPDX-License-Identifier: Apache-2.0
"""Terminals in images: CRIU's messages, and what they cannot say in torpor.json.

Facts (seen in images of CRIU 4.2):
- A tty_file_entry in files.img names the end (tty-info.img) and a reg_file_entry of its path.
- tty-data.img has what is queued, by the end that reads it. Of a canonical terminal CRIU keeps
  what one read gave; lines, ends of file and an unfinished line are told apart in torpor.json.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torpor.engine.files.common import (
    FileType,
    O,
    bad_image,
    decode_owner,
    encode_owner,
    path_bytes,
    path_from,
)
from torpor.engine.files.tty import Role, Terminal, Tty, decode_info, encode_info
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import FileId, ImageSink, ImageSource, Stopped, TerminalQueue

PATH_IDS = 1 << 30
"""Ids of the paths are those of the terminals, from here on."""
SECTION = "terminal"
MOST_QUEUED = 1 << 20


def encode(states: Mapping[FileId, Terminal], images: ImageSink) -> None:
    """All terminals of a tree."""
    infos: set[int] = set()
    for file_id, state in sorted(states.items(), key=lambda item: item[1].tty.hung_up):
        tty = state.tty
        path = pb.reg_file_entry(
            id=PATH_IDS + file_id, flags=state.flags, pos=0, fown=encode_owner(state.owner),
            name=path_bytes(state.path), mode=FileType.CHARACTER | tty.mode,
        )  # fmt: skip
        images.add("files", pb.file_entry(type=pb.REG, id=path.id, reg=path))
        entry = pb.tty_file_entry(
            id=file_id, tty_info_id=tty.info_id, flags=state.flags,
            fown=encode_owner(state.owner), regf_id=path.id,
        )  # fmt: skip
        images.add("files", pb.file_entry(type=pb.TTY, id=file_id, tty=entry))
        images.extra(SECTION, str(file_id), _facts(state))
        if tty.info_id not in infos:
            infos.add(tty.info_id)
            images.add("tty-info", encode_info(tty))
            _encode_queue(state, images)


def _facts(state: Terminal) -> dict[str, Any]:
    queue, tty = state.queue, state.tty
    facts: dict[str, Any] = {"mode": tty.mode}
    facts |= {"stdio": state.stdio} if state.stdio >= 0 else {}
    facts |= {"hung_up": True} if tty.hung_up else {}
    facts |= {"abandoned": True} if tty.abandoned else {}
    facts |= {"without": list(tty.without)} if tty.without else {}
    if queue.lines or queue.rest:
        facts |= {"lines": [line.hex() for line in queue.lines], "rest": queue.rest.hex()}
    if queue.stopped is not Stopped.NO:
        facts["stopped"] = queue.stopped.value
    return facts


def _encode_queue(state: Terminal, images: ImageSink) -> None:
    own, other = state.tty.info_id, state.tty.info_id - 1
    inputs = b"".join(state.queue.lines) + state.queue.rest
    for number, data in ((own, state.queue.output), (other, inputs)):
        if data:
            images.add("tty-data", pb.tty_data_entry(tty_id=number, data=data))


def decode(images: ImageSource) -> Mapping[FileId, Terminal]:
    """All terminals of an image directory. Raises BadImage."""
    ends = {e.id: decode_info(e, f"tty-info.img, {e.id}") for e, _ in images.entries("tty-info")}
    queued: dict[int, bytes] = {}
    for entry, _ in images.entries("tty-data"):
        queued[entry.tty_id] = queued.get(entry.tty_id, b"") + entry.data
        if len(queued[entry.tty_id]) > MOST_QUEUED:
            bad_image("too much is queued", f"tty-data.img, {entry.tty_id}")
    paths = {number: entry.name for number, entry in images.files("REG")}
    states = {}
    for file_id, entry in images.files("TTY"):
        where = f"files.img, file {file_id}"
        if entry.tty_info_id not in ends or entry.regf_id not in paths:
            bad_image("a terminal without its settings or its path", where)
        facts = images.extra(SECTION, str(file_id)) or {}
        tty = _with_facts(ends[entry.tty_info_id], facts)
        states[file_id] = Terminal(
            path=path_from(paths[entry.regf_id], where), flags=entry.flags & ~int(O.CLOEXEC),
            tty=tty, stdio=int(facts.get("stdio", -1)), owner=decode_owner(entry.fown),
            queue=_queue(tty, queued, facts, where),
        )  # fmt: skip
    return states


def _with_facts(tty: Tty, facts: Mapping[str, Any]) -> Tty:
    """CRIU has one entry for both what is hung up and what is not."""
    if facts.get("hung_up"):
        tty = replace(tty, hung_up=True, termios=b"", sid=0, pgrp=0)
    return replace(
        tty, mode=int(facts.get("mode", tty.mode)) & 0o7777,
        abandoned=bool(facts.get("abandoned", False)),
        without=tuple(int(pid) for pid in facts.get("without", ())),
    )  # fmt: skip


def _queue(
    tty: Tty, queued: Mapping[int, bytes], facts: Mapping[str, Any], where: str
) -> TerminalQueue:
    if tty.role is not Role.MASTER:
        return TerminalQueue()
    rest = queued.get(tty.info_id - 1, b"")
    lines: tuple[bytes, ...] = ()
    try:
        if "lines" in facts:
            lines = tuple(bytes.fromhex(line) for line in facts["lines"])
            rest = bytes.fromhex(facts["rest"])
        stopped = Stopped(facts.get("stopped", ""))
    except (ValueError, TypeError, KeyError):
        bad_image("what is queued is not told rightly", where)
    return TerminalQueue(
        output=queued.get(tty.info_id, b""), lines=lines, rest=rest, stopped=stopped
    )
