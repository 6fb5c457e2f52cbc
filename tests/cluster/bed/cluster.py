"""The cluster as tests see it, and its beginning and end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.bed import build, controllers, node, packages, runtime
from tests.cluster.bed.certificates import kubeconfig
from tests.cluster.bed.control_plane import ControlPlane, answers
from tests.cluster.bed.processes import ClusterError, Processes

FOLDER = Path(tempfile.gettempdir()).resolve() / "airflow-provider-finetune-cluster"
"""Everything that a running cluster writes. There is one on a machine at a time."""


def impossible() -> str | None:
    """Tell why this machine cannot run the cluster; ``None`` where it can."""
    if sys.platform != "linux":
        return f"the cluster needs Linux, this is {sys.platform}"
    if os.geteuid():
        return "the cluster needs root: it runs containers"
    return None


class Cluster:
    """A running cluster.

    :param folder: where it was started.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        """The administrator's."""
        self.work_dir = folder / "work"
        """Folder of this machine that lies behind the claims: ``NAMESPACE/CLAIM`` is what pods see of a claim."""
        self.processes = Processes(folder)

    @property
    def programs(self) -> Path:
        return Path(json.loads((self.folder / "cluster.json").read_text())["programs"])

    @property
    def api(self) -> Any:
        """A new ``kubernetes.client.ApiClient`` of the administrator."""
        from kubernetes import config

        return config.new_client_from_config(str(self.kubeconfig))

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as the administrator and give what it prints.

        :raises subprocess.CalledProcessError: if it fails.
        """
        return controllers.kubectl(self.programs, self.kubeconfig, *arguments, stdin=stdin)

    def apply(self, *objects: dict[str, Any] | Path) -> None:
        """Create or change objects, given as they are or as a file of YAML."""
        flat: list[dict[str, Any]] = []
        for item in objects:
            flat += yaml.safe_load_all(item.read_text()) if isinstance(item, Path) else [item]
        controllers.apply(self.programs, self.kubeconfig, flat)

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """Write a kubeconfig with a new token of a service account; it has that account's rights and no others."""
        token = self.kubectl("create", "token", name, f"--namespace={namespace}", "--duration=4h").strip()
        server = yaml.safe_load(self.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        path = self.folder / f"{namespace}-{name}.kubeconfig"
        authority = self.folder / "certificates" / "ca.crt"
        return kubeconfig(path, server, authority, {"token": token}, namespace)

    def stop(self, name: str) -> None:
        """End one process of the cluster (``kube-apiserver``, ``trainer``, ``kubelet``, ...) until `resume`."""
        self.processes.stop(name, forget=False)

    def resume(self, name: str) -> None:
        """Start a process again that `stop` has ended, and wait for it where it is the API server."""
        self.processes.resume(name)
        self._await(name)

    def kill(self, name: str) -> None:
        """End one process of the cluster as a machine that fails does, until `revive`."""
        self.processes.kill(name)

    def revive(self, name: str) -> None:
        """Start a process again that `kill` has ended, and wait for it where it is the API server."""
        self.processes.revive(name)
        self._await(name)

    def _await(self, name: str) -> None:
        if name == "kube-apiserver":
            self.processes.wait(name, lambda: answers(self.programs, self.kubeconfig))

    @property
    def audit(self) -> Path:
        """What the API server notes of each TrainJob and pod that was made or deleted: one event of JSON a line."""
        return self.folder / "audit.log"

    def import_image(self, archive: Path) -> None:
        """Put an image onto the node, as written by ``buildah push NAME oci-archive:FILE:NAME``."""
        node.import_archive(self.folder, archive)

    def log(self, name: str) -> str:
        """The end of the log of one process of the cluster."""
        return self.processes.log(name)

    def use_python(self, python: Path) -> None:
        """Let trainings run with an interpreter of this machine."""
        self.apply(runtime.load(python))


def running() -> Cluster | None:
    """Give the cluster that runs on this machine, if it answers.

    :raises ClusterError: if it runs other versions than those that would be started now.
    """
    cluster = Cluster()
    try:
        if not answers(cluster.programs, cluster.kubeconfig):
            return None
    except (OSError, ValueError):
        return None
    if cluster.programs.parent != build.location():
        raise ClusterError(f"The cluster in {FOLDER} runs other versions than these tests need: `make cluster-down`.")
    return cluster


def up(say: build.Say, python: Path | None) -> Cluster:
    """Start a cluster, after removing what an interrupted one has left.

    :param python: the interpreter that trains; `Cluster.use_python` can be called later instead.
    :raises ClusterError: if a part of it does not start.
    """
    programs = build.binaries(say) / "bin"
    packages.install(say)
    processes = Processes(FOLDER)
    processes.end()
    try:
        processes.begin()
        (FOLDER / "work").mkdir()
        (FOLDER / "cluster.json").write_text(json.dumps({"programs": str(programs)}))
        plane = ControlPlane(processes, programs)
        plane.start()
        say("the control plane answers")
        node.start(plane)
        controllers.start(plane)
        say("containerd answers, JobSet and Trainer are installed")
        node.await_ready(plane)
        controllers.await_ready(plane)
        cluster = Cluster()
        if python:
            cluster.use_python(python)
        say(f"the node is ready, with {node.GPUS} pretended GPUs")
        return cluster
    except BaseException:
        _keep_logs(say)
        processes.end()
        raise


def _keep_logs(say: build.Say) -> None:
    kept = build.cache() / "logs-of-the-last-failure"
    shutil.rmtree(kept, ignore_errors=True)
    with contextlib.suppress(OSError):
        shutil.copytree(FOLDER / "logs", kept)
        say(f"the logs are in {kept}")


def down() -> None:
    """End the cluster, whoever started it, and remove every trace of it."""
    Processes(FOLDER).end()


@contextlib.contextmanager
def shared(say: build.Say) -> Iterator[Cluster]:
    """Give the cluster that runs, or one that is started now and ended by the last of the test runs that use it."""
    build.cache().mkdir(parents=True, exist_ok=True)
    with open(build.cache() / "users.lock", "w") as users:
        with build.locked("start"):
            cluster = running()
            ours = FOLDER / "ends-with-its-users"
            if cluster is None:
                cluster = up(say, None)
                ours.touch()
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield cluster
        finally:
            with build.locked("start"):
                fcntl.flock(users, fcntl.LOCK_UN)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if ours.exists():
                        down()


def say_with_time() -> build.Say:
    """A printer of progress, each line with the seconds since now."""
    started = time.monotonic()
    return lambda line: print(f"[{time.monotonic() - started:5.1f} s] {line}", file=sys.stderr, flush=True)
