# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from torpor.plugin.k8s import errors

STARTING = (
    'checkpoints.torpor.dev "a" is forbidden: User "system:serviceaccount:x:agent" cannot patch '
    'resource "checkpoints/status": RBAC: [clusterrole.rbac.authorization.k8s.io '
    '"torpor-agent" not found, clusterrole.rbac.authorization.k8s.io "system:discovery" not found]'
)
LACKING = (
    'checkpoints.torpor.dev "a" is forbidden: User "system:serviceaccount:x:agent" cannot patch '
    'resource "checkpoints/status": RBAC: clusterrole.rbac.authorization.k8s.io '
    '"torpor-agent" not found'
)


@pytest.mark.parametrize(
    ("message", "kind", "reason"),
    [(STARTING, errors.Unreachable, "Unavailable"), (LACKING, errors.Forbidden, "Denied")],
)
def test_a_server_that_has_not_read_its_roles_is_asked_again(message, kind, reason):
    body = json.dumps({"message": message, "reason": "Forbidden"}).encode()
    error = errors.from_status(403, body, "checkpoint a/b")
    assert type(error) is kind
    assert error.reason == reason
    assert error.remedy


def test_a_name_that_is_taken():
    body = json.dumps({"message": "taken", "reason": "AlreadyExists"}).encode()
    assert type(errors.from_status(409, body, "x")) is errors.AlreadyExists


def test_what_is_no_status():
    error = errors.from_status(502, b"<html>", "x")
    assert type(error) is errors.Unreachable
    assert error.what == "<html>"
