# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401 (objects of the kubernetes package and urllib3)
"""Requests to the API server: objects in and out as JSON, errors as ours.

The ``kubernetes`` package finds the cluster and its credentials; the requests themselves are
plain, because generated clients can neither apply nor watch custom objects well.
"""

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from torpor.engine.errors import Refused
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.k8s.errors import Unreachable, from_status
from torpor.plugin.k8s.kinds import Kind

REQUEST_TIMEOUT_S = 30.0
PAGE_SIZE = 500
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which objects of a kind; empty means all."""

    namespace: str = ""
    labels: str = ""
    fields: str = ""

    def query(self) -> dict[str, str]:
        """As query parameters."""
        pairs = {"labelSelector": self.labels, "fieldSelector": self.fields}
        return {key: value for key, value in pairs.items() if value}


EVERYWHERE = Selector()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Objects of a kind and the version from which to watch on."""

    items: tuple[JsonObject, ...]
    resource_version: str


class Client:
    """One API server and one identity; safe to share between threads."""

    def __init__(self, configuration: Any, *, user_agent: str = "torpor") -> None:
        from kubernetes.client import ApiClient

        self._configuration = configuration
        self._pool: Any = ApiClient(configuration).rest_client.pool_manager
        if str(configuration.host).startswith("https:"):
            self._pool.connection_pool_kw["ssl_context"] = _ssl_context(configuration)
        self._base = str(configuration.host).rstrip("/")
        self._user_agent = user_agent

    def get(self, kind: Kind, namespace: str, name: str) -> JsonObject:
        """Read one object."""
        return self._json("GET", kind.path(namespace, name))

    def list(self, kind: Kind, selector: Selector = EVERYWHERE) -> Listing:
        """Read all objects of a kind, page by page."""
        items: list[JsonObject] = []
        query = {**selector.query(), "limit": str(PAGE_SIZE)}
        while True:
            page = self._json("GET", kind.path(selector.namespace), query)
            for item in page.get("items") or []:
                item.setdefault("apiVersion", kind.api_version)
                item.setdefault("kind", kind.kind)
                items.append(item)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                version = str(metadata.get("resourceVersion", ""))
                return Listing(items=tuple(items), resource_version=version)
            query["continue"] = metadata["continue"]

    def create(self, kind: Kind, namespace: str, body: JsonObject) -> JsonObject:
        """Create an object.

        Raises:
            AlreadyExists: the name is taken.
        """
        full = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        return self._json("POST", kind.path(namespace), body=full)

    def replace(self, kind: Kind, namespace: str, name: str, body: JsonObject) -> JsonObject:
        """Replace an object; ``metadata.resourceVersion`` guards against a lost update."""
        return self._json("PUT", kind.path(namespace, name), body=body)

    def merge(self, kind: Kind, namespace: str, name: str, body: JsonObject) -> JsonObject:
        """JSON merge patch of an object."""
        path = kind.path(namespace, name)
        return self._json("PATCH", path, body=body, content_type=MERGE)

    def apply(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: JsonObject,
        *,
        manager: str,
        subresource: str = "",
    ) -> JsonObject:
        """Server-side apply: ``body`` is all that ``manager`` wants to own."""
        metadata = {**body.get("metadata", {}), "name": name}
        if kind.namespaced:
            metadata["namespace"] = namespace
        full = {**body, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
        path = kind.path(namespace, name, subresource)
        query = {"fieldManager": manager, "force": "true"}
        return self._json("PATCH", path, query, full, content_type=APPLY)

    def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        grace_period_s: int | None = None,
    ) -> None:
        """Delete an object, with ``uid`` only if it is still that one."""
        options: JsonObject = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        self._json("DELETE", kind.path(namespace, name), body=options)

    def watch(
        self, kind: Kind, selector: Selector, resource_version: str, timeout_s: int
    ) -> Iterator[JsonObject]:
        """Yield watch events until the server ends the stream, at most ``timeout_s``.

        Raises:
            Gone: the version is too old.
            Unreachable: the stream broke.
        """
        query = {
            **selector.query(),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_s),
        }
        path = kind.path(selector.namespace)
        response = self._send("GET", path, query, timeout_s=timeout_s + 15.0)
        try:
            yield from _events(response, f"watch of {kind.plural}")
        finally:
            response.close()

    def text(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """Body of any GET, for instance ``/version`` or a pod's log."""
        response = self._send("GET", path, query or {})
        return bytes(response.read()).decode("utf-8", "replace")

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        *,
        content_type: str = "application/json",
    ) -> JsonObject:
        response = self._send(method, path, query or {}, body, content_type=content_type)
        try:
            data = response.read()
            parsed = json.loads(data) if data else {}
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise Unreachable(f"answer broke off: {error}", subject=f"{method} {path}") from error
        finally:
            response.release_conn()
        if not isinstance(parsed, dict):
            raise Unreachable("answer is no object", subject=f"{method} {path}")
        return parsed

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: JsonObject | None = None,
        *,
        content_type: str = "application/json",
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Any:
        headers = {"Accept": "application/json", "User-Agent": self._user_agent}
        headers |= self._credentials()
        if body is not None:
            headers["Content-Type"] = content_type
        url = self._base + path + (f"?{urlencode(query)}" if query else "")
        try:
            response = self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=urllib3.Timeout(connect=5.0, read=timeout_s),
                retries=False,
                preload_content=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(
                f"API server does not answer: {error}",
                subject=f"{method} {path}",
                remedy=f"check that {self._base} can be reached",
            ) from error
        if response.status >= 300:
            data = response.read()
            response.release_conn()
            raise from_status(response.status, data, f"{method} {path}")
        return response

    def _credentials(self) -> dict[str, str]:
        """Headers of the identity; tokens are read anew when they are about to expire."""
        settings = self._configuration.auth_settings()
        return {
            str(setting["key"]): str(setting["value"])
            for setting in settings.values()
            if setting.get("in") == "header" and setting.get("value")
        }


