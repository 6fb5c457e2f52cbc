"""Bare API servers with the resources of one version of the Trainer and nothing that acts on them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.bed import controllers
from tests.cluster.bed.certificates import kubeconfig
from tests.cluster.bed.cluster import Cluster
from tests.cluster.bed.control_plane import answers
from tests.cluster.bed.processes import free_port


@dataclass(frozen=True)
class TrainerAPI:
    """What one version of the Trainer takes."""

    version: str
    kubeconfig: Path
    """The administrator's. There is the namespace ``default``."""
    programs: Path

    def dry_run(self, manifest: dict[str, Any]) -> None:
        """Have an object checked as strictly as can be, and not kept.

        :raises subprocess.CalledProcessError: if it is refused; ``stderr`` has the reason.
        """
        strict = ("create", "--dry-run=server", "--validate=strict", "--filename=-")
        controllers.kubectl(self.programs, self.kubeconfig, *strict, stdin=json.dumps(manifest))


@contextlib.contextmanager
def started(cluster: Cluster, version: str) -> Iterator[TrainerAPI]:
    """Run one, as the cluster's own API server is run but with a part of etcd of its own."""
    name = f"trainer-api-{version}-{os.getpid()}"
    port = free_port()
    own = json.loads((cluster.folder / "services" / "kube-apiserver.json").read_text())["argv"]
    replaced = {"--secure-port": str(port), "--etcd-prefix": f"/{name}"}
    argv = [f"{option}={replaced[option]}" if (option := item.partition("=")[0]) in replaced else item for item in own]
    user = json.loads(cluster.kubeconfig.read_text())["users"][0]["user"]
    authority = cluster.folder / "certificates" / "ca.crt"
    config = kubeconfig(cluster.folder / f"{name}.kubeconfig", f"https://127.0.0.1:{port}", authority, user)
    programs = cluster.programs
    cluster.processes.start(name, *argv)
    try:
        cluster.processes.wait(name, lambda: answers(programs, config))
        controllers.apply_definitions(programs, config, programs.parent / "manifests" / f"trainer-{version}")
        yield TrainerAPI(version, config, programs)
    finally:
        cluster.processes.stop(name)
