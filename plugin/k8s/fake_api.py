# SPDX-License-Identifier: Apache-2.0
"""A small API server over real HTTP, for tests: objects, watches, apply, and planned misfortune.

It keeps any resource by its path and knows no schemas. Tests may break all watches, compact the
history (410 Gone), let requests fail, or stop and start it on the same port.
"""

import contextlib
import copy
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from torpor.plugin.api.fields import JsonObject
from torpor.plugin.k8s.client import APPLY, Client
from torpor.plugin.k8s.fake_objects import apply_status, merged, selected
from torpor.plugin.k8s.kinds import Kind

PAGE = 100


class Address(NamedTuple):
    """What a request path names."""

    plural: str
    namespace: str
    name: str
    subresource: str


class Refusal(Exception):
    """An HTTP status instead of an object."""

    def __init__(self, code: int, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.code = code
        self.reason = reason


class FakeApi:
    """The server and its state; use as a context manager."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.objects: dict[tuple[str, str, str], JsonObject] = {}
        self.history: list[tuple[int, str, str, JsonObject]] = []
        self.version = 100
        self.oldest = 0
        self.watch_generation = 0
        self.requests: list[str] = []
        self.failures: list[int] = []
        self.connections: set[socket.socket] = set()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> "FakeApi":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; on the same port as before when there was one."""
        handler = type("Handler", (_Handler,), {"api": self})
        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Close the port and all watches."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.break_watches()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def client(self) -> Client:
        """A client of this server."""
        from kubernetes import client

        configuration = client.Configuration()
        configuration.host = self.url
        return Client(configuration)

    def break_watches(self) -> None:
        """Cut every open watch in the middle of its stream."""
        with self.changed:
            self.watch_generation += 1
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget the history: watches from an older version get 410."""
        with self.changed:
            self.oldest = self.version
            self.history.clear()

    def fail(self, code: int, times: int = 1) -> None:
        """Let the next requests that are no watch end with ``code``."""
        self.failures += [code] * times

    def put(self, kind: Kind, item: JsonObject) -> JsonObject:
        """Create or replace an object behind the clients' backs."""
        item = copy.deepcopy(item)
        item.setdefault("apiVersion", kind.api_version)
        item.setdefault("kind", kind.kind)
        metadata = item["metadata"]
        key = (kind.plural, str(metadata.get("namespace") or ""), str(metadata["name"]))
        with self.changed:
            metadata.setdefault("uid", self.objects.get(key, item)["metadata"].get("uid") or _uid())
            metadata.setdefault("creationTimestamp", _now())
            metadata.setdefault("generation", 1)
            return self.write(key, item)

    def take(self, kind: Kind, namespace: str, name: str) -> JsonObject | None:
        """An object as it is now."""
        with self.changed:
            return copy.deepcopy(self.objects.get((kind.plural, namespace, name)))

    def kinds(self, kind: Kind) -> list[JsonObject]:
        """All objects of a kind."""
        with self.changed:
            return [copy.deepcopy(o) for (plural, _, _), o in self.objects.items()
                    if plural == kind.plural]  # fmt: skip

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        """Remove an object at once, finalizers or not."""
        with self.changed:
            self.drop((kind.plural, namespace, name))

    def write(self, key: tuple[str, str, str], item: JsonObject) -> JsonObject:
        """Store under a new version and tell the watches; the lock is held."""
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        event = "MODIFIED" if key in self.objects else "ADDED"
        self.objects[key] = item
        self.history.append((self.version, event, key[0], copy.deepcopy(item)))
        self.changed.notify_all()
        return copy.deepcopy(item)

    def drop(self, key: tuple[str, str, str]) -> None:
        """Delete and tell the watches; the lock is held."""
        item = self.objects.pop(key)
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, "DELETED", key[0], item))
        self.changed.notify_all()


