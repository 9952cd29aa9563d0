# SPDX-License-Identifier: Apache-2.0
import os
import socket
import subprocess
import sys
import threading

import pytest

from torpor.engine import logs
from torpor.engine.criu import config, requests, service
from torpor.engine.criu.asked import dump_options, restore_options
from torpor.engine.criu.options import LONG
from torpor.engine.criu.rpc import EBADRQC, BadRequest, Conversation, Peer, decode
from torpor.engine.criu.rpcoptions import (
    FLAGS,
    LISTS,
    OF_NAMESPACES,
    REFUSED,
    VALUES,
    WRITTEN,
    line_of,
)
from torpor.engine.errors import Refused
from torpor.engine.images.proto import rpc_pb2 as pb
from torpor.engine.options import After, NetworkLock, TcpPolicy


@pytest.fixture(autouse=True)
def no_files_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "no.conf")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    logs.stop()


@pytest.fixture
def pair():
    """A caller's socket, and our conversation with it."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(10)
    conversation = Conversation(ours)
    yield theirs, conversation
    theirs.close()
    conversation.close()


@pytest.fixture
def images(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def line(pair, command="dump", **fields):
    return line_of(command, pb.criu_opts(**fields), pair[1].peer)


def answers(pair, *packets):
    """What is answered to packets; then the status that was left with."""
    theirs, conversation = pair
    status = []

    def serve():
        status.append(requests.serve(conversation))
        conversation.close()

    ours = threading.Thread(target=serve)
    ours.start()
    found = []
    for packet in packets:
        theirs.send(packet if isinstance(packet, bytes) else packet.SerializePartialToString())
        found.append(pb.criu_resp.FromString(theirs.recv(1 << 16)))
    theirs.close()
    ours.join()
    return found, status[0]


def test_the_version_is_told(pair):
    (answer,), status = answers(pair, pb.criu_req(type=pb.VERSION))
    assert (answer.success, answer.version.major_number, answer.version.minor_number) == (
        True,
        4,
        2,
    )
    assert status == 0


def test_a_connection_may_be_kept(pair):
    found, _ = answers(
        pair, pb.criu_req(type=pb.VERSION, keep_open=True), pb.criu_req(type=pb.VERSION)
    )
    assert [answer.success for answer in found] == [True, True]


@pytest.mark.parametrize("packet", [b"\x08\x63", pb.criu_req(type=pb.NOTIFY), pb.criu_req(type=0)])
def test_what_is_no_request_is_answered_by_empty(pair, packet):
    (answer,), status = answers(pair, packet)
    assert (answer.type, answer.success, status) == (pb.EMPTY, False, requests.NOT_UNDERSTOOD)


def test_garbage_ends_the_connection(pair):
    theirs, conversation = pair
    theirs.send(b"\xff\xff\xff")
    assert requests.serve(conversation) == requests.NOT_UNDERSTOOD
    with pytest.raises(BadRequest):
        decode(b"\x0a\xff")


@pytest.mark.parametrize("options", [b"\x52\x01\xff", b"\xaa\x02\x01\xff",
                                     b"\xda\x01\x05\x0a\x01\xff\x10\x01"])  # fmt: skip
def test_a_text_that_is_not_utf8_is_refused(options):
    with pytest.raises(BadRequest, match="not UTF-8"):
        decode(b"\x08\x01\x12" + bytes([len(options)]) + options)


def test_features_are_answered_that_were_asked_for(pair):
    asked = pb.criu_req(type=pb.FEATURE_CHECK, features=pb.criu_features(pidfd_store=True))
    (answer,), _ = answers(pair, asked)
    assert answer.success
    assert answer.features == pb.criu_features(mem_track=False, lazy_pages=False, pidfd_store=False)
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    (answer,), _ = answers((pair[0], Conversation(pair[1])), pb.criu_req(type=pb.FEATURE_CHECK))
    assert not answer.success


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "no directory for images"),
        ({"images_dir_fd": 999}, "cannot be opened"),
        ({"images_dir": "/tmp", "log_file": "a/b"}, "no directory in its name"),
        ({"images_dir": "/tmp"}, "pid not specified"),
        ({"images_dir": "/tmp", "pid": 1, "work_dir_fd": 999}, "cannot be opened"),
        ({"images_dir": "/tmp", "pid": 1, "status_fd": 999}, "cannot be opened"),
        ({"images_dir": "/tmp", "pid": 1, "lsm_profile": "x"}, "--lsm-profile"),
        ({"images_dir": "/tmp", "pid": 1, "pidfd_store_sk": 3}, "pidfd_store_sk"),
        ({"images_dir": "/tmp", "pid": 1, "exec_cmd": ["x"]}, "exec_cmd"),
        ({"images_dir": "/tmp", "pid": -7}, "--tree"),
    ],
)
def test_options_that_are_not_taken_are_named(pair, fields, said):
    request = pb.criu_req(type=pb.DUMP, opts=pb.criu_opts(**fields))
    (answer,), status = answers(pair, request)
    assert (answer.type, answer.success, answer.cr_errno) == (pb.DUMP, False, EBADRQC)
    assert said in answer.cr_errmsg
    assert status == requests.FAILED


def test_a_request_without_options_is_refused(pair):
    (answer,), _ = answers(pair, pb.criu_req(type=pb.RESTORE))
    assert (answer.success, answer.cr_errno, answer.restore.pid) == (False, EBADRQC, -1)


def test_options_mean_what_they_mean_on_the_command_line(pair, images, tmp_path):
    options = dump_options(line(
        pair, images_dir_fd=images, pid=7, leave_running=True, tcp_established=True, shell_job=True,
        ghost_limit=77, timeout=5, freeze_cgroup="/c", parent_img="../p", network_lock=pb.SKIP,
        unix_sk_ino=[pb.unix_sk(inode=9)], external=["net[12]:extRootNetNS"], root="/r",
        empty_ns=1 << 30, orphan_pts_master=True, log_level=4,
    ))  # fmt: skip
    assert (options.pid, options.after, options.tcp) == (7, After.CONTINUE, TcpPolicy.KEEP)
    assert (options.ghost_limit_bytes, options.stop_timeout_s, options.parent) == (77, 5, "../p")
    assert options.network_lock is NetworkLock.SKIP
    assert options.external == {"unix[9]"}
    assert options.images_dir == tmp_path


def test_values_become_words(pair):
    asked = line(
        pair, "restore", images_dir="/i", rst_sibling=True, cpu_cap=6, manage_cgroups=True,
        manage_cgroups_mode=pb.CG_NONE, cg_root=[pb.cgroup_root(path="/a"),
        pb.cgroup_root(ctrl="name=systemd", path="/b")],
        inherit_fd=[pb.inherit_fd(key="pipe:[3]", fd=1)],
        ps=pb.criu_page_server_info(address="h", port=5),
    )  # fmt: skip
    assert asked.all("cgroup_root") == ["/a", "name=systemd:/b"]
    assert asked.all("inherit_fd") == ["fd[1]:pipe:[3]"]
    assert asked.last("cpu_cap") == "cpu,ins"
    assert asked.last("manage_cgroups") == "none"
    assert (asked.last("address"), asked.number("port"), asked.flag("page_server")) == (
        "h",
        5,
        True,
    )
    assert asked.flag("restore_detached")
    assert asked.flag("restore_sibling")
    assert asked.last("log_file") == "criu.log"


def test_a_service_takes_descriptors_from_its_caller(pair):
    theirs, conversation = pair
    options = pb.criu_opts(
        images_dir="/i", pid=1, inherit_fd=[pb.inherit_fd(key="pipe:[3]", fd=theirs.fileno())],
        ps=pb.criu_page_server_info(fd=theirs.fileno()),
    )  # fmt: skip
    peer = Peer(pid=os.getpid(), uid=0, gid=0, lends=True)
    asked = line_of("restore", options, peer)
    (name,) = restore_options(asked).inherit
    copies = [restore_options(asked).inherit[name], asked.number("ps_socket")]
    for copy in copies:
        assert copy != theirs.fileno()
        assert os.path.samestat(os.fstat(copy), os.fstat(theirs.fileno()))
        os.close(copy)
    options.inherit_fd[0].fd = 9999
    with pytest.raises(BadRequest, match="cannot be had"):
        line_of("restore", options, peer)
    assert line_of("restore", options, conversation.peer).all("inherit_fd") == ["fd[9999]:pipe:[3]"]


def test_a_file_of_options_counts_more_than_the_request(pair, tmp_path):
    file = tmp_path / "runc.conf"
    file.write_text("tcp-close\nghost-limit 5\n")
    asked = line(pair, images_dir="/i", pid=1, ghost_limit=9, config_file=str(file))
    assert asked.flag("tcp_close")
    assert asked.last("ghost_limit") == "5"
    assert line(pair, images_dir="/i", pid=1, config_file="/nonexistent").number("tree") == 1


def test_every_option_of_the_rpc_leads_somewhere():
    fields = {field.name for field in pb.criu_opts.DESCRIPTOR.fields}
    elsewhere = {
        "images_dir_fd", "images_dir", "work_dir_fd", "pid", "log_level", "log_file",
        "log_to_stderr", "notify_scripts", "config_file", "manage_cgroups", "manage_cgroups_mode",
        "status_fd", "rst_sibling", "inherit_fd", "ps",
    }  # fmt: skip
    known = [*FLAGS, *VALUES, *LISTS, *WRITTEN, *OF_NAMESPACES, *REFUSED, *elsewhere]
    assert sorted(known) == sorted(fields)
    names = {name.replace("_", "-") for name in FLAGS} | set(VALUES.values()) | set(LISTS.values())
    assert names <= set(LONG)


def test_standard_descriptors_are_filled():
    code = (
        "import os, sys; os.closerange(0, 3); sys.stdout = sys.stderr = sys.stdin = None;"
        "from torpor.engine.criu.swrk import fill_standard_descriptors;"
        "fill_standard_descriptors(); print('x');"
        "assert [os.readlink(f'/proc/self/fd/{i}') for i in range(3)] == ['/dev/null'] * 3"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_socket_that_is_left_is_taken_away_and_one_in_use_is_not(tmp_path):
    place = tmp_path / "s"
    service.listen(place).close()
    with service.listen(place) as listening:
        assert place.stat().st_mode & 0o777 == 0o600
        with pytest.raises(Refused, match="another process listens"):
            service.listen(place)
    place.unlink()
    place.write_text("no socket")
    with pytest.raises(Exception, match="cannot listen at"):
        service.listen(place)
    assert place.read_text() == "no socket"
    assert listening.fileno() == -1
