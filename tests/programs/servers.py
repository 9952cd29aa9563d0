# SPDX-License-Identifier: Apache-2.0
"""Servers that people run, with clients that ask over connections of their own or from inside."""

import http.client
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

from tests.programs.stage import ADOPTING, Stage

Steps = Generator[None, None, None]


def redis(stage: Stage) -> Steps:
    """Data, a list, and a script that was loaded."""
    port = stage.port()
    stage.run("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
              "--dir", stage.folder)  # fmt: skip

    def cli(*words: str) -> str | None:
        return command("redis-cli", "-p", str(port), *words)

    stage.eventually(lambda: cli("PING"), "no answer")
    for n in range(0, 200, 20):
        cli("SET", f"key{n}", f"value {n}")
    cli("RPUSH", "list", *map(str, range(300)))
    script = cli("SCRIPT", "LOAD", "return redis.call('LLEN', KEYS[1]) * 2")
    assert script
    cli("SET", "brief", "x", "EX", "3600")
    yield
    assert cli("EVALSHA", script, "1", "list") == "600"
    yield
    assert cli("GET", "key180") == "value 180"
    assert 3000 < int(cli("TTL", "brief") or 0) <= 3600
    assert cli("INCR", "again") == "1"


def memcached(stage: Stage) -> Steps:
    """Keys in slabs, threads that wait in libevent."""
    port = stage.port()
    stage.run(
        "memcached", "-u", "nobody", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-m", "64"
    )

    def say(text: str) -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
            one.sendall(f"{text}\r\nquit\r\n".encode())
            return one.makefile().read()

    stage.eventually(lambda: say("version") or None, "no answer")
    assert "STORED" in say(f"set k 0 0 1000\r\n{'v' * 1000}")
    assert "STORED" in say("set n 0 0 1\r\n5")
    yield
    assert "v" * 1000 in say("get k")
    yield
    assert say("incr n 37").startswith("42")


