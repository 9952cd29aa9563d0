# SPDX-License-Identifier: Apache-2.0
"""Certificates and kubeconfig files: a certificate authority, and one identity for each program.

The identities are Kubernetes' own (system:node:NAME in system:nodes, and so on), so that the API
server's Node and RBAC authorisers see what they see on a real cluster.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deploy.image.process import run

DAYS = "365"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
NO_DEFAULTS = "[req]\ndistinguished_name = dn\n[dn]\n"
CLIENTS = {
    "admin": "/O=system:masters/CN=admin",
    "manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "kubelet-client": "/O=system:masters/CN=apiserver",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One certificate: file name, subject, and the addresses that it serves (none: a client)."""

    name: str
    subject: str
    addresses: str = ""


def node_subject(name: str) -> str:
    """The subject that makes its bearer that node."""
    return f"/O=system:nodes/CN=system:node:{name}"


def issue(folder: Path, identities: Sequence[Identity]) -> None:
    """Makes the authority, the key pair of service accounts, and the certificates."""
    folder.mkdir(parents=True, mode=0o700)
    (folder / "openssl.conf").write_text(NO_DEFAULTS)
    _openssl(
        folder, "req", "-x509", *NEW_KEY, "-keyout", "ca.key", "-out", "ca.crt",
        "-subj", "/CN=torpor-test-ca", "-addext", "basicConstraints=critical,CA:TRUE",
    )  # fmt: skip
    _openssl(folder, "genpkey", "-algorithm", "RSA", "-out", "sa.key")
    _openssl(folder, "pkey", "-in", "sa.key", "-pubout", "-out", "sa.pub")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda identity: _certificate(folder, identity), identities))


def kubeconfig(folder: Path, client: str, server: str) -> str:
    """A kubeconfig with everything in it, so that it works from wherever the server is reached."""
    cluster = {"server": server, "certificate-authority-data": _encoded(folder / "ca.crt")}
    user = {
        "client-certificate-data": _encoded(folder / f"{client}.crt"),
        "client-key-data": _encoded(folder / f"{client}.key"),
    }
    context = {"cluster": "torpor-test", "user": client}
    content: Mapping[str, object] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "torpor-test",
        "clusters": [{"name": "torpor-test", "cluster": cluster}],
        "users": [{"name": client, "user": user}],
        "contexts": [{"name": "torpor-test", "context": context}],
    }
    return json.dumps(content, indent=1) + "\n"


def _certificate(folder: Path, identity: Identity) -> None:
    usage = "clientAuth,serverAuth" if identity.addresses else "clientAuth"
    extensions = ["basicConstraints=critical,CA:FALSE", f"extendedKeyUsage={usage}"]
    if identity.addresses:
        extensions.append(f"subjectAltName={identity.addresses}")
    _openssl(
        folder, "req", "-x509", "-CA", "ca.crt", "-CAkey", "ca.key", *NEW_KEY,
        "-keyout", f"{identity.name}.key", "-out", f"{identity.name}.crt",
        "-subj", identity.subject,
        *(word for text in extensions for word in ("-addext", text)),
    )  # fmt: skip


def _openssl(folder: Path, verb: str, *arguments: str) -> None:
    defaults = ("-config", "openssl.conf", "-days", DAYS) if verb == "req" else ()
    run(["openssl", verb, *defaults, *arguments], what=f"openssl {verb}", cwd=folder)


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
