"""etcd, API servers, controller manager and scheduler."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.cluster.bed.certificates import Authority, client, kubeconfig
from tests.cluster.bed.processes import Processes, free_port

_WORKLOADS = [{"group": "trainer.kubeflow.org", "resources": ["trainjobs"]}, {"group": "", "resources": ["pods"]}]
AUDITED = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "omitManagedFields": True,
    "rules": [
        {"level": "RequestResponse", "verbs": ["create"], "resources": _WORKLOADS},
        {"level": "Metadata", "verbs": ["delete", "deletecollection"], "resources": _WORKLOADS},
        {"level": "None"},
    ],
}
"""Who has made and deleted which workload: what a watch may miss while the API server is away."""


class ControlPlane:
    """Kubernetes without nodes.

    :param programs: the folder with the programs that were built.
    """

    def __init__(self, processes: Processes, programs: Path) -> None:
        self.processes = processes
        self.programs = programs
        self.folder = processes.folder
        self.authority = Authority(self.folder / "certificates")
        self.server = self.authority.issue("kube-apiserver")
        self.admin = self.authority.issue("admin", "system:masters")
        self.kubeconfig = self.folder / "kubeconfig"
        self.etcd = free_port()

    def start(self) -> None:
        """Start everything and wait until the API server answers."""
        self._start_etcd()
        self._start_api_server()
        common = ("--kubeconfig", self.kubeconfig, "--leader-elect=false", "--secure-port=0")
        key = self.authority.folder / "service-accounts.key"
        tokens = (f"--service-account-private-key-file={key}", f"--root-ca-file={self.authority.path}")
        # 20 a second by default, which many namespaces and jobs at once wait for.
        fast = ("--kube-api-qps=200", "--kube-api-burst=300")
        manager = self.programs / "kube-controller-manager"
        plugins = f"--flex-volume-plugin-dir={self.folder / 'volume-plugins'}"
        self.processes.start("kube-controller-manager", manager, *common, *tokens, *fast, plugins)
        self.processes.start("kube-scheduler", self.programs / "kube-scheduler", *common)

    def _start_etcd(self) -> None:
        certificate, key = self.server
        own = f"https://127.0.0.1:{self.etcd}"
        peer = f"https://127.0.0.1:{free_port()}"
        self.processes.start(
            "etcd",
            "/usr/bin/etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={own}",
            f"--advertise-client-urls={own}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            *(f"--{who}cert-file={certificate}" for who in ("", "peer-")),
            *(f"--{who}key-file={key}" for who in ("", "peer-")),
            *(f"--{who}trusted-ca-file={self.authority.path}" for who in ("", "peer-")),
            *(f"--{who}client-cert-auth" for who in ("", "peer-")),
            "--unsafe-no-fsync",  # its data lives no longer than its process
        )

    def _start_api_server(self) -> None:
        port = free_port()
        certificate, key = self.server
        tokens = self.authority.folder / "service-accounts.key"
        policy = self.folder / "audit-policy.json"
        policy.write_text(json.dumps(AUDITED))
        kubeconfig(self.kubeconfig, f"https://127.0.0.1:{port}", self.authority.path, client(*self.admin))
        self.processes.start(
            "kube-apiserver",
            self.programs / "kube-apiserver",
            f"--etcd-servers=https://127.0.0.1:{self.etcd}",
            "--etcd-prefix=/registry",
            f"--etcd-cafile={self.authority.path}",
            f"--etcd-certfile={certificate}",
            f"--etcd-keyfile={key}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",  # it refuses to announce a loopback address
            f"--cert-dir={self.folder / 'tmp'}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.authority.path}",
            f"--kubelet-certificate-authority={self.authority.path}",
            f"--kubelet-client-certificate={self.admin[0]}",
            f"--kubelet-client-key={self.admin[1]}",
            "--kubelet-preferred-address-types=Hostname",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={tokens}",
            f"--service-account-signing-key-file={tokens}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.folder / 'audit.log'}",
        )
        self.processes.wait("kube-apiserver", lambda: answers(self.programs, self.kubeconfig))


def answers(programs: Path, config: Path) -> bool:
    """Tell whether an API server is ready."""
    command = [str(programs / "kubectl"), f"--kubeconfig={config}", "get", "--raw=/readyz", "--request-timeout=2s"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