def nginx(stage: Stage) -> Steps:
    """A master and two workers; then a reload, which makes new workers."""
    port, folder = stage.port(), stage.folder
    (folder / "page").write_text("a page\n" * 1000)
    temporary = " ".join(
        f"{kind}_temp_path {folder};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "conf").write_text(
        f"daemon off; worker_processes 2; user root; pid {folder}/pid; error_log {folder}/errors;\n"
        f"events {{ worker_connections 64; }} http {{ access_log {folder}/access; {temporary}\n"
        f" client_body_temp_path {folder};\n"
        f" server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    live = stage.run("nginx", "-p", folder, "-c", folder / "conf", "-e", folder / "errors")
    page = stage.eventually(lambda: get(port, "/page"), "no page")
    yield
    assert get(port, "/page") == page
    yield
    assert get(port, "/page") == page
    os.kill(live.pid, 1)
    time.sleep(0.5)
    assert get(port, "/page") == page


def apache(stage: Stage) -> Steps:
    """The event MPM: a parent, workers with threads, shared memory and pipes."""
    port, folder = stage.port(), stage.folder
    (folder / "page").write_text("an apache page\n" * 100)
    modules = "".join(
        f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"
        for name in ("mpm_event", "authz_core", "dir")
    )
    (folder / "conf").write_text(
        f"{modules}ServerName here\nServerRoot {folder}\nListen 127.0.0.1:{port}\n"
        f"PidFile {folder}/pid\nErrorLog {folder}/errors\nDocumentRoot {folder}\n"
        f"StartServers 2\nMinSpareThreads 25\nMaxSpareThreads 60\nMaxRequestWorkers 50\n"
        f"Mutex file:{folder} default\nUser nobody\nGroup nogroup\n"
        f"<Directory {folder}>\nRequire all granted\n</Directory>\n"
    )
    stage.run("apache2", "-f", folder / "conf", "-DFOREGROUND")
    page = stage.eventually(lambda: get(port, "/page"), "no page")
    yield
    assert get(port, "/page") == page
    yield
    for _ in range(20):
        assert get(port, "/page") == page


def haproxy(stage: Stage) -> Steps:
    """A proxy with a worker, and the server behind it in the same tree."""
    front, behind, folder = stage.port(), stage.port(), stage.folder
    (folder / "page").write_text("behind\n")
    (folder / "conf").write_text(
        f"global\n nbthread 2\n maxconn 50\ndefaults\n mode http\n timeout connect 5s\n"
        f" timeout client 5s\n timeout server 5s\nfrontend f\n bind 127.0.0.1:{front}\n"
        f" default_backend b\nbackend b\n server s 127.0.0.1:{behind}\n"
    )
    stage.shell(
        f"cd {folder}; /usr/bin/python3 -m http.server -b 127.0.0.1 {behind} & "
        f"haproxy -W -f conf & wait"
    )
    page = stage.eventually(lambda: get(front, "/page"), "no page")
    time.sleep(0.5)
    yield
    assert get(front, "/page") == page
    yield
    assert get(front, "/page") == page


def mosquitto(stage: Stage) -> Steps:
    """A broker with a subscriber inside the tree; every message arrives."""
    port, folder = stage.port(), stage.folder
    (folder / "conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\n"
    )
    stage.shell(
        f"cd {folder}; mosquitto -c conf & sleep 1; "
        f"stdbuf -oL mosquitto_sub -p {port} -t news -q 1 > news & wait"
    )

    def publish(text: str) -> bool | None:
        done = command("mosquitto_pub", "-p", str(port), "-t", "news", "-q", "1", "-m", text)
        return None if done is None else True

    stage.eventually(lambda: publish("hello") and stage.text("news"), "no news")
    for text in ("one", "two"):
        time.sleep(0.3)
        yield
        publish(text)
        stage.eventually(lambda t=text: t in (stage.text("news") or "") or None, "no news")
    assert (stage.text("news") or "").split()[-2:] == ["one", "two"]


def postgresql(stage: Stage) -> Steps:
    """A cluster with an open transaction in a psql session of the same tree."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    folder, data = stage.folder, stage.folder / "data"
    user = owner("postgres")
    shutil.chown(folder, user)
    options = f"-c listen_addresses='' -k {folder} -c jit=off"
    stage.shell(
        f"cd {folder}; {binaries}/initdb -D data -U postgres -A trust -N > init.log 2>&1 && "
        f"mkfifo say && exec 3<>say; {binaries}/postgres -D data {options} > log.pg 2>&1 & "
        f"exec 3<>say; until {binaries}/pg_isready -q -h {folder}; do sleep 0.1; done; "
        f"{binaries}/psql -h {folder} -U postgres -qtA < say > told 2>&1 & touch up; wait",
        user=user,
    )
    stage.eventually(lambda: (folder / "up").exists() or None, "no server")

    def tell(text: str) -> None:
        with (folder / "say").open("w") as fifo:
            fifo.write(text + "\n")

    def psql(text: str) -> str | None:
        words = (f"{binaries}/psql", "-h", str(folder), "-U", "postgres", "-qtA", "-c", text)
        return command(*words)

    psql("create table t (n int); insert into t select generate_series(1, 1000)")
    tell("begin; insert into t values (7), (8); select 'count ' || count(*) from t;")
    stage.eventually(lambda: "count 1002" in (stage.text("told") or "") or None, "no answer")
    assert psql("select count(*) from t") == "1000"
    time.sleep(0.5)
    yield
    assert psql("select count(*) from t") == "1000"
    tell("insert into t values (9); select 'now ' || count(*) from t;")
    stage.eventually(lambda: "now 1003" in (stage.text("told") or "") or None, "no answer")
    time.sleep(0.5)
    yield
    tell("commit; select 'done';")
    stage.eventually(lambda: "done" in (stage.text("told") or "") or None, "no answer")
    assert psql("select count(*) from t") == "1003"
    assert data.exists()


def mariadb(stage: Stage) -> Steps:
    """InnoDB with its threads and asynchronous reads."""
    folder = stage.folder
    user = owner("mysql")
    shutil.chown(folder, user)
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={folder}/data", "--user=mysql",
               "--auth-root-authentication-method=normal"]  # fmt: skip
    subprocess.run(install, check=True, capture_output=True)
    stage.run(
        "/usr/sbin/mariadbd", "--no-defaults", f"--datadir={folder}/data", "--skip-networking",
        f"--socket={folder}/s", "--user=mysql", "--innodb-buffer-pool-size=64M",
    )  # fmt: skip

    def sql(text: str) -> str | None:
        return command(
            "mariadb", "--no-defaults", "-uroot", f"--socket={folder}/s", "-N", "-e", text
        )

    stage.eventually(lambda: sql("select 1"), "no server")
    sql("create database d; create table d.t (n int) engine=innodb")
    sql("insert into d.t select seq from d.seq_1_to_5000")
    time.sleep(0.5)
    yield
    assert sql("select sum(n) from d.t") == str(5000 * 5001 // 2)
    sql("insert into d.t values (1)")
    time.sleep(0.5)
    yield
    assert sql("select sum(n) from d.t") == str(5000 * 5001 // 2 + 1)


def rabbitmq(stage: Stage) -> Steps:
    """A queue on the Erlang machine, with its port mapper; messages stay in their order."""
    port, home = stage.port(), stage.folder
    stage.run(
        *ADOPTING, "/usr/lib/rabbitmq/bin/rabbitmq-server",
        environment={
            **os.environ, "HOME": str(home), "RABBITMQ_NODENAME": "moving@localhost",
            "RABBITMQ_MNESIA_BASE": str(home), "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_NODE_PORT": str(port), "RABBITMQ_DIST_PORT": str(stage.port()),
            "ERL_EPMD_PORT": str(stage.port()), "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/none",
        },
    )  # fmt: skip
    stage.busy = True

    def amqp(verb: str, *words: str) -> str | None:
        return command(f"amqp-{verb}", "-u", f"amqp://guest:guest@127.0.0.1:{port}", *words)

    stage.eventually(lambda: amqp("declare-queue", "-q", "news"), "no broker")
    for text in ("one", "two", "three"):
        assert amqp("publish", "-r", "news", "-b", text) is not None
    for text in ("one", "two"):
        yield
        assert amqp("get", "-q", "news") == text
    assert amqp("get", "-q", "news") == "three"


def command(*words: str) -> str | None:
    """What a client's command says; None when it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else None


def get(port: int, path: str) -> bytes | None:
    """A page over a connection of its own."""
    one = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    one.request("GET", path, headers={"Connection": "close"})
    answer = one.getresponse()
    text = answer.read()
    one.close()
    return text if answer.status == 200 else None


def owner(name: str) -> int:
    """A service's user."""
    return pwd.getpwnam(name).pw_uid


PROGRAMS = {
    "Redis": redis, "memcached": memcached, "nginx": nginx, "Apache": apache,
    "HAProxy": haproxy, "mosquitto": mosquitto, "PostgreSQL": postgresql, "MariaDB": mariadb,
    "RabbitMQ": rabbitmq,
}  # fmt: skip
