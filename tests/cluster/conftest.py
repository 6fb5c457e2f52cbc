"""A real Kubernetes: the cluster, a namespace of one's own, and bare API servers of several Trainer versions.

DAG files are run against it by a real Airflow, whose connection has the rights that are shipped and no others:
``CLUSTER`` holds the arguments of a task.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import rights
from tests.cluster.admission import probe, rule
from tests.cluster.bed import build, runtime
from tests.cluster.bed import cluster as bed
from tests.cluster.bed.claims import claim_objects
from tests.cluster.bed.cluster import Cluster
from tests.cluster.bed.trainer_api import TrainerAPI, started
from tests.cluster.observer import Observer
from tests.dag_runs import airflow_database, parse, run, run_file, xcom

__all__ = ["airflow_database", "parse", "run", "run_file", "xcom"]

_ids = itertools.count()

QUEUE = "kueue.x-k8s.io/queue-name"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here, reason = Path(__file__).parent, bed.impossible()
    for item in items:
        if item.path.is_relative_to(here):
            if reason:
                item.add_marker(pytest.mark.skip(reason))
            # Of the test alone: the first one on a machine waits for its fixture to build the cluster's programs. By a
            # thread, since Airflow takes the alarm signal for limits of its own.
            item.add_marker(pytest.mark.timeout(300, func_only=True, method="thread"), append=False)


@pytest.fixture(scope="session")
def cluster(train_python: Path) -> Iterator[Cluster]:
    """The cluster that runs on this machine, else one that is started now and ends with the tests."""
    with bed.shared(bed.say_with_time()) as running:
        running.use_python(train_python)
        yield running


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace with the service account ``airflow``, which may do nothing, and two claims.

    ``work`` can be mounted by many nodes at once (RWX), and is an empty folder of this machine,
    ``cluster.work_dir / namespace / "work"``; ``rwo`` by one, and its volume belongs to a node that is not there.
    """
    name = f"test-{os.getpid()}-{next(_ids)}"
    claims = [("work", "ReadWriteMany", ""), ("rwo", "ReadWriteOnce", "elsewhere")]
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "airflow", "namespace": name}}
    cluster.apply(account, *(item for claim in claims for item in claim_objects(cluster, name, *claim)))
    yield name
    end_jobs(cluster, name)
    # Nothing waits for these; the namespace alone would take 10 s.
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    cluster.kubectl("delete", "persistentvolume", "--wait=false", *(f"{name}-{claim}" for claim, *_ in claims))
    shutil.rmtree(cluster.work_dir / name)


def end_jobs(cluster: Cluster, namespace: str) -> None:
    """Delete all TrainJobs of a namespace, and wait until their pods are gone.

    In the background, and before anything else goes: deleted in the foreground, as a namespace does it, the Trainer
    starts them again.
    """
    cluster.kubectl("delete", "trainjobs", "--all", f"--namespace={namespace}", "--cascade=background")
    pods = ("delete", "pods", "--all", f"--namespace={namespace}", "--grace-period=1", "--timeout=60s")
    cluster.kubectl(*pods)


@pytest.fixture
def observed(cluster: Cluster, namespace: str) -> Observer:
    """The namespace as an administrator sees it."""
    return Observer(cluster, namespace)


@pytest.fixture
def wait(cluster: Cluster) -> Callable[..., Any]:
    """Wait until a function of the cluster gives something, and return that."""

    def until(give: Callable[[], Any], what: str, timeout: float = 60) -> Any:
        deadline = time.monotonic() + timeout
        while not (found := give()):
            if time.monotonic() > deadline:
                events = cluster.kubectl("get", "events,pods", "--all-namespaces")
                pytest.fail(f"no {what} after {timeout:.0f} s\n{events[-4000:]}")
            time.sleep(0.2)
        return found

    return until


