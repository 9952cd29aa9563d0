# SPDX-License-Identifier: Apache-2.0
"""What the API server said no with.

The tree, from the engine's root down:
    engine.errors.Error
    └─ ApiError             any other status; `code` and `api_reason` are the server's
       ├─ NotFound          404
       ├─ Conflict          409: the object changed since it was read
       ├─ AlreadyExists     409: the name is taken
       ├─ Gone              410: the resource version is too old to watch from
       ├─ Forbidden         401, 403: a right is missing
       ├─ Invalid           400, 422: the object breaks a rule
       └─ Unreachable       no answer at all, or 429 and 5xx: try again; 403 of a server that
                            has just begun

A server answers before it has read its roles: it refuses everything then, and names roles as not
found that every cluster has (seen with Kubernetes 1.34, in a test that restarts it).
"""

import json
from typing import Any

from torpor.engine.errors import Error


class ApiError(Error):
    """The API server refused a request."""

    condition_reason = "Unavailable"

    def __init__(
        self, what: str, *, code: int = 0, api_reason: str = "", subject: str = "", remedy: str = ""
    ) -> None:
        super().__init__(what, subject=subject, remedy=remedy)
        self.code = code
        self.api_reason = api_reason

    @property
    def reason(self) -> str:
        """The class of :mod:`torpor.engine.errors` that fits, for conditions."""
        return self.condition_reason


class NotFound(ApiError):
    """The object does not exist."""

    condition_reason = "Vanished"


class Conflict(ApiError):
    """The object changed since it was read; read it again."""


class AlreadyExists(ApiError):
    """An object of that name exists."""

    condition_reason = "Refused"


class Gone(ApiError):
    """The resource version is too old; list again."""


class Forbidden(ApiError):
    """RBAC or admission does not let us."""

    condition_reason = "Denied"


class Invalid(ApiError):
    """The object breaks a rule of its schema."""

    condition_reason = "Refused"


class Unreachable(ApiError):
    """No answer, or one that says: later."""


_BY_CODE: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: Unreachable,
}
_OF_EVERY_CLUSTER = '"system:discovery" not found'
_REMEDIES: dict[type[ApiError], str] = {
    Forbidden: "give the account this right, see docs/operations.md",
    Unreachable: "try again when the API server answers",
}


def from_status(code: int, body: bytes, subject: str) -> ApiError:
    """The error for an HTTP status and the ``Status`` object that came with it."""
    status = _status(body)
    message = str(status.get("message") or body[:200].decode("utf-8", "replace"))
    api_reason = str(status.get("reason") or "")
    kind = _BY_CODE.get(code, Unreachable if code >= 500 else ApiError)
    if api_reason == "AlreadyExists":
        kind = AlreadyExists
    if kind is Forbidden and _OF_EVERY_CLUSTER in message:
        kind = Unreachable
    return kind(
        message or f"HTTP status {code}",
        code=code,
        api_reason=api_reason,
        subject=subject,
        remedy=_REMEDIES.get(kind, ""),
    )


def _status(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
