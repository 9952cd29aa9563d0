# SPDX-License-Identifier: Apache-2.0
"""Configuration files of a node: containerd, kubelet, the pod network.

containerd is as Debian ships it but for two settings that a machine without CAP_SYS_RESOURCE or
without the hugetlb controller needs, and the name of the pause image.
"""

import json

from tests.e2e.cluster import network

PAUSE_IMAGE = "localhost/torpor-test-pause:1"
CONTAINERD_2 = f"""version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "/etc/kubernetes/cni"
"""
CONTAINERD_1 = f"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "/etc/kubernetes/cni"
"""


def containerd(version: str) -> str:
    """The configuration for that version of containerd."""
    return CONTAINERD_1 if version.split(".", maxsplit=1)[0] == "1" else CONTAINERD_2


def pod_network(index: int) -> str:
    """The CNI configuration: a bridge for the node's pods, and host ports."""
    ranges = [[{"subnet": network.pod_subnet(index)}]]
    addresses = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    plugins = [{**bridge, "ipam": addresses}, ports]
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}, indent=1)


def kubelet() -> str:
    """kubelet's configuration: certificates checked, authorisation asked of the API server."""
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"},
                "webhook": {"enabled": True},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": "/etc/kubernetes/pki/serve.crt",
            "tlsPrivateKeyFile": "/etc/kubernetes/pki/serve.key",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "resolvConf": "/etc/resolv.conf",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "staticPodPath": "/etc/kubernetes/manifests",
            "oomScoreAdj": 0,
            "enforceNodeAllocatable": [],
            # Absolute and low: the machine's disk and memory are not the cluster's alone.
            "evictionHard": {
                "memory.available": "50Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "4s",
        },
        indent=1,
    )
