# SPDX-License-Identifier: Apache-2.0
"""``kubectl torpor``: checkpoint and restore pods, list and inspect what there is.

Exit codes: 0 done; 2 the operation failed; 64 wrong usage; else as in torpor.engine.errors.
"""

import json
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import click
from rich.console import Console

from torpor.engine.errors import Error
from torpor.plugin.api import codec
from torpor.plugin.api.duration import parse_duration_s
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.v1alpha1 import Checkpoint, MemoryWay, Restore
from torpor.plugin.k8s.client import Client, Selector, connect
from torpor.plugin.k8s.errors import NotFound
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS, RESTORES, Kind
from torpor.plugin.k8s.queue import Key
from torpor.plugin.kubectl import show
from torpor.plugin.kubectl.doctor import examine
from torpor.plugin.kubectl.wait import until_ready

EXIT_WRONG, EXIT_USAGE = 2, 64

Command = TypeVar("Command", bound=Callable[..., Any])
Item = TypeVar("Item", Checkpoint, Restore)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Cluster, namespace, and how to print."""

    kubeconfig: str
    context: str
    namespace: str
    output: str

    def client(self) -> Client:
        """Connect; late, so that help needs no cluster."""
        return connect(
            kubeconfig=self.kubeconfig, context=self.context, user_agent="kubectl-torpor"
        )


def common(command: Command) -> Command:
    """Options that every command has, as kubectl calls them."""
    options = (
        click.option("-n", "--namespace", default="", help="Namespace; else the context's."),
        click.option("--kubeconfig", default="", help="Path of the kubeconfig file."),
        click.option("--context", default="", help="Context of the kubeconfig file."),
        click.option(
            "-o",
            "--output",
            type=click.Choice(["text", "json", "name"]),
            default="text",
            help="How to print the result.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _target(options: dict[str, Any]) -> Target:
    namespace = options.pop("namespace") or ""
    kubeconfig, context = options.pop("kubeconfig"), options.pop("context")
    return Target(
        kubeconfig=kubeconfig,
        context=context,
        namespace=namespace or _context_namespace(kubeconfig, context),
        output=options.pop("output"),
    )


def _complete(kind: Kind) -> Callable[..., list[str]]:
    """Names of a kind for the shell; none when there is no cluster."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        try:
            params = {name: context.params.get(name) or "" for name in ("kubeconfig", "context")}
            namespace = context.params.get("namespace") or _context_namespace(**params)
            items = connect(**params).list(kind, Selector(namespace=namespace)).items
        except Error:
            return []
        names = (str(item["metadata"]["name"]) for item in items)
        return [name for name in names if name.startswith(incomplete)]

    return complete


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="torpor", prog_name="kubectl-torpor")
def cli() -> None:
    """Checkpoint running pods, and restore them on any node.

    Exit codes: 0 done, 2 the operation failed, 9 not done in time, 64 wrong usage. An interrupted
    command leaves its object: the work goes on, `inspect` shows it.
    """


@cli.command()
@click.argument("pod", shell_complete=_complete(PODS))
@click.option("--stop", is_flag=True, help="Delete the pod when its state is stored.")
@click.option("--container", "-c", "containers", multiple=True, help="Only these containers.")
@click.option("--store", default="", help="CheckpointStore; else the default one.")
@click.option("--name", default="", help="Name of the Checkpoint; else the pod's with an end.")
@click.option(
    "--memory",
    type=click.Choice([way.value for way in MemoryWay], case_sensitive=False),
    help="How memory is taken; Auto chooses what lets the pod stand still for the least.",
)
@click.option("--max-rounds", type=int, help="Rounds of --memory PreCopy at most.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is Ready.")
@click.option("--timeout", default="5m", show_default=True, help="How long it may take.")
@common
def checkpoint(pod: str, *, wait: bool, **options: Any) -> None:  # noqa: ANN401 (click)
    """Checkpoint the running POD.

    It runs on afterwards, or is deleted with --stop, once its state is safe in the store; when
    anything fails it runs on. With --stop, --memory PreCopy copies memory in rounds before the pod
    stands still.
    """
    target = _target(options)
    client = target.client()
    spec: JsonObject = {"podRef": {"name": pod}, "timeout": options["timeout"]}
    parse_duration_s(options["timeout"])
    if options["stop"]:
        spec["afterCheckpoint"] = "Stop"
    if options["containers"]:
        spec["containers"] = list(options["containers"])
    if options["store"]:
        spec["storeRef"] = {"name": options["store"]}
    memory = {"way": options["memory"], "maxRounds": options["max_rounds"]}
    spec["memory"] = {name: value for name, value in memory.items() if value is not None}
    found = client.get(PODS, target.namespace, pod)
    spec["podRef"]["uid"] = found["metadata"]["uid"]
    name = options["name"] or f"{pod[:50]}-{secrets.token_hex(3)}"
    _create_and_follow(
        client, target, CHECKPOINTS, Checkpoint, {"metadata": {"name": name}, "spec": spec},
        timeout=options["timeout"] if wait else "",
    )  # fmt: skip


