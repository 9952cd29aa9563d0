# SPDX-License-Identifier: Apache-2.0
"""Models, conditions and durations: JSON in, models, JSON out."""

from datetime import UTC, datetime, timedelta

import pytest

from torpor.engine import errors
from torpor.plugin.api import codec
from torpor.plugin.api.common import node_label
from torpor.plugin.api.conditions import Status, changed, condition, find, is_true, merge
from torpor.plugin.api.duration import format_duration, parse_duration_s
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.reasons import Reason, is_failure
from torpor.plugin.api.v1alpha1 import AfterCheckpoint, Checkpoint, CheckpointStatus

MINIMAL = {"metadata": {"name": "c", "namespace": "n"}, "spec": {"podRef": {"name": "p"}}}


def test_defaults_fill_what_is_absent() -> None:
    checkpoint = codec.decode(Checkpoint, MINIMAL)
    assert checkpoint.spec.after_checkpoint is AfterCheckpoint.CONTINUE
    assert checkpoint.spec.timeout == "5m"
    assert checkpoint.status == CheckpointStatus()


def test_round_trip() -> None:
    data: JsonObject = {
        "metadata": {"name": "c", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {"podRef": {"name": "p", "uid": "x"}, "containers": ["a"], "timeout": "1m"},
        "status": {
            "podUID": "x",
            "sizeBytes": 12,
            "containers": [{"name": "a", "imageID": "i", "memoryBytes": 3}],
            "podTemplate": {"spec": {"anything": [1, None]}},
            "conditions": [
                {
                    "type": "Ready",
                    "status": "False",
                    "reason": "Pending",
                    "message": "",
                    "lastTransitionTime": "2026-01-02T03:04:05Z",
                }
            ],
        },
    }
    encoded = codec.encode(codec.decode(Checkpoint, data))
    for part in ("metadata", "spec", "status"):
        assert data[part].items() <= encoded[part].items()


@pytest.mark.parametrize(
    ("spec", "subject"),
    [
        ({}, "spec.podRef"),
        ({"podRef": {}}, "spec.podRef.name"),
        ({"podRef": {"name": 7}}, "spec.podRef.name"),
        ({"podRef": {"name": "p"}, "containers": "a"}, "spec.containers"),
        ({"podRef": {"name": "p"}, "afterCheckpoint": "Explode"}, "spec.afterCheckpoint"),
    ],
)
def test_bad_fields_are_named(spec: object, subject: str) -> None:
    with pytest.raises(errors.Refused) as caught:
        codec.decode(Checkpoint, {"metadata": {}, "spec": spec})
    assert caught.value.subject == subject


def test_merge_keeps_the_time_while_the_status_stays() -> None:
    early = datetime(2026, 1, 1, tzinfo=UTC)
    late = early + timedelta(minutes=1)
    old = (condition("Ready", False, Reason.PENDING, now=early),)
    same = merge(old, [condition("Ready", False, Reason.IN_PROGRESS, "x", now=late)])
    assert find(same, "Ready").last_transition_time == early  # type: ignore[union-attr]
    assert find(same, "Ready").message == "x"  # type: ignore[union-attr]
    turned = merge(same, [condition("Ready", True, Reason.COMPLETED, now=late)])
    assert find(turned, "Ready").last_transition_time == late  # type: ignore[union-attr]
    assert is_true(turned, "Ready")
    assert len(turned) == 1


def test_changed_is_about_status_and_reason_only() -> None:
    old = (condition("Ready", False, "Pending", "one"),)
    assert changed(old, (condition("Ready", False, "Pending", "two"),)) == ()
    assert len(changed(old, (condition("Ready", False, "InProgress"),))) == 1
    assert len(changed(old, (condition("Ready", Status.UNKNOWN, "Pending"),))) == 1


@pytest.mark.parametrize("error", errors.Error.__subclasses__())
def test_every_error_class_is_a_reason(error: type[errors.Error]) -> None:
    if error.__module__ == "torpor.engine.errors":
        assert is_failure(Reason(error.__name__))


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("1h30m", 5400), ("12.3ms", 0.0123), ("1.5s", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)
    assert parse_duration_s(format_duration(seconds)) == pytest.approx(seconds, rel=0.01)


@pytest.mark.parametrize("text", ["", "5", "m", "-1s", "1 s"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(errors.Refused):
        parse_duration_s(text)


def test_node_label_fits() -> None:
    assert node_label("worker-1") == "worker-1"
    assert len(node_label("n" * 200)) <= 63
    assert node_label("n" * 200) != node_label("n" * 201)