def connect(*, kubeconfig: str = "", context: str = "", user_agent: str = "torpor") -> Client:
    """Client of the cluster we run in, or of the one KUBECONFIG names.

    Raises:
        Refused: neither is there.
    """
    from kubernetes import client
    from kubernetes import config as kubernetes_config

    config: Any = kubernetes_config
    configuration = client.Configuration()
    try:
        if not kubeconfig and not context and IN_CLUSTER_NAMESPACE.exists():
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(
                config_file=kubeconfig or None,
                context=context or None,
                client_configuration=configuration,
            )
    except config.ConfigException as error:
        raise Refused(
            "no cluster to talk to",
            subject=kubeconfig or os.environ.get("KUBECONFIG", "~/.kube/config"),
            cause=str(error),
            remedy="set KUBECONFIG, or give --kubeconfig and --context",
        ) from error
    configuration.connection_pool_maxsize = 32
    return Client(configuration, user_agent=user_agent)


def _ssl_context(configuration: Any) -> ssl.SSLContext:
    """TLS that takes the certificate authorities which kubectl takes.

    Python 3.13 asks for extensions that RFC 5280 wants and that many clusters' authorities lack
    (VERIFY_X509_STRICT: key usage, authority key identifier). The chain is verified all the same.
    """
    context: ssl.SSLContext = urllib3.util.ssl_.create_urllib3_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _events(response: Any, subject: str) -> Iterator[JsonObject]:
    """Decode the lines of a watch stream."""
    buffer = b""
    try:
        for piece in response.stream(65536, decode_content=True):
            buffer += piece
            *lines, buffer = buffer.split(b"\n")
            for line in filter(None, lines):
                yield _event(line, subject)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise Unreachable(f"stream broke: {error}", subject=subject) from error


def _event(line: bytes, subject: str) -> JsonObject:
    event: JsonObject = json.loads(line)
    if event.get("type") == "ERROR":
        status = event.get("object") or {}
        raise from_status(int(status.get("code") or 500), json.dumps(status).encode(), subject)
    return event