@cli.command()
@click.argument("checkpoint_name", metavar="CHECKPOINT", shell_complete=_complete(CHECKPOINTS))
@click.option("--node", default="", help="Node to restore on; else the scheduler chooses.")
@click.option("--pod-name", default="", help="Name of the new pod; else the old one's with an end.")
@click.option("--name", default="", help="Name of the Restore; else the Checkpoint's with an end.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is Ready.")
@click.option("--timeout", default="10m", show_default=True, help="How long it may take.")
@common
def restore(checkpoint_name: str, *, wait: bool, **options: Any) -> None:  # noqa: ANN401 (click)
    """Bring the pod of CHECKPOINT back, on the same node or another.

    A new pod is made of what the old one was, and its processes go on where they were. It never
    becomes a fresh start: when the restore fails the pod ends with code 124, and says why.
    """
    target = _target(options)
    client = target.client()
    parse_duration_s(options["timeout"])
    spec: JsonObject = {"checkpointRef": {"name": checkpoint_name}, "timeout": options["timeout"]}
    if options["node"]:
        spec["nodeName"] = options["node"]
    if options["pod_name"]:
        spec["podName"] = options["pod_name"]
    client.get(CHECKPOINTS, target.namespace, checkpoint_name)
    name = options["name"] or f"{checkpoint_name[:50]}-{secrets.token_hex(3)}"
    _create_and_follow(
        client, target, RESTORES, Restore, {"metadata": {"name": name}, "spec": spec},
        timeout=options["timeout"] if wait else "",
    )  # fmt: skip


@cli.command()
@click.option("-A", "--all-namespaces", is_flag=True, help="Of all namespaces.")
@common
def ls(*, all_namespaces: bool, **options: Any) -> None:  # noqa: ANN401 (click)
    """List Checkpoints and Restores."""
    target = _target(options)
    client = target.client()
    selector = Selector(namespace="" if all_namespaces else target.namespace)
    bodies = [
        item for kind in (CHECKPOINTS, RESTORES) for item in client.list(kind, selector).items
    ]
    if target.output != "text":
        _print_plain(target, {"apiVersion": "v1", "kind": "List", "items": bodies}, bodies)
        return
    console = show.wide_console()
    checkpoints = [codec.decode(Checkpoint, b) for b in bodies if b["kind"] == Checkpoint.KIND]
    restores = [codec.decode(Restore, b) for b in bodies if b["kind"] == Restore.KIND]
    if checkpoints:
        console.print(show.checkpoint_table(checkpoints, namespaces=all_namespaces))
    if checkpoints and restores:
        console.print()
    if restores:
        console.print(show.restore_table(restores, namespaces=all_namespaces))
    if not bodies:
        where = "any namespace" if all_namespaces else f"namespace {target.namespace}"
        click.echo(f"no Checkpoints or Restores in {where}", err=True)


@cli.command()
@click.argument("name", shell_complete=_complete(CHECKPOINTS))
@common
def inspect(name: str, **options: Any) -> None:  # noqa: ANN401 (click)
    """Show all of a Checkpoint or Restore: NAME, checkpoint/NAME or restore/NAME."""
    target = _target(options)
    client = target.client()
    wanted, _, short = name.rpartition("/")
    kinds = {"checkpoint": CHECKPOINTS, "restore": RESTORES}
    if wanted and wanted not in kinds:
        raise click.UsageError(f"{wanted!r} is neither checkpoint nor restore")
    last: NotFound | None = None
    for kind in (kinds[wanted],) if wanted else kinds.values():
        try:
            body = client.get(kind, target.namespace, short)
        except NotFound as error:
            last = error
            continue
        if target.output != "text":
            _print_plain(target, body, [body])
        elif kind is CHECKPOINTS:
            show.print_checkpoint(show.text_console(), codec.decode(Checkpoint, body))
        else:
            show.print_restore(show.text_console(), codec.decode(Restore, body))
        return
    raise NotFound(
        "there is no Checkpoint or Restore of that name",
        subject=f"{target.namespace}/{short}",
        remedy="kubectl torpor ls -A",
    ) from last


