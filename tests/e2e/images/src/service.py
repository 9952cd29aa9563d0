# SPDX-License-Identifier: Apache-2.0
"""A threaded HTTP service that holds state of many kinds; run as a pod by the tests.

Threads count and append to an open file in DATA (an emptyDir); a secret is in memory, another in a
temporary file that was unlinked while open. GET / answers with all of it as JSON; GET /reset does
not exist on purpose: only a fresh start has a new identity.
"""

import hashlib
import json
import os
import secrets
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = int(os.environ.get("PORT", "8080"))
DATA = Path(os.environ.get("DATA", "/data"))
THREADS = int(os.environ.get("THREADS", "8"))
BALLAST_BYTES = 16 * 2**20


class State:
    """What must survive a move."""

    def __init__(self):
        self.identity = secrets.token_hex(16)
        self.ballast = secrets.token_bytes(BALLAST_BYTES)
        self.unlinked = tempfile.TemporaryFile(dir=DATA)  # noqa: SIM115, open for life
        self.unlinked.write(self.identity.encode() * 1000)
        self.unlinked.flush()
        self.log = (DATA / "ticks.log").open("a+", buffering=1)
        self.counts = [0] * THREADS
        self.lock = threading.Lock()

    def count(self, index):
        while True:
            time.sleep(0.02)
            with self.lock:
                self.counts[index] += 1
                self.log.write(f"{index} {self.counts[index]}\n")

    def report(self):
        with self.lock:
            size = os.fstat(self.unlinked.fileno()).st_size
            unlinked = os.pread(self.unlinked.fileno(), size, 0)
            lines = (DATA / "ticks.log").read_text().splitlines()
            return {
                "identity": self.identity,
                "pid": os.getpid(),
                "threads": threading.active_count(),
                "counts": list(self.counts),
                "ballast": hashlib.sha256(self.ballast).hexdigest(),
                "unlinked": hashlib.sha256(unlinked).hexdigest(),
                "unlinked_is_whole": unlinked == self.identity.encode() * 1000,
                "log_lines": len(lines),
                "log_is_whole": self._log_is_whole(lines),
                "data": sorted(path.name for path in DATA.iterdir()),
            }

    def _log_is_whole(self, lines):
        """Every count of every thread is there once, in order."""
        seen = [0] * THREADS
        for line in lines:
            index, count = (int(word) for word in line.split())
            if count != seen[index] + 1:
                return False
            seen[index] = count
        return seen == self.counts


class Handler(BaseHTTPRequestHandler):
    state = None

    def do_GET(self):
        body = json.dumps(self.state.report()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    if sys.argv[1:] == ["--query"]:
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=10) as answer:
            print(answer.read().decode())
        return
    Handler.state = State()
    for index in range(THREADS):
        threading.Thread(target=Handler.state.count, args=(index,), daemon=True).start()
    print(f"serving {Handler.state.identity}", flush=True)
    ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()


main()
