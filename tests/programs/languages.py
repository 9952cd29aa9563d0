# SPDX-License-Identifier: Apache-2.0
"""A server in each language: it adds what it is sent, and counts the ticks of a timer.

The protocol is a line each way on a connection of its own: `add N` gives the sum so far and how
often its timer has ticked. State is kept in memory only, so a fresh start would show at once.
"""

import shutil
import subprocess
from collections.abc import Generator

import pytest

from tests.programs.stage import Stage

Steps = Generator[None, None, None]

NODE = """
let sum = 0, ticks = 0; setInterval(() => ticks++, 20);
require('net').createServer(c => c.on('data', d => {
  sum += parseInt(d.toString().split(' ')[1]); c.end(sum + ' ' + ticks + '\\n'); })
).listen(+process.argv[2], '127.0.0.1');
"""
RUBY = """
require 'socket'
sum, ticks = 0, 0
Thread.new { loop { sleep 0.02; ticks += 1 } }
server = TCPServer.new('127.0.0.1', ARGV[0].to_i)
loop { c = server.accept; sum += c.gets.split[1].to_i; c.puts "#{sum} #{ticks}"; c.close }
"""
PERL = """
use IO::Socket::INET; use Time::HiRes qw(setitimer ITIMER_REAL);
my ($sum, $ticks) = (0, 0);
$SIG{ALRM} = sub { $ticks++ }; setitimer(ITIMER_REAL, 0.02, 0.02);
my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0], Listen => 5,
                              ReuseAddr => 1) or die;
while (1) { my $c = $s->accept or next; my $l; $l = <$c> until defined $l;
  $sum += (split ' ', $l)[1]; print $c "$sum $ticks\\n"; close $c }
"""
PHP = """<?php
$s = stream_socket_server("tcp://127.0.0.1:$argv[1]"); $sum = 0; $ticks = 0;
while (true) { $r = [$s]; $w = $e = null;
  if (!@stream_select($r, $w, $e, 0, 20000)) { $ticks++; continue; }
  $c = stream_socket_accept($s); $sum += (int)explode(' ', fgets($c))[1];
  fwrite($c, "$sum $ticks\\n"); fclose($c); }
"""
ERLANG = """
-module(adder).
-export([start/1]).
start([Port]) ->
  {ok, L} = gen_tcp:listen(list_to_integer(atom_to_list(Port)),
    [{ip, {127,0,0,1}}, {packet, line}, {active, false}, {reuseaddr, true}]),
  Ticker = spawn(fun() -> tick(0) end),
  loop(L, Ticker, 0).
tick(N) -> receive {ask, P} -> P ! {ticks, N}, tick(N) after 20 -> tick(N + 1) end.
loop(L, T, Sum) ->
  {ok, C} = gen_tcp:accept(L), {ok, Line} = gen_tcp:recv(C, 0),
  [_, N] = string:lexemes(string:trim(Line), " "), New = Sum + list_to_integer(N),
  T ! {ask, self()}, receive {ticks, K} -> ok end,
  gen_tcp:send(C, io_lib:format("~p ~p~n", [New, K])), gen_tcp:close(C), loop(L, T, New).
"""
JAVA = """
import java.io.*; import java.net.*; import java.util.*; import java.util.concurrent.atomic.*;
public class Adder {
  public static void main(String[] a) throws Exception {
    AtomicLong sum = new AtomicLong(), ticks = new AtomicLong();
    new Timer(true).schedule(
      new TimerTask() { public void run() { ticks.incrementAndGet(); } }, 20, 20);
    List<byte[]> heap = new ArrayList<>(); for (int i = 0; i < 64; i++) heap.add(new byte[1 << 20]);
    ServerSocket s =
      new ServerSocket(Integer.parseInt(a[0]), 5, InetAddress.getByName("127.0.0.1"));
    while (true) { try (Socket c = s.accept()) {
      String l = new BufferedReader(new InputStreamReader(c.getInputStream())).readLine();
      sum.addAndGet(Long.parseLong(l.split(" ")[1])); System.gc();
      c.getOutputStream().write((sum + " " + ticks + "\\n").getBytes()); } } } }
"""
GO = """
package main
import ("bufio"; "fmt"; "net"; "os"; "sync/atomic"; "time")
func main() {
  var ticks int64; sum := 0
  go func() { for range time.Tick(20 * time.Millisecond) { atomic.AddInt64(&ticks, 1) } }()
  l, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1]); if err != nil { panic(err) }
  for { c, err := l.Accept(); if err != nil { panic(err) }
    var n int; fmt.Fscanf(bufio.NewReader(c), "add %d\\n", &n); sum += n
    fmt.Fprintf(c, "%d %d\\n", sum, atomic.LoadInt64(&ticks)); c.Close() } }
"""
ASYNCIO = """
import asyncio, sys
total = ticks = 0
async def serve(reader, writer):
    global total
    total += int((await reader.readline()).split()[1])
    writer.write(f"{total} {ticks}\\n".encode()); await writer.drain(); writer.close()
async def main():
    global ticks
    child = await asyncio.create_subprocess_exec("sleep", "1000")
    await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    while True: await asyncio.sleep(0.02); ticks += 1
asyncio.run(main())
"""
MULTIPROCESSING = """
import multiprocessing, socket, sys, threading, time
def work(tasks, answers):
    while True: answers.put(sum(tasks.get()))
def main():
    manager = multiprocessing.Manager(); kept = manager.list()
    tasks, answers = multiprocessing.Queue(), multiprocessing.Queue()
    ticks = multiprocessing.Value("i", 0)
    for _ in range(3):
        multiprocessing.Process(target=work, args=(tasks, answers), daemon=True).start()
    def tick():
        while True: time.sleep(0.02); ticks.value += 1
    threading.Thread(target=tick, daemon=True).start()
    server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    while True:
        one, _ = server.accept()
        kept.append(int(one.makefile().readline().split()[1])); tasks.put(list(kept))
        one.sendall(f"{answers.get()} {ticks.value}\\n".encode()); one.close()
if __name__ == "__main__": main()
"""
NUMPY = """
import numpy, socket, sys, threading, time
ticks = 0
def tick():
    global ticks
    while True: time.sleep(0.02); ticks += 1
threading.Thread(target=tick, daemon=True).start()
big = numpy.random.default_rng(7).random((900, 900)); trace = numpy.trace(big @ big)
server = socket.create_server(("127.0.0.1", int(sys.argv[1]))); total = 0
while True:
    one, _ = server.accept(); total += int(one.makefile().readline().split()[1])
    assert numpy.isclose(numpy.trace(big @ big), trace)
    one.sendall(f"{total} {ticks}\\n".encode()); one.close()
"""


