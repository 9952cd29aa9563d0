# SPDX-License-Identifier: Apache-2.0
"""What is done for each request of CRIU's RPC.

Facts (criu 4.2.1, tried): a connection ends after one response, but not after that to PRE_DUMP,
nor when `keep_open` was asked for. A dump notifies of pre-dump, query-ext-files (the answer may
name Unix sockets) and post-dump, a restore of pre-restore, post-restore with the pid of the root,
pre-resume and post-resume; runtimes start a new process for each request. FEATURE_CHECK answers
what was asked for and false for the rest; asked for nothing, it fails. WAIT_PID has the status
of waitpid(2) of a page server that PAGE_SERVER_CHLD has begun.
"""

import os
import sys
from collections.abc import Callable, Mapping

from torpor.engine import logs
from torpor.engine.criu import session
from torpor.engine.criu.parse import CommandLine
from torpor.engine.criu.rpc import BadRequest, Conversation, as_bad_request, response
from torpor.engine.criu.rpcoptions import line_of
from torpor.engine.errors import Bug, Error, Refused, out_of_memory
from torpor.engine.images.proto import rpc_pb2 as pb
from torpor.engine.start import leave
from torpor.engine.version import CRIU_VERSION

FAILED, NOT_UNDERSTOOD = 1, 255
FEATURES = {"mem_track": "mem_dirty_track", "lazy_pages": "uffd-noncoop",
            "pidfd_store": "pidfd_store"}  # fmt: skip
"""Field of a feature check → name for `criu check --feature`."""

log = logs.logger(__name__)

Work = Callable[[Conversation, pb.criu_req], pb.criu_resp]


def serve(conversation: Conversation) -> int:
    """Answer the requests of one caller until it hangs up or has what it wanted.

    Returns the status for a process that has done nothing else.
    """
    status = 0
    while True:
        try:
            request = conversation.request()
        except Error as error:
            _say(error)
            return NOT_UNDERSTOOD
        if request is None:
            return status
        answer = answer_to(conversation, request)
        logs.stop()
        status = 0 if answer.success else FAILED
        try:
            conversation.answer(answer)
        except Error as error:
            _say(error)
            return FAILED
        if answer.type == pb.EMPTY:
            return NOT_UNDERSTOOD
        if not (request.keep_open or (request.type == pb.PRE_DUMP and answer.success)):
            return status


def answer_to(conversation: Conversation, request: "pb.criu_req") -> "pb.criu_resp":
    """Do what is asked; an error becomes a response that tells of it."""
    kind = request.type
    work = WORK.get(kind)
    if work is None:
        error: Error = BadRequest("no request that can be answered", subject=str(kind))
        _say(error)
        return response(pb.EMPTY, error)
    try:
        return work(conversation, request)
    except (Error, MemoryError) as raised:
        error = raised if isinstance(raised, Error) else out_of_memory()
        _say(error)
    except Exception as raised:  # noqa: BLE001 - the caller waits for an answer
        error = Bug("a request ended in an exception", subject=pb.criu_req_type.Name(kind),
                    cause=_trace(raised))  # fmt: skip
        _say(error)
    return response(pb.PAGE_SERVER if kind == pb.PAGE_SERVER_CHLD else kind, error)


def _say(error: Error) -> None:
    """In the log of the request, or before there is one to stderr."""
    if not logs.started():
        logs.start(sys.stderr, criu=True)
    session.tell_failure(error)


def _trace(error: Exception) -> str:
    from traceback import format_exception

    return "".join(format_exception(error))


def _line(conversation: Conversation, request: "pb.criu_req", command: str) -> CommandLine:
    if not request.HasField("opts"):
        raise BadRequest("a request has no options", subject=command, remedy="give opts")
    with as_bad_request():
        return line_of(command, request.opts, conversation.peer)


def _dump(conversation: Conversation, request: "pb.criu_req") -> "pb.criu_resp":
    from torpor.engine.criu import asked, dump

    line = _line(conversation, request, "dump")
    with as_bad_request():
        options = asked.dump_options(line)
    dump.carry_out(options, session.begin(line), _notifier(conversation, request))
    return response(request.type)


def _pre_dump(conversation: Conversation, request: "pb.criu_req") -> "pb.criu_resp":
    from torpor.engine.criu import asked, predump

    line = _line(conversation, request, "pre-dump")
    with as_bad_request():
        options = asked.dump_options(line)
    predump.carry_out(options, session.begin(line))
    return response(request.type)


