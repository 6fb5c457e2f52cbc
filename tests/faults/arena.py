"""Where a batch runs: a namespace of the real cluster, the proxy before its API server, and a whole Airflow.

Airflow reaches the cluster through the proxy and in no other way; everything else goes past it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import rights
from tests.cluster.airflow_deployment import AirflowDeployment
from tests.cluster.bed import runtime
from tests.cluster.bed.certificates import kubeconfig
from tests.cluster.bed.claims import claim_objects
from tests.cluster.bed.cluster import Cluster
from tests.faults.plan import Plan
from tests.faults.proxy import FaultProxy

CLAIM, RUNTIME = "work", "stand-in"
WORKER, TRIGGERER = "finetune-worker", "finetune-triggerer"
SECRET = "a-value-that-only-the-secret-holds"
SENT = "a-value-that-is-sent-in-each-job"
PYTHON = Path("/usr/bin/python3")
"""What the stand-in runs with: small, and among the folders of the machine that each pod has."""

TASK: dict[str, Any] = {
    "dataset": f"pvc://{CLAIM}/train.jsonl",
    "pvc_path": f"pvc://{CLAIM}/runs",
    "training_base_model": f"pvc://{CLAIM}/models/tiny",
    "training_effective_batch_size": 8,
    "training_resource_gpu_per_worker": 0,
    "training_resource_cpu_per_worker": "100m",
    "training_resource_memory_per_worker": "64Mi",
    "kubernetes_config": {"termination_grace_period_seconds": 5},
    "secrets": {"HF_TOKEN": "keys/token"},
    "progress_interval": 1,
    # Tries that a fault may cost are no finding.
    "retries": 9,
    "retry_delay": 0.5,
}

LAUNCHERS = ("trainjob", "pod")


@dataclass(frozen=True)
class Arena:
    """All that runs. ``task``: arguments of each task; ``secrets``: what no log may show."""

    cluster: Cluster
    namespace: str
    proxy: FaultProxy
    airflow: AirflowDeployment
    task: dict[str, Any]
    secrets: tuple[str, ...]

    @property
    def claim(self) -> Path:
        """The folder behind the claim of the pods."""
        return self.cluster.work_dir / self.namespace / CLAIM

    def files_with_secrets(self) -> list[str]:
        """Logs of Airflow in which a secret stands: those of its processes and of all tasks."""
        logs = self.airflow.home / "logs"
        texts = {file: file.read_text(errors="replace") for file in logs.rglob("*.log*") if file.is_file()}
        found = [file for file, text in texts.items() if any(secret in text for secret in self.secrets)]
        return [str(file.relative_to(logs)) for file in found]

    def save(self, folder: Path) -> None:
        """Copy what tells how something came about: logs of Airflow, the journals of the programs, the audit."""
        shutil.copytree(self.airflow.home / "logs", folder / "logs", dirs_exist_ok=True)
        shutil.copytree(self.claim / "runs", folder / "runs", dirs_exist_ok=True)
        shutil.copy(self.cluster.audit, folder)


@contextmanager
def arena(cluster: Cluster, launcher: str, plan: Plan) -> Iterator[Arena]:
    """Build all of it, and take it down.

    :param cluster: the real one.
    :param launcher: one of :data:`LAUNCHERS`; there are its rights and no others.
    :param plan: of the faults.
    """
    namespace = f"faults-{os.getpid()}"
    files = {"trainjob": "rbac.yaml", "pod": "rbac-pod.yaml"}
    shipped = rights.shipped(namespace, apart=True, file=files[launcher])
    folder = Path(tempfile.mkdtemp(prefix="finetune-faults-"))
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    authority = cluster.folder / "certificates" / "ca.crt"
    try:
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        shown = _runtime(namespace, folder)
        cluster.apply(*shipped, *claim_objects(cluster, namespace, CLAIM, "ReadWriteMany"), shown, _keys(namespace))
        server = config["clusters"][0]["cluster"]["server"]
        with FaultProxy(server, authority, plan, folder / "certificates") as proxy:
            proxy.clean = True
            tokens = {name: _token(cluster, namespace, name) for name in (WORKER, TRIGGERER)}
            connections = {name: _connection(proxy, namespace, name, token) for name, token in tokens.items()}
            home = folder / "airflow"
            home.mkdir()
            with AirflowDeployment(
                home,
                {"AIRFLOW_CONN_KUBERNETES_DEFAULT": connections[WORKER]},
                triggerers={"AIRFLOW_CONN_KUBERNETES_DEFAULT": connections[TRIGGERER]},
            ) as airflow:
                task = {**TASK, **_launched(launcher, shown), "namespace": namespace}
                yield Arena(cluster, namespace, proxy, airflow, task, (SECRET, SENT, *tokens.values()))
    finally:
        _remove(cluster, namespace, shipped)
        shutil.rmtree(folder, ignore_errors=True)


def _runtime(namespace: str, folder: Path) -> dict[str, Any]:
    """A runtime whose ``python3`` is the stand-in."""
    programs = folder / "bin"
    programs.mkdir()
    shutil.copy(Path(__file__).with_name("stand_in.py"), programs / "python3")
    (programs / "python3").chmod(0o755)
    shown = runtime.load(PYTHON)
    shown["kind"], shown["metadata"]["name"], shown["metadata"]["namespace"] = "TrainingRuntime", RUNTIME, namespace
    pod = _pod_template(shown)["spec"]
    pod["containers"][0]["env"] = [{"name": "PATH", "value": f"/stand-in:{PYTHON.parent}"}]
    pod["containers"][0]["volumeMounts"].append({"name": "stand-in", "mountPath": "/stand-in", "readOnly": True})
    pod["volumes"].append({"name": "stand-in", "hostPath": {"path": str(programs)}})
    return shown


def _pod_template(shown: dict[str, Any]) -> dict[str, Any]:
    template: dict[str, Any] = shown["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    return template


def _launched(launcher: str, shown: dict[str, Any]) -> dict[str, Any]:
    """How the stand-in gets into the pods of a launcher."""
    if launcher == "trainjob":
        return {"launcher": launcher, "runtime": RUNTIME, "runtime_kind": "TrainingRuntime"}
    return {"launcher": launcher, "pod_operator_arguments": {"pod_template_dict": _pod_template(shown)}}


def _keys(namespace: str) -> dict[str, Any]:
    names = {"name": "keys", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": names, "stringData": {"token": SECRET}}


def _token(cluster: Cluster, namespace: str, account: str) -> str:
    return cluster.kubectl("create", "token", account, f"--namespace={namespace}", "--duration=12h").strip()


def _connection(proxy: FaultProxy, namespace: str, account: str, token: str) -> str:
    path = proxy.authority.folder / f"{account}.kubeconfig"
    kubeconfig(path, proxy.url, proxy.authority.path, {"token": token}, namespace)
    return json.dumps({"conn_type": "kubernetes", "extra": {"kube_config_path": str(path)}})


def _remove(cluster: Cluster, namespace: str, shipped: list[dict[str, Any]]) -> None:
    of = f"--namespace={namespace}"
    cluster.kubectl("delete", "trainjobs", "--all", of, "--cascade=background")
    cluster.kubectl("delete", "pods", "--all", of, "--grace-period=1", "--timeout=60s")
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")
    cluster.kubectl("delete", "persistentvolume", f"{namespace}-{CLAIM}", "--wait=false")
    rights.withdraw(cluster, shipped)
    shutil.rmtree(cluster.work_dir / namespace, ignore_errors=True)