@pytest.fixture(scope="session", params=build.TRAINERS)
def trainer_api(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[TrainerAPI]:
    """The API of each version of the Trainer that is supported, one after the other."""
    with started(cluster, request.param) as api:
        yield api


@pytest.fixture(scope="module")
def account(cluster: Cluster, namespace: str) -> Iterator[Path]:
    """The kubeconfig of an account that has the rights of ``docs/kubernetes/rbac.yaml`` in the namespace."""
    objects = rights.shipped(namespace)
    yield rights.grant(cluster, objects)
    rights.withdraw(cluster, objects)


@pytest.fixture(scope="module")
def pod_account(cluster: Cluster, namespace: str) -> Path:
    """The kubeconfig of an account that has the rights of ``docs/kubernetes/rbac-pod.yaml`` in the namespace."""
    return rights.grant(cluster, rights.shipped(namespace, "-pods", file="rbac-pod.yaml"))


@pytest.fixture(scope="module")
def queue(cluster: Cluster, namespace: str) -> Iterator[str]:
    """The name of a queue that holds jobs back until somebody lets them in."""
    expression = "[JSONPatch{op: 'add', path: '/spec/suspend', value: true}]"
    mutation = {"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}
    objects = rule("Mutating", namespace, "queue", QUEUE, mutations=[mutation], reinvocationPolicy="Never")
    cluster.apply(*objects)
    create = ("create", "--dry-run=server", "--output=json", "--filename=-")
    deadline = time.monotonic() + 30
    while not json.loads(cluster.kubectl(*create, stdin=json.dumps(probe(namespace, QUEUE))))["spec"].get("suspend"):
        assert time.monotonic() < deadline, "the rule is not in force"
    yield "gpus"
    cluster.kubectl("delete", *(f"{item['kind']}/{item['metadata']['name']}" for item in objects))


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a connection, ``kubernetes_default`` unless another is named, of a kubeconfig."""

    def make(kubeconfig: Path, conn_id: str = "kubernetes_default") -> None:
        connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(kubeconfig)}}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))

    return make


@pytest.fixture(scope="session")
def model_to(train_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Put a model that trains in milliseconds into a folder."""
    model = tmp_path_factory.mktemp("model") / "tiny"
    program = "import sys; from pathlib import Path; from tests.train.tiny_model import save_tiny_model as save"
    subprocess.run(
        [train_python, "-c", f"{program}; save(Path(sys.argv[1]))", model],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )

    def put(target: Path) -> None:
        shutil.copytree(model, target)
        for file in target.iterdir():
            file.chmod(0o644)  # pods that are not root read it too

    return put


@pytest.fixture(scope="module")
def claim(cluster: Cluster, namespace: str, model_to: Callable[[Path], None]) -> Path:
    """The folder of the claim ``work``, with the model and 32 rows to train it on."""
    folder = cluster.work_dir / namespace / "work"
    model_to(folder / "models" / "tiny")
    rows = [[{"role": "user", "content": f"number {n}?"}, {"role": "assistant", "content": str(n)}] for n in range(32)]
    (folder / "train.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return folder


@pytest.fixture
def cluster_task(namespace: str, account: Path, connect: Callable[..., None]) -> dict[str, Any]:
    """Arguments of a task that trains on the cluster without a GPU, with data and model on the claim ``work``."""
    connect(account)
    return {
        "launcher": "trainjob",
        "namespace": namespace,
        "dataset": "pvc://work/train.jsonl",
        "pvc_path": "pvc://work/runs",
        "training_base_model": "pvc://work/models/tiny",
        "training_effective_batch_size": 8,
        "training_num_epochs": 1,
        "training_resource_gpu_per_worker": 0,
        "training_resource_cpu_per_worker": "900m",
        "training_resource_memory_per_worker": "3Gi",
        "progress_interval": 1,
    }


def by_pod(train_python: Path) -> dict[str, Any]:
    """What makes a task train in a pod of its own, which has no runtime to bring the interpreter."""
    (job,) = runtime.load(train_python)["spec"]["template"]["spec"]["replicatedJobs"]
    template = {"spec": job["template"]["spec"]["template"]["spec"]}
    return {"launcher": "pod", "pod_operator_arguments": {"pod_template_dict": template}}


@pytest.fixture
def in_own_pod(pod_account: Path, connect: Callable[..., None], train_python: Path) -> dict[str, Any]:
    """The same by a connection that has the rights for it."""
    connect(pod_account, "pods")
    return {**by_pod(train_python), "kubernetes_conn_id": "pods"}


@pytest.fixture
def launched(in_own_pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arguments of a task that make it take a launcher, by its name."""
    return {"trainjob": {"launcher": "trainjob"}, "pod": in_own_pod}


@pytest.fixture
def constants(cluster_task: dict[str, Any], in_own_pod: dict[str, Any]) -> dict[str, Any]:
    return {"CLUSTER": cluster_task, "POD": {**cluster_task, **in_own_pod}}