class _Handler(BaseHTTPRequestHandler):
    """Requests to a :class:`FakeApi`."""

    api: FakeApi
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Remember the connection, so that stopping the server can cut it."""
        super().setup()
        self.api.connections.add(self.connection)

    def finish(self) -> None:
        """Forget the connection."""
        self.api.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        """Get, list or watch."""
        if self._query().get("watch"):
            self._watch()
        else:
            self._answer(self._read)

    def do_POST(self) -> None:
        """Create."""
        self._answer(self._create)

    def do_PUT(self) -> None:
        """Replace."""
        self._answer(self._replace)

    def do_PATCH(self) -> None:
        """Merge or apply."""
        self._answer(self._patch)

    def do_DELETE(self) -> None:
        """Delete."""
        self._answer(self._delete)

    def _answer(self, act: Any) -> None:  # noqa: ANN401 (bound method)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        try:
            if self.api.failures:
                code = self.api.failures.pop(0)
                raise Refusal(code, "Planned")
            with self.api.changed:
                self.api.requests.append(f"{self.command} {self.path}")
                code, result = 200, act(_address(self.path), body)
        except Refusal as refusal:
            code = refusal.code
            result = {"kind": "Status", "code": code, "reason": refusal.reason}
            result["message"] = str(refusal)
        data = json.dumps(result).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query))

    def _read(self, address: Address, _: JsonObject) -> JsonObject:
        if address.name:
            return self._existing(address)
        items = list(self._matching(address, self._query()))
        start = int(self._query().get("continue", "0"))
        limit = min(int(self._query().get("limit", PAGE)), PAGE)
        metadata = {"resourceVersion": str(self.api.version)}
        if start + limit < len(items):
            metadata["continue"] = str(start + limit)
        return {"metadata": metadata, "items": items[start : start + limit]}

    def _matching(self, address: Address, query: dict[str, str]) -> Iterator[JsonObject]:
        for (plural, namespace, _), item in sorted(self.api.objects.items()):
            if plural != address.plural or address.namespace not in ("", namespace):
                continue
            if selected(item, query):
                yield item

    def _existing(self, address: Address) -> JsonObject:
        item = self.api.objects.get(address[:3])
        if item is None:
            raise Refusal(404, "NotFound", f"{address.plural} {address.name!r} not found")
        return item

    def _create(self, address: Address, body: JsonObject) -> JsonObject:
        metadata = body["metadata"]
        if not metadata.get("name"):
            metadata["name"] = metadata.get("generateName", "") + _uid()[:5]
        key = (address.plural, address.namespace, str(metadata["name"]))
        if key in self.api.objects:
            raise Refusal(409, "AlreadyExists", f"{key[0]} {key[2]!r} already exists")
        metadata |= {"uid": _uid(), "creationTimestamp": _now(), "generation": 1}
        if address.namespace:
            metadata["namespace"] = address.namespace
        return self.api.write(key, body)

    def _replace(self, address: Address, body: JsonObject) -> JsonObject:
        self._guard(self._existing(address), body["metadata"])
        return self.api.write(address[:3], body)

    def _patch(self, address: Address, body: JsonObject) -> JsonObject:
        item = copy.deepcopy(self._existing(address))
        self._guard(item, body.get("metadata", {}))
        if self.headers["Content-Type"] == APPLY:
            apply_status(item, body["status"], self._query()["fieldManager"])
        else:
            item = merged(item, body)
        metadata = item["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            self.api.drop(address[:3])
            return item
        return self.api.write(address[:3], item)

    def _guard(self, item: JsonObject, metadata: JsonObject) -> None:
        for name in ("resourceVersion", "uid"):
            if metadata.get(name) not in (None, item["metadata"][name]):
                raise Refusal(409, "Conflict", f"{name} is {item['metadata'][name]}")

    def _delete(self, address: Address, body: JsonObject) -> JsonObject:
        item = copy.deepcopy(self._existing(address))
        self._guard(item, body.get("preconditions") or {})
        metadata = item["metadata"]
        if metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds"):
            metadata.setdefault("deletionTimestamp", _now())
            return self.api.write(address[:3], item)
        self.api.drop(address[:3])
        return {"kind": "Status", "status": "Success"}

    def _watch(self) -> None:
        query = self._query()
        generation = self.api.watch_generation  # before anybody can see the request, and break it
        self.api.requests.append(f"WATCH {self.path}")
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for event in self._stream(_address(self.path), query, generation):
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                self.wfile.flush()
            self.close_connection = True
        except OSError:
            self.close_connection = True

    def _stream(
        self, address: Address, query: dict[str, str], generation: int
    ) -> Iterator[JsonObject]:
        """Events until somebody breaks the watch, which ends the stream without a last chunk."""
        sent = int(query["resourceVersion"])
        while True:
            with self.api.changed:
                if sent < self.api.oldest:
                    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "old"}
                    yield {"type": "ERROR", "object": gone}
                    return
                fresh = [entry for entry in self.api.history if entry[0] > sent]
                if not fresh:
                    self.api.changed.wait(0.2)
                if generation != self.api.watch_generation:
                    return
            for version, event, plural, item in fresh:
                sent = version
                namespace = item["metadata"].get("namespace", "")
                wanted = plural == address.plural and address.namespace in ("", namespace)
                if wanted and selected(item, query):
                    yield {"type": event, "object": item}


def _address(path: str) -> Address:
    parts = urlsplit(path).path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    return Address(parts[0], namespace, *[*parts[1:], "", ""][:2])


def _uid() -> str:
    return str(uuid.uuid4())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