@cli.command()
@common
def doctor(**options: Any) -> None:  # noqa: ANN401 (click)
    """Say what of the installation would keep a Checkpoint from its end.

    Looks at stores, controllers, agents, nodes and objects, of all namespaces; changes nothing.
    Exit code 2 when something is wrong.
    """
    target = _target(options)
    found = examine(target.client())
    if target.output == "json":
        click.echo(json.dumps([asdict(each) for each in found], indent=2))
    else:
        for each in found:
            click.echo(str(each))
    if not all(each.ok for each in found):
        raise click.exceptions.Exit(EXIT_WRONG)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL.

    kubectl completes plugins through a program kubectl_complete-torpor in PATH; the script in
    docs/operations.md is that program.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "kubectl-torpor", "_KUBECTL_TORPOR_COMPLETE").source())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors become one line and an exit code."""
    try:
        cli.main(
            args=None if argv is None else list(argv),
            prog_name="kubectl-torpor",
            standalone_mode=False,
            complete_var="_KUBECTL_TORPOR_COMPLETE",
        )
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what was asked for goes on in the cluster", err=True)
        return 130
    except Error as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    return 0


def _create_and_follow(
    client: Client,
    target: Target,
    kind: Kind,
    model: type[Item],
    body: JsonObject,
    *,
    timeout: str,
) -> None:
    created = client.create(kind, target.namespace, body)
    key = Key(target.namespace, str(created["metadata"]["name"]))
    errors = Console(stderr=True, soft_wrap=True)
    if target.output == "text":
        errors.print(f"{kind.kind} {key} created", highlight=False)
    if timeout:
        with errors.status("waiting for the controller") as line:
            last = ""

            def on_change(item: Item) -> None:
                nonlocal last
                text = show.progress_line(item)
                line.update(text)
                if not errors.is_terminal and text != last and target.output == "text":
                    errors.print(f"  {text}", highlight=False, markup=False)
                last = text

            until_ready(
                client,
                kind,
                model,
                key,
                timeout_s=parse_duration_s(timeout) + 60.0,
                on_change=on_change,
            )
    final = client.get(kind, target.namespace, key.name)
    if target.output != "text":
        _print_plain(target, final, [final])
    elif timeout:
        click.echo(_summary(codec.decode(model, final)))


def _summary(item: Checkpoint | Restore) -> str:
    if isinstance(item, Checkpoint):
        return (
            f"checkpoint {item.metadata.name} is Ready: pod {item.spec.pod_ref.name}, "
            f"{show.format_size(item.status.size_bytes)}, pause {item.status.pause or '-'}, "
            f"store {item.status.store_name}\n"
            f"bring it back: kubectl torpor restore {item.metadata.name} "
            f"-n {item.metadata.namespace}"
        )
    return (
        f"restore {item.metadata.name} is Ready: pod {item.status.pod_name} "
        f"on node {item.status.node_name}, downtime {item.status.downtime or '-'}"
    )


def _print_plain(target: Target, whole: JsonObject, items: list[JsonObject]) -> None:
    if target.output == "json":
        click.echo(json.dumps(whole, indent=2))
        return
    for item in items:
        click.echo(f"{str(item['kind']).lower()}/{item['metadata']['name']}")


def _context_namespace(kubeconfig: str, context: str) -> str:
    """Namespace of the kubeconfig's context, ``default`` when it names none."""
    from kubernetes import config as kubernetes_config

    config: Any = kubernetes_config
    try:
        contexts, active = config.list_kube_config_contexts(config_file=kubeconfig or None)
    except config.ConfigException:
        return "default"
    chosen = next((c for c in contexts if c["name"] == context), active) if context else active
    return str((chosen or {}).get("context", {}).get("namespace") or "default")


if __name__ == "__main__":
    sys.exit(main())