def _restore(conversation: Conversation, request: "pb.criu_req") -> "pb.criu_resp":
    from torpor.engine.criu import asked, restore

    line = _line(conversation, request, "restore")
    with as_bad_request():
        options = asked.restore_options(line)
    report = restore.carry_out(options, session.begin(line), _notifier(conversation, request))
    answer = response(request.type)
    answer.restore.pid = report.pid
    return answer


def _notifier(
    conversation: Conversation, request: "pb.criu_req"
) -> Callable[[str, int | None], frozenset[str] | None] | None:
    """Tells the caller of stages, if it wants to know."""
    if not request.opts.notify_scripts:
        return None

    def notify(stage: str, root: int | None) -> frozenset[str] | None:
        reply = conversation.notify(stage, root)
        if reply is None:
            return None
        return frozenset(f"unix[{one.inode}]" for one in reply.opts.unix_sk_ino)

    return notify


def _check(conversation: Conversation, request: "pb.criu_req") -> "pb.criu_resp":
    from torpor.engine.criu import check

    given = request.HasField("opts") and (
        request.opts.images_dir_fd >= 0 or bool(request.opts.images_dir)
    )
    line = _line(conversation, request, "check") if given else CommandLine(command="check")
    if check.run(line):
        raise Refused("something is missing that dumps and restores need", subject="check",
                      remedy="see what `criu check` tells")  # fmt: skip
    return response(request.type)


def _cpuinfo(conversation: Conversation, request: "pb.criu_req") -> "pb.criu_resp":
    from torpor.engine.criu import cpuinfo

    dump = request.type == pb.CPUINFO_DUMP
    line = _line(conversation, request, "cpuinfo dump" if dump else "cpuinfo check")
    (cpuinfo.run_dump if dump else cpuinfo.run_check)(line)
    return response(request.type)


def _page_server(conversation: Conversation, request: "pb.criu_req") -> "pb.criu_resp":
    """In a child; that of PAGE_SERVER is nobody's, that of PAGE_SERVER_CHLD can be waited for."""
    from torpor.engine.criu import network, pageserver

    line = _line(conversation, request, "page-server")
    begun = session.begin(line)
    listening = network.listen(line)
    answer = response(pb.PAGE_SERVER)
    answer.ps.port = listening.getsockname()[1]
    pid = os.fork()
    if not pid:
        conversation.close()
        if request.type == pb.PAGE_SERVER:
            session.detach()
        leave(pageserver.serve(begun, None, listening))
    listening.close()
    answer.ps.pid = pid
    return answer


def _wait_pid(_conversation: Conversation, request: "pb.criu_req") -> "pb.criu_resp":
    try:
        _, status = os.waitpid(request.pid, 0) if request.pid else (0, None)
    except ChildProcessError:
        status = None
    if status is None:
        raise Refused("no page server of this connection", subject=f"pid {request.pid}",
                      remedy="give the pid that PAGE_SERVER_CHLD told")  # fmt: skip
    answer = response(request.type)
    answer.status = status
    return answer


def _version(_conversation: Conversation, request: "pb.criu_req") -> "pb.criu_resp":
    answer = response(request.type)
    major, minor = CRIU_VERSION.split(".")
    answer.version.major_number, answer.version.minor_number = int(major), int(minor)
    return answer


def _feature_check(_conversation: Conversation, request: "pb.criu_req") -> "pb.criu_resp":
    from torpor.engine.criu.features import BY_NAME, missing

    if not request.HasField("features"):
        raise Refused("no feature is asked for", subject="FEATURE_CHECK", remedy="give features")
    answer = response(request.type)
    for field, name in FEATURES.items():
        here = bool(getattr(request.features, field)) and not missing(BY_NAME[name])
        setattr(answer.features, field, here)
    return answer


WORK: Mapping[int, Work] = {
    pb.DUMP: _dump,
    pb.RESTORE: _restore,
    pb.CHECK: _check,
    pb.PRE_DUMP: _pre_dump,
    pb.SINGLE_PRE_DUMP: _pre_dump,
    pb.PAGE_SERVER: _page_server,
    pb.PAGE_SERVER_CHLD: _page_server,
    pb.CPUINFO_DUMP: _cpuinfo,
    pb.CPUINFO_CHECK: _cpuinfo,
    pb.FEATURE_CHECK: _feature_check,
    pb.VERSION: _version,
    pb.WAIT_PID: _wait_pid,
}
