# SPDX-License-Identifier: Apache-2.0
"""The network: a bridge on the control plane's node, a link from it to each node, and routes.

All of it is in the nodes' network namespaces, and so ends with them; the machine has no part in it
and no traffic leaves. Pods of node N are 10.88.N.0/24, routed between the nodes as they are.
"""

from deploy.image.process import run
from tests.e2e.cluster.node import Node

SUBNET = "192.168.77"
CONTROL_PLANE = f"{SUBNET}.1"
SERVER = f"https://{CONTROL_PLANE}:6443"
SERVICES = "10.96.0.0/24"
FIRST_SERVICE = "10.96.0.1"
PODS = "10.88.0.0/16"


def address(index: int) -> str:
    """The address of the node of that index."""
    return f"{SUBNET}.{11 + index}"


def pod_subnet(index: int) -> str:
    """The addresses of that node's pods."""
    return f"10.88.{index}.0/24"


def bridge(control_plane: Node, node_count: int) -> None:
    """Makes the bridge and the control plane's routes to the pods."""
    _ip(
        control_plane,
        "link add br0 type bridge",
        f"addr add {CONTROL_PLANE}/24 dev br0",
        "link set br0 up",
        *(f"route add {pod_subnet(i)} via {address(i)}" for i in range(node_count)),
    )


def connect(control_plane: Node, node: Node, index: int, node_count: int) -> None:
    """Links a node to the bridge, and gives it its address and routes."""
    _ip(control_plane, f"link add v{index} type veth peer name eth0 netns {node.pid()}")
    _ip(control_plane, f"link set v{index} master br0 up")
    others = (i for i in range(node_count) if i != index)
    _ip(
        node,
        f"addr add {address(index)}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {CONTROL_PLANE}",
        *(f"route add {pod_subnet(i)} via {address(i)}" for i in others),
    )


def _ip(node: Node, *commands: str) -> None:
    batch = "\n".join(commands) + "\n"
    run(
        node.enter_network(["ip", "-batch", "-"]),
        what=f"setting up the network of {node.name}",
        input_text=batch,
    )
