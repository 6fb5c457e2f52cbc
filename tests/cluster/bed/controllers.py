"""JobSet and Trainer: their resources, their admission and their controllers."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.bed.build import TRAINER
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.processes import ClusterError, free_port

CONFIGURATIONS = {
    "jobset": ("config.jobset.x-k8s.io/v1alpha1", "internalCertManagement"),
    "trainer": ("config.trainer.kubeflow.org/v1alpha1", "certManagement"),
}
PROGRAMS = {"jobset": "jobset", "trainer": "trainer-controller-manager"}
NAMESPACES = ("jobset-system", "kubeflow-system")


def start(plane: ControlPlane) -> None:
    """Install both and start their controllers, without waiting for them."""
    manifests = plane.programs.parent / "manifests"
    for folder in ("jobset", f"trainer-{TRAINER}"):
        apply_definitions(plane.programs, plane.kubeconfig, manifests / folder)
    namespaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in NAMESPACES]
    apply(plane.programs, plane.kubeconfig, namespaces)
    # Both look for their certificate in this folder below TMPDIR.
    serving = plane.folder / "tmp" / "k8s-webhook-server" / "serving-certs"
    serving.mkdir(parents=True)
    for source, name in zip(plane.server, ("tls.crt", "tls.key"), strict=True):
        (serving / name).write_bytes(source.read_bytes())
    for name in CONFIGURATIONS:
        _start_controller(plane, name, manifests / f"{name}-webhook" / "manifests.yaml")


def _start_controller(plane: ControlPlane, name: str, webhooks: Path) -> None:
    version, certificates = CONFIGURATIONS[name]
    webhook, health = free_port(), free_port()
    config = {
        "apiVersion": version,
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": webhook},
        certificates: {"enable": False},
    }
    # A file that begins with a brace is taken for JSON and refused.
    path = plane.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    authority = base64.b64encode(plane.authority.path.read_bytes()).decode()
    objects = list(yaml.safe_load_all(webhooks.read_text()))
    for item in objects:
        item["metadata"]["name"] = f"{name}-{item['metadata']['name']}"
        for hook in item["webhooks"]:
            url = f"https://127.0.0.1:{webhook}{hook['clientConfig']['service']['path']}"
            hook["clientConfig"] = {"url": url, "caBundle": authority}
    (plane.folder / f"{name}.health").write_text(f"http://127.0.0.1:{health}/readyz")
    kubeconfig = {"KUBECONFIG": str(plane.kubeconfig)}
    plane.processes.start(name, plane.programs / PROGRAMS[name], f"--config={path}", env=kubeconfig)
    apply(plane.programs, plane.kubeconfig, objects)


def await_ready(plane: ControlPlane) -> None:
    """Wait until both admit and reconcile."""

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ready(name: str) -> bool:
        with opener.open((plane.folder / f"{name}.health").read_text(), timeout=2) as answer:
            return bool(answer.status == 200)

    for name in CONFIGURATIONS:
        plane.processes.wait(name, lambda name=name: ready(name))  # type: ignore[misc]


def apply(programs: Path, config: Path, objects: list[dict[str, Any]]) -> None:
    """Create or change objects."""
    kubectl(
        programs,
        config,
        "apply",
        "--server-side",
        "--force-conflicts",
        "--filename=-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
    )


def apply_definitions(programs: Path, config: Path, folder: Path) -> None:
    """Install custom resource definitions, and wait until they are served."""
    files = [f"--filename={path}" for path in sorted(folder.glob("*.yaml")) if path.name != "kustomization.yaml"]
    kubectl(programs, config, "apply", "--server-side", *files)
    deadline = time.monotonic() + 60
    # `kubectl wait` fails where a definition is so new that it has no conditions at all.
    while not all(map(_served, json.loads(kubectl(programs, config, "get", "crd", "--output=json"))["items"])):
        if time.monotonic() > deadline:
            raise ClusterError(f"The resources in {folder} are not served after 60 s.")
        time.sleep(0.1)


def _served(definition: dict[str, Any]) -> bool:
    conditions = definition["status"].get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def kubectl(programs: Path, config: Path, *arguments: str, stdin: str | None = None) -> str:
    """Run kubectl and give what it prints.

    :raises subprocess.CalledProcessError: if it fails; with what it said.
    """
    command = [str(programs / "kubectl"), f"--kubeconfig={config}", *arguments]
    answer = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if answer.returncode:
        error = subprocess.CalledProcessError(answer.returncode, command, answer.stdout, answer.stderr)
        error.add_note(answer.stderr)
        raise error
    return answer.stdout
