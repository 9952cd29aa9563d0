# SPDX-License-Identifier: Apache-2.0
"""Certificates, configuration, the module's versions and the command line; no root needed."""

import base64
import json
import subprocess
import tomllib

import pytest

from tests.e2e.cluster import cli, config, gobuild, network, pki, units


def test_certificates(tmp_path):
    folder = tmp_path / "pki"
    node = pki.Identity(
        name="serve-a", subject=pki.node_subject("a"), addresses="IP:192.0.2.1,DNS:a"
    )
    admin = pki.Identity(name="admin", subject=pki.CLIENTS["admin"])
    pki.issue(folder, [node, admin])
    text = subprocess.run(
        ["openssl", "x509", "-in", folder / "serve-a.crt", "-noout", "-text"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "O = system:nodes, CN = system:node:a" in text
    assert "IP Address:192.0.2.1" in text
    assert "CA:FALSE" in text
    verify = ["openssl", "verify", "-CAfile", folder / "ca.crt"]
    for purpose, name in (("sslserver", "serve-a"), ("sslclient", "admin")):
        subprocess.run([*verify, "-purpose", purpose, folder / f"{name}.crt"], check=True)
    wrong = [*verify, "-purpose", "sslserver", folder / "admin.crt"]
    assert subprocess.run(wrong, check=False).returncode

    content = json.loads(pki.kubeconfig(folder, "admin", network.SERVER))
    data = content["users"][0]["user"]["client-key-data"]
    assert base64.b64decode(data) == (folder / "admin.key").read_bytes()


@pytest.mark.parametrize(("version", "schema"), [("1.7.24~ds1-6", 2), ("2.1.9+ds", 3), ("10.0", 3)])
def test_containerd_configuration_by_version(version, schema):
    content = tomllib.loads(config.containerd(version))
    assert content["version"] == schema
    assert config.PAUSE_IMAGE in json.dumps(content)


def test_pod_networks_do_not_overlap():
    first, second = (json.loads(config.pod_network(i)) for i in (0, 1))
    assert first["plugins"][0]["ipam"] != second["plugins"][0]["ipam"]
    json.loads(config.kubelet())


def test_units_are_named_as_they_are_called():
    control = units.of_control_plane()
    assert tuple(control) == units.UNITS_OF_CONTROL_PLANE
    assert tuple(units.of_node("a", 0)) == units.UNITS_OF_NODE
    for name, argv in {**control, **units.of_node("a", 0)}.items():
        assert argv[0] == name
    assert "--authorization-mode=Node,RBAC" in control["kube-apiserver"]


def test_versions_are_those_of_the_module():
    assert gobuild.kubernetes_version().startswith("1.34.")
    assert gobuild.helm_version().startswith("3.")
    assert f"gitVersion=v{gobuild.kubernetes_version()}" in " ".join(gobuild._flags())


def test_command_line():
    options = cli.parser().parse_args(["up", "--nodes", "a,b", "--node-root", "a=sid"])
    assert (options.nodes, options.node_root) == (["a", "b"], {"a": "sid"})
    options = cli.parser().parse_args(["kubectl", "get", "pods", "-A", "--dir", "x"])
    assert options.argv == ["get", "pods", "-A", "--dir", "x"]
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["up", "--node-root", "a"])


def test_errors_are_a_line_and_a_status(tmp_path, capsys):
    assert cli.main(["--dir", str(tmp_path), "kubectl", "version"]) == 1
    assert "bring it up" in capsys.readouterr().err