def adder(stage: Stage, port: int) -> Steps:
    """Ask such a server, move it, ask again."""
    first = stage.eventually(lambda: stage.ask(port, "add 5") or None, "no answer").split()
    assert first[0] == "5", first
    yield
    second = stage.eventually(lambda: stage.ask(port, "add 7") or None, "no answer").split()
    yield
    third = stage.eventually(lambda: stage.ask(port, "add 30") or None, "no answer").split()
    assert (second[0], third[0]) == ("12", "42"), (second, third)
    assert int(first[1]) <= int(second[1]) <= int(third[1])
    stage.eventually(
        lambda: int(stage.ask(port, "add 0").split()[1]) > int(third[1]) or None, "no tick"
    )


def script(text: str, name: str, *command: str):
    """A program that is a text and an interpreter."""

    def steps(stage: Stage) -> Steps:
        path, port = stage.folder / name, stage.port()
        path.write_text(text)
        stage.run(*command, path, str(port))
        yield from adder(stage, port)

    return steps


def java(stage: Stage) -> Steps:
    """A JVM with garbage collectors, compilers and timers of its own."""
    if not shutil.which("javac"):
        pytest.skip("this machine lacks a Java compiler")
    (stage.folder / "Adder.java").write_text(JAVA)
    subprocess.run(["javac", "-d", stage.folder, stage.folder / "Adder.java"], check=True)
    port = stage.port()
    stage.run("java", "-Xmx256m", "-XX:-UsePerfData", "-cp", stage.folder, "Adder", str(port))
    yield from adder(stage, port)


def go(stage: Stage) -> Steps:
    """A Go server: its own scheduler, stacks and system calls without a libc."""
    compiler = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if not compiler:
        pytest.skip("needs a Go compiler")
    (stage.folder / "main.go").write_text(GO)
    program = stage.folder / "adder"
    subprocess.run([compiler, "build", "-o", program, "main.go"], cwd=stage.folder, check=True)
    port = stage.port()
    stage.run(program, str(port))
    yield from adder(stage, port)


def erlang(stage: Stage) -> Steps:
    """An Erlang machine, with its schedulers and child processes."""
    (stage.folder / "adder.erl").write_text(ERLANG)
    subprocess.run(["erlc", "adder.erl"], cwd=stage.folder, check=True)
    port = stage.port()
    stage.run(
        "erl", "-noshell", "-noinput", "-pa", stage.folder, "-s", "adder", "start", str(port),
        environment={"HOME": str(stage.folder), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    yield from adder(stage, port)


PROGRAMS = {
    "Node.js": script(NODE, "adder.js", "node"),
    "Ruby": script(RUBY, "adder.rb", "ruby"),
    "Perl": script(PERL, "adder.pl", "perl"),
    "PHP": script(PHP, "adder.php", "php"),
    "Erlang": erlang,
    "JVM": java,
    "Go": go,
    "Python asyncio": script(ASYNCIO, "adder.py", "/usr/bin/python3"),
    "Python multiprocessing": script(MULTIPROCESSING, "adder.py", "/usr/bin/python3"),
    "Python numpy": script(NUMPY, "adder.py", "/usr/bin/python3"),
}
