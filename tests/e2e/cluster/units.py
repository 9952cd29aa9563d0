# SPDX-License-Identifier: Apache-2.0
"""The command lines of the cluster's programs, as they run on its nodes."""

from tests.e2e.cluster import network

PKI = "/etc/kubernetes/pki"
UNITS_OF_CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
UNITS_OF_NODE = ("containerd", "kubelet", "kube-proxy")
# A node that is silent for so long is NotReady; short, because tests cut the power and wait.
NODE_GRACE_PERIOD = "16s"


def etcd() -> list[str]:
    """etcd without fsync: the cluster's state need not survive the machine's power cut."""
    return [
        "etcd",
        "--data-dir=/var/lib/etcd/data",
        "--unsafe-no-fsync",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--log-level=warn",
    ]


def kube_apiserver() -> list[str]:
    """The API server, with the authorisers and admission of a real cluster."""
    return [
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        "--secure-port=6443",
        f"--advertise-address={network.CONTROL_PLANE}",
        f"--service-cluster-ip-range={network.SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={PKI}/sa.pub",
        f"--service-account-signing-key-file={PKI}/sa.key",
        f"--tls-cert-file={PKI}/apiserver.crt",
        f"--tls-private-key-file={PKI}/apiserver.key",
        f"--client-ca-file={PKI}/ca.crt",
        f"--kubelet-certificate-authority={PKI}/ca.crt",
        f"--kubelet-client-certificate={PKI}/kubelet-client.crt",
        f"--kubelet-client-key={PKI}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def kube_controller_manager() -> list[str]:
    """The controller manager, with an account for each controller."""
    return [
        "kube-controller-manager",
        "--kubeconfig=/etc/kubernetes/manager.kubeconfig",
        "--leader-elect=false",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={PKI}/sa.key",
        f"--root-ca-file={PKI}/ca.crt",
        f"--cluster-signing-cert-file={PKI}/ca.crt",
        f"--cluster-signing-key-file={PKI}/ca.key",
        f"--node-monitor-grace-period={NODE_GRACE_PERIOD}",
        "--node-monitor-period=2s",
        # Volumes are bound at once rather than after the default's 15 seconds.
        "--pvclaimbinder-sync-period=2s",
    ]


def kube_scheduler() -> list[str]:
    """The scheduler."""
    return [
        "kube-scheduler",
        "--kubeconfig=/etc/kubernetes/scheduler.kubeconfig",
        "--leader-elect=false",
    ]


def containerd() -> list[str]:
    """The node's own containerd."""
    return ["containerd", "--config=/etc/kubernetes/containerd.toml"]


def kubelet(name: str, index: int) -> list[str]:
    """kubelet with the node's certificate."""
    return [
        "kubelet",
        "--config=/etc/kubernetes/kubelet.json",
        "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
        f"--hostname-override={name}",
        f"--node-ip={network.address(index)}",
        "--v=1",
    ]


def kube_proxy(name: str) -> list[str]:
    """kube-proxy; conntrack sizes are the machine's, and left alone."""
    return [
        "kube-proxy",
        "--kubeconfig=/etc/kubernetes/proxy.kubeconfig",
        "--proxy-mode=nftables",
        f"--hostname-override={name}",
        f"--cluster-cidr={network.PODS}",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ]


def of_control_plane() -> dict[str, list[str]]:
    """The control plane's programs in the order in which they start."""
    return {
        "etcd": etcd(),
        "kube-apiserver": kube_apiserver(),
        "kube-controller-manager": kube_controller_manager(),
        "kube-scheduler": kube_scheduler(),
    }


def of_node(name: str, index: int) -> dict[str, list[str]]:
    """A node's programs in the order in which they start."""
    return {
        "containerd": containerd(),
        "kubelet": kubelet(name, index),
        "kube-proxy": kube_proxy(name),
    }
