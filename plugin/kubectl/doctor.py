# SPDX-License-Identifier: Apache-2.0
"""What of an installation would keep a Checkpoint from its end, as far as the API server knows.

Nothing is changed and nothing is asked but lists. What the account may not list is told as such.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from torpor.engine.text import count
from torpor.plugin.api import codec
from torpor.plugin.api.conditions import Conditions, find, is_true
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.reasons import ConditionType
from torpor.plugin.api.v1alpha1 import Checkpoint, CheckpointStore, Restore
from torpor.plugin.k8s.client import Client, Selector
from torpor.plugin.k8s.errors import Forbidden, NotFound
from torpor.plugin.k8s.kinds import CHECKPOINTS, LEASES, NODES, PODS, RESTORES, STORES

AGENT, CONTROLLER = "torpor-agent", "torpor-controller"
LEASE = "torpor-controller"
STALE_S, GOING_S = 60.0, 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that was looked at; what is not ``ok`` has a remedy."""

    ok: bool
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """As it is printed."""
        return f"{'ok' if self.ok else 'wrong':7}{self.text}" + (
            f"\n       remedy: {self.remedy}" if self.remedy else ""
        )


def _good(text: str) -> Finding:
    return Finding(ok=True, text=text)


def _bad(text: str, remedy: str) -> Finding:
    return Finding(ok=False, text=text, remedy=remedy)


def examine(client: Client, now: datetime | None = None) -> list[Finding]:
    """Look at everything, in the order in which one thing needs the other.

    Raises:
        Unreachable: no API server answers.
    """
    found: list[Finding] = []
    at = now or datetime.now(UTC)
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: _stores(client),
        lambda: _controllers(client, at),
        lambda: _agents(client),
        lambda: _objects(client, at),
    )
    for check in checks:
        try:
            found += check()
        except NotFound:
            text = "the API server knows no Checkpoints"
            return [_bad(text, "kubectl apply --server-side -f crds/, then helm install")]
        except Forbidden as error:
            found.append(
                _bad(f"not looked at: {error.what}", "ask with an administrator's account")
            )
    return found


def _stores(client: Client) -> Iterator[Finding]:
    stores = [codec.decode(CheckpointStore, item) for item in client.list(STORES).items]
    if not stores:
        yield _bad(
            "there is no CheckpointStore", "set store.* of the chart, see docs/operations.md"
        )
    for store in stores:
        ready = find(store.status.conditions, ConditionType.READY)
        if ready is not None and ready.status == "True":
            yield _good(f"store {store.metadata.name}: {ready.message}")
        else:
            why = ready.message if ready else "the controller has not looked at it"
            text = f"store {store.metadata.name} is not ready: {why}"
            yield _bad(text, "have the chart mount it (store.*), see whether agents run")
    if len(stores) > 1 and not any(store.spec.default for store in stores):
        yield _bad("no store is the default", "set spec.default of one, or name it in Checkpoints")


def _controllers(client: Client, now: datetime) -> Iterator[Finding]:
    pods = _pods(client, CONTROLLER)
    ready = [pod for pod in pods if _is_ready(pod)]
    if not ready:
        yield _bad(
            "no controller is ready", _describe(pods) or "helm install, see docs/operations.md"
        )
        return
    namespace = str(ready[0]["metadata"]["namespace"])
    try:
        lease = client.get(LEASES, namespace, LEASE)["spec"]
    except NotFound:
        lease = {}
    renewed = datetime.fromisoformat(lease["renewTime"]) if lease.get("renewTime") else None
    if renewed is None or (now - renewed).total_seconds() > STALE_S:
        when = f"since {renewed:%H:%M:%S} UTC" if renewed else "yet"
        text = f"{len(ready)} controllers are ready, and none has led {when}"
        yield _bad(text, f"kubectl -n {namespace} logs {ready[0]['metadata']['name']}")
    else:
        yield _good(f"{count(len(ready), 'controller')} ready, {lease.get('holderIdentity')} leads")


def _agents(client: Client) -> Iterator[Finding]:
    pods = _pods(client, AGENT)
    ready = {str(pod["spec"].get("nodeName")) for pod in pods if _is_ready(pod)}
    if not pods:
        yield _bad("no agent runs", "helm install, see docs/operations.md")
        return
    yield _good(f"{count(len(ready), 'node')} with an agent that is ready")
    images = {each["image"] for pod in pods for each in pod["spec"]["containers"]}
    if len(images) > 1:
        text = f"agents of several versions run: {', '.join(sorted(images))}"
        yield _bad(text, "wait for the roll-out: kubectl rollout status of the agents' DaemonSet")
    without = [
        str(node["metadata"]["name"])
        for node in client.list(NODES).items
        if node["metadata"]["name"] not in ready and _takes_pods(node)
    ]
    if without:
        text = (
            f"pods of {', '.join(sorted(without))} cannot be checkpointed: no agent is ready there"
        )
        yield _bad(
            text, _describe(pods) or "see agent.nodeSelector and agent.tolerations of the chart"
        )


def _objects(client: Client, now: datetime) -> Iterator[Finding]:
    failed: Counter[str] = Counter()
    items: list[Checkpoint | Restore] = [
        *(codec.decode(Checkpoint, body) for body in client.list(CHECKPOINTS).items),
        *(codec.decode(Restore, body) for body in client.list(RESTORES).items),
    ]
    for item in items:
        since, conditions = item.metadata.deletion_timestamp, item.status.conditions
        if since is not None and (now - since).total_seconds() > GOING_S:
            name = f"{item.KIND} {item.metadata.namespace}/{item.metadata.name}"
            yield _bad(
                f"{name} does not go away: {_why(conditions)}",
                "docs/operations.md, a Checkpoint that does not go away",
            )
        if is_true(conditions, ConditionType.FAILED):
            failed[_reason(conditions)] += 1
    reasons = ", ".join(f"{times} {reason}" for reason, times in failed.most_common())
    told = count(len(items), "Checkpoint or Restore", "Checkpoints and Restores")
    yield _good(f"{told}, failed: {reasons or 'none'}")


def _pods(client: Client, program: str) -> list[JsonObject]:
    """Those that run one of our programs, in whatever namespace and under whatever name."""
    component = program.removeprefix("torpor-")
    pods = client.list(PODS, Selector(labels=f"app.kubernetes.io/component={component}")).items
    return [
        pod
        for pod in pods
        if any(each.get("command") == [program] for each in pod["spec"]["containers"])
    ]


def _describe(pods: Sequence[JsonObject]) -> str:
    """How to learn more of one that is not ready."""
    for pod in pods:
        if not _is_ready(pod):
            return (
                f"kubectl -n {pod['metadata']['namespace']} describe pod {pod['metadata']['name']}"
            )
    return ""


def _is_ready(thing: JsonObject) -> bool:
    conditions = (thing.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _takes_pods(node: JsonObject) -> bool:
    """Whether ordinary pods come there: a control plane's are not ours to ask for."""
    taints = node["spec"].get("taints") or ()
    return _is_ready(node) and not any(each["effect"] != "PreferNoSchedule" for each in taints)


def _why(conditions: Conditions) -> str:
    found = find(conditions, ConditionType.READY)
    return found.message if found else "the controller has not looked at it"


def _reason(conditions: Conditions) -> str:
    found = find(conditions, ConditionType.FAILED)
    return found.reason if found else ""
