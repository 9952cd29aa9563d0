# SPDX-License-Identifier: Apache-2.0
"""Connections of `page-server` and `dump --page-server`: TCP or a given descriptor, and TLS.

Facts (criu 4.2.1, tried): a server without --address listens everywhere, and takes one connection.
With --tls both sides show a certificate, which is asked for by whoever accepts; files that are not
named are in /etc/pki/criu and /etc/pki/CA.
"""

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.engine import logs
from torpor.engine.criu.parse import CommandLine
from torpor.engine.errors import Refused
from torpor.engine.images.failures import translated

if TYPE_CHECKING:
    import ssl

log = logs.logger(__name__)

CERTIFICATE, KEY = Path("/etc/pki/criu/cert.pem"), Path("/etc/pki/criu/private/key.pem")
AUTHORITY, REVOKED = Path("/etc/pki/CA/cacert.pem"), Path("/etc/pki/CA/cacrl.pem")


def given(line: CommandLine) -> socket.socket | None:
    """The socket of --ps-socket."""
    if not line.flag("ps_socket"):
        return None
    with translated("use", f"descriptor {line.last('ps_socket')}"):
        return socket.socket(fileno=line.number("ps_socket"))


def check(line: CommandLine) -> None:
    """Whether a command line names a page server.

    Raises: Refused.
    """
    if not (line.flag("port") or line.flag("ps_socket")):
        raise Refused("which page server is not said", subject="--page-server",
                      remedy="give --address and --port")  # fmt: skip


def connect(line: CommandLine) -> socket.socket:
    """To the page server that a command line names."""
    connection = given(line)
    if connection is None:
        check(line)
        address = (line.last("address", "127.0.0.1"), line.number("port"))
        with translated("connect to", f"{address[0]}, port {address[1]}"):
            connection = socket.create_connection(address)
    return secured(connection, line, is_server=False)


def listen(line: CommandLine) -> socket.socket:
    """A socket that waits for one connection."""
    host = line.last("address", "0.0.0.0")
    port = line.number("port")
    with translated("listen at", f"{host}, port {port}"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1)


def accept(listening: socket.socket) -> socket.socket:
    """The connection that is waited for."""
    connection, peer = listening.accept()
    listening.close()
    log.info("page server: %s connected", peer[0])
    return connection


def secured(connection: socket.socket, line: CommandLine, *, is_server: bool) -> socket.socket:
    """With TLS if it is asked for."""
    if not line.flag("tls"):
        return connection
    import ssl

    context = _context(line, ssl.Purpose.CLIENT_AUTH if is_server else ssl.Purpose.SERVER_AUTH)
    name = None if is_server else line.last("address", "localhost")
    with translated("agree on TLS", line.last("address")):
        return context.wrap_socket(connection, server_side=is_server, server_hostname=name)


def _context(line: CommandLine, purpose: "ssl.Purpose") -> "ssl.SSLContext":
    import ssl

    context = ssl.create_default_context(purpose)
    context.verify_mode = ssl.CERT_REQUIRED
    if purpose is ssl.Purpose.SERVER_AUTH:
        context.check_hostname = not line.flag("tls_no_cn_verify")
    else:
        context.num_tickets = 0  # criu's client takes a ticket for an answer that does not come
    authority = Path(line.last("tls_cacert") or AUTHORITY)
    revoked = Path(line.last("tls_cacrl") or REVOKED)
    with translated("load the certificates of", "--tls"):
        if line.last("tls_cacert") or authority.exists():
            context.load_verify_locations(authority)
        if line.last("tls_cacrl") or revoked.exists():
            context.load_verify_locations(revoked)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        context.load_cert_chain(line.last("tls_cert") or CERTIFICATE, line.last("tls_key") or KEY)
    return context
