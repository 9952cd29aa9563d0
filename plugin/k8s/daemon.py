# SPDX-License-Identifier: Apache-2.0
"""What the agent and the controller share as programs: health and metrics over HTTP, signals."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest

_LOOK_FOR_SHUTDOWN_S = 0.1


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


@contextmanager
def served(
    listen: tuple[str, int],
    registry: CollectorRegistry,
    *,
    healthy: Callable[[], bool],
    ready: Callable[[], bool],
    measure: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Answer /metrics, /healthz and /readyz over plain HTTP meanwhile.

    Args:
        listen: host and port.
        registry: the metrics.
        healthy: false says that this program should be started again.
        ready: false says that it does not do its work yet.
        measure: called before the metrics are read.
    """
    checks = {"/healthz": (healthy, b"not well\n"), "/readyz": (ready, b"not yet\n")}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                measure()
                self._answer(200, generate_latest(registry))
            elif self.path in checks:
                is_good, otherwise = checks[self.path]
                self._answer(*((200, b"ok\n") if is_good() else (503, otherwise)))
            else:
                self._answer(404, b"not found\n")

        def _answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Leave probes out of the log."""

    server = ThreadingHTTPServer(listen, Handler)
    server.daemon_threads = True
    threading.Thread(
        target=server.serve_forever, args=(_LOOK_FOR_SHUTDOWN_S,), name="http", daemon=True
    ).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
