# SPDX-License-Identifier: Apache-2.0
"""A threaded HTTP service: core_http.py FOLDER PORT; with a spool file that has no name."""

import json
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

folder, port = sys.argv[1], int(sys.argv[2])
lock = threading.Lock()
told = {"asked": 0, "beats": 0, "started": time.time()}
spool = tempfile.TemporaryFile("w+", dir=folder)  # noqa: SIM115 (as long as the process)


def beat():
    while True:
        with lock:
            told["beats"] += 1
        time.sleep(0.01)


class Handler(BaseHTTPRequestHandler):
    """Tells what has been counted."""

    def do_GET(self):
        with lock:
            told["asked"] += 1
            spool.seek(0, 2)
            spool.write(f"asked {told['asked']}\n")
            spool.flush()
            spool.seek(0)
            text = json.dumps({**told, "spool": spool.readlines()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words):
        """Say nothing."""


for _ in range(4):
    threading.Thread(target=beat, daemon=True).start()
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
