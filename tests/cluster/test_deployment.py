"""Trainings of a running Airflow: a scheduler with its workers, and a triggerer in which tasks wait.

Worker and triggerer log in as accounts of their own, each with its roles of ``docs/kubernetes``. Whatever is ended or
dies is so with both launchers; the rest has TrainJobs.

* twenty tasks that wait share one watch on jobs and one on pods; a run that is marked ends them all
* clearing a task that waits ends its training, and begins a new one
* in each way in which a task is ended its pods have ended within their grace period, with a checkpoint saved
* a triggerer that stops, dies or hangs ends no training, and what happens meanwhile is not missed
* an API server that stops for a while ends no training, and is told of once
* a worker that dies or hangs leaves its training to the next try
* a sweep is three trainings at once
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import rights
from tests.cluster.airflow_deployment import AirflowDeployment
from tests.cluster.bed.cluster import Cluster
from tests.cluster.conftest import by_pod
from tests.cluster.observer import Observer
from tests.cluster.stand_in import FAILURE, StandIn
from tests.cluster.tries import LAUNCHERS

QUEUED, RUNNING = "queued: the queue holds", "running on"
WORKER, TRIGGERER, BOTH = "finetune-worker", "finetune-triggerer", "finetune-both"

DAG_FILE = '''
import os
import signal
from datetime import timedelta

from airflow.sdk import DAG
from airflow_provider_finetune import LoRAOperator

TASK = {task!r}
# What is let go ends at its first check.
HELD = {{**TASK, "queue_name": "held", "dataset": "pvc://work/none.jsonl"}}
# With so little CPU a training does not get beyond its start.
ENDLESS = {{
    **TASK,
    "training_resource_cpu_per_worker": "50m",
    "training_resource_memory_per_worker": "1Gi",
    "kubernetes_config": {{"termination_grace_period_seconds": 2}},
}}


LAUNCHED = {{"trainjob": {{"launcher": "trainjob"}}, "pod": {pod!r}}}
SAVES = {{**TASK, **{saves!r}, "kubernetes_config": {{"termination_grace_period_seconds": 15}}}}


class DiesOnce(LoRAOperator):
    """Submits, and takes its worker with it."""

    def _wait(self, run, context):
        if context["ti"].try_number == 1:
            for process in (os.getppid(), os.getpid()):
                os.kill(process, signal.SIGKILL)
        return super()._wait(run, context)


AGAIN = {{"retries": 1, "retry_delay": 0.1}}
with DAG("trains", schedule=None):
    LoRAOperator(task_id="train", **TASK)
with DAG("endless", schedule=None):
    LoRAOperator(task_id="train", **ENDLESS)
with DAG("queued", schedule=None):
    LoRAOperator(task_id="train", **TASK, queue_name="held")
with DAG("held", schedule=None):
    LoRAOperator(task_id="train", **HELD)
with DAG("blocks", schedule=None):
    LoRAOperator(task_id="train", **HELD, **AGAIN, kubernetes_conn_id="both", deferrable=False)
for launcher, how in LAUNCHED.items():
    with DAG(f"saves_{{launcher}}", schedule=None):
        LoRAOperator(task_id="train", **SAVES, **how)
    with DAG(f"saves_and_blocks_{{launcher}}", schedule=None):
        LoRAOperator(task_id="train", **SAVES, **how, kubernetes_conn_id="both", deferrable=False)
    with DAG(f"saves_in_time_{{launcher}}", schedule=None):
        LoRAOperator(task_id="train", **SAVES, **how, execution_timeout=timedelta(seconds=30))
    with DAG(f"dies_{{launcher}}", schedule=None):
        DiesOnce(task_id="train", **SAVES, **how, **AGAIN)
with DAG("twenty", schedule=None):
    for number in range(20):
        LoRAOperator(task_id=f"train_{{number}}", **HELD)
with DAG("sweep", schedule=None):
    sweep = LoRAOperator.partial(task_id="train", output_model="pvc://work/sweep", **TASK)
    sweep.expand(training_learning_rate=[1e-4, 2e-4, 4e-4])
'''


@pytest.fixture(scope="module")
def accounts(cluster: Cluster, namespace: str) -> Iterator[dict[str, str]]:
    """The connections of worker, triggerer and one that is both, by the name of the account."""
    both: list[dict[str, Any]] = [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"{role}-too", "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": BOTH, "namespace": namespace}],
        }
        for role in (WORKER, TRIGGERER, "finetune-pod-worker", "finetune-pod-triggerer")
    ]
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": BOTH, "namespace": namespace}}
    flows = [_flow(namespace, name) for name in (WORKER, TRIGGERER)]
    shipped = [
        item for file in ("rbac.yaml", "rbac-pod.yaml") for item in rights.shipped(namespace, apart=True, file=file)
    ]
    cluster.apply(*shipped, account, *both, *flows)
    yield {name: _connection(cluster, namespace, name) for name in (WORKER, TRIGGERER, BOTH)}
    rights.withdraw(cluster, shipped)
    cluster.kubectl("delete", "flowschemas", *(flow["metadata"]["name"] for flow in flows))


def _flow(namespace: str, account: str) -> dict[str, Any]:
    """What makes the API server count the requests of an account apart."""
    everything = {name: ["*"] for name in ("verbs", "apiGroups", "resources", "namespaces")}
    subject = {"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": account}}
    rule = {"subjects": [subject], "resourceRules": [{**everything, "clusterScope": True}]}
    return {
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
        "kind": "FlowSchema",
        "metadata": {"name": f"{account}-{namespace}"},
        "spec": {"priorityLevelConfiguration": {"name": "workload-low"}, "matchingPrecedence": 500, "rules": [rule]},
    }


def _connection(cluster: Cluster, namespace: str, account: str) -> str:
    kubeconfig = cluster.service_account_kubeconfig(namespace, account)
    return json.dumps({"conn_type": "kubernetes", "extra": {"kube_config_path": str(kubeconfig)}})


@pytest.fixture(scope="module")
def program(claim: Path) -> StandIn:
    """What runs in the pods of the tasks that save."""
    return StandIn(claim, "saves")


@pytest.fixture(scope="module")
def airflow(
    cluster: Cluster,
    namespace: str,
    accounts: dict[str, str],
    queue: str,
    claim: Path,
    program: StandIn,
    train_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[AirflowDeployment]:
    """The running Airflow; data and a base model are on the claim ``work``."""
    task = {
        "namespace": namespace,
        "dataset": "pvc://work/train.jsonl",
        "pvc_path": "pvc://work/runs",
        "training_base_model": "pvc://work/models/tiny",
        "training_effective_batch_size": 8,
        "training_num_epochs": 1,
        "training_resource_gpu_per_worker": 0,
        "training_resource_cpu_per_worker": "600m",
        "training_resource_memory_per_worker": "2Gi",
        "progress_interval": 1,
    }
    both = {"AIRFLOW_CONN_BOTH": accounts[BOTH]}
    deployment = AirflowDeployment(
        tmp_path_factory.mktemp("airflow"),
        {"AIRFLOW_CONN_KUBERNETES_DEFAULT": accounts[WORKER], **both},
        triggerers={"AIRFLOW_CONN_KUBERNETES_DEFAULT": accounts[TRIGGERER]},
    )
    with deployment:
        pod = by_pod(train_python)
        deployment.write_dag("trains", DAG_FILE.format(task=task, saves=program.arguments, pod=pod))
        yield deployment


@pytest.fixture
def waits(airflow: AirflowDeployment, observed: Observer, wait: Callable[..., Any]) -> Callable[..., tuple[str, str]]:
    """Run a DAG and wait until its task is deferred and its trigger has seen the job; return the run and the job."""

    def begin(dag_id: str, phase: str = QUEUED) -> tuple[str, str]:
        run = airflow.run(dag_id)
        airflow.wait_for_state(dag_id, run, "train", "deferred")
        wait(lambda: phase in airflow.log(dag_id, run, "train"), f"line {phase!r} of {dag_id}")
        (job,) = observed.jobs(run)
        return run, job

    return begin


def test_twenty_waiting_tasks_share_two_watches_and_end_with_their_run(airflow, observed, wait):
    jobs, pods = observed.watches()
    before = {account: observed.requests(account) for account in (WORKER, TRIGGERER)}
    run = airflow.run("twenty")
    names = [f"train_{number}" for number in range(20)]
    for name in names:
        airflow.wait_for_state("twenty", run, name, "deferred")
    for name in names:
        wait(lambda name=name: QUEUED in airflow.log("twenty", run, name), f"trigger of {name}")
    assert observed.watches() == (jobs + 1, pods + 1)
    assert len(observed.jobs(run)) == 20
    made = {account: observed.requests(account) - number for account, number in before.items()}
    # Jobs, runtime, ConfigMap, new job; the first on a worker makes the ConfigMap.
    assert made[WORKER] <= 20 * 5
    # Two lists and two watches, and now and then why a queue holds a job.
    assert made[TRIGGERER] <= 4 + 20 * 3
    airflow.end_run("twenty", run)
    wait(lambda: not observed.jobs(run), "end of twenty jobs")
    wait(lambda: observed.watches() == (jobs, pods), "end of the watches")


@pytest.mark.floor
def test_clearing_a_task_that_waits_ends_its_training_and_begins_a_new_one(airflow, observed, wait, waits):
    run, job = waits("endless", RUNNING)
    airflow.clear("endless", run, "train")
    wait(lambda: observed.jobs(run) not in ([job], []), "new job")
    (new,) = wait(lambda: job not in (found := observed.jobs(run)) and found, "end of the old job")
    wait(lambda: observed.pods(new, phase="Running"), "pod of the new job")
    assert not observed.pods(job, phase="Running")
    assert airflow.task("endless", run, "train")["state"] == "deferred"
    airflow.mark("endless", run, "train", "failed")


WAYS: dict[str, tuple[str, Callable[[AirflowDeployment, str, str], None]]] = {
    "marked failed": ("saves", lambda airflow, dag, run: airflow.mark(dag, run, "train", "failed")),
    "marked success": ("saves", lambda airflow, dag, run: airflow.mark(dag, run, "train", "success")),
    "cleared": ("saves", lambda airflow, dag, run: airflow.clear(dag, run, "train")),
    "its run stopped": ("saves", lambda airflow, dag, run: airflow.end_run(dag, run)),
    "marked while its worker waits": (
        "saves_and_blocks",
        lambda airflow, dag, run: airflow.mark(dag, run, "train", "failed"),
    ),
}


@pytest.mark.floor
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_in_whatever_way_a_task_is_ended_its_pod_has_saved_and_is_gone_within_its_grace_period(
    airflow, observed, program, wait, launcher
):
    dags = {way: f"{dag}_{launcher}" for way, (dag, _) in WAYS.items()}
    runs = {way: airflow.run(dag) for way, dag in dags.items()}
    jobs, pods = {}, {}
    for way, dag in dags.items():
        airflow.wait_for_state(dag, runs[way], "train", "running" if "blocks" in dag else "deferred")
        (jobs[way],) = wait(lambda way=way: observed.jobs(runs[way]), f"job of {way!r}")
        (pods[way],) = wait(lambda way=way: observed.pods(jobs[way], phase="Running"), f"pod of {way!r}")
        wait(lambda way=way: program.has_begun(pods[way]), f"program of {way!r}")
    for way, (_, end) in WAYS.items():
        end(airflow, dags[way], runs[way])
    for way, job in jobs.items():
        wait(lambda way=way, job=job: job not in observed.jobs(runs[way]), f"end of the job of {way!r}")
        wait(lambda job=job: not observed.pods(job), f"end of the pod of {way!r}", 15)
        assert program.has_saved(pods[way]), way
    states = {way: airflow.task(dags[way], run, "train")["state"] for way, run in runs.items() if way != "cleared"}
    assert states == {**dict.fromkeys(states, "failed"), "marked success": "success"}
    airflow.end_run(dags["cleared"], runs["cleared"])


@pytest.mark.floor
def test_a_task_whose_execution_timeout_is_over_while_it_waits_has_its_pod_save_and_end(
    airflow, observed, program, wait
):
    runs = {launcher: airflow.run(f"saves_in_time_{launcher}") for launcher in LAUNCHERS}
    for launcher, run in runs.items():
        airflow.wait_for_state(f"saves_in_time_{launcher}", run, "train", "failed")
        log = airflow.log(f"saves_in_time_{launcher}", run, "train")
        assert "Training failed (resources: execution_timeout)" in log
        (job,) = re.findall(r"(?:TrainJob|Pod) (\S+) made in namespace", log)
        assert observed.jobs(run) == []
        wait(lambda job=job: not observed.pods(job), "end of the pod", 15)
        assert program.has_saved(f"{job}-node-0-0" if launcher == "trainjob" else job)


@pytest.mark.floor
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_wait_goes_on_where_triggerers_stop_and_die(airflow, observed, program, waits, launcher):
    dag = f"saves_{launcher}"
    run, job = waits(dag, RUNNING)
    for kill in (False, True):
        airflow.stop_triggerer(kill=kill)
        airflow.start_triggerer()
    assert observed.jobs(run) == [job]
    assert airflow.task(dag, run, "train")["state"] == "deferred"
    program.end(FAILURE)
    try:
        airflow.wait_for_state(dag, run, "train", "failed")
    finally:
        program.go_on()
    assert "infrastructure: library_crash" in airflow.log(dag, run, "train").partition("Task failed with exception")[2]


@pytest.mark.floor
def test_a_wait_outlasts_the_api_server(airflow, observed, wait, waits):
    run, job = waits("queued")
    observed.cluster.stop("kube-apiserver")
    try:
        away = "The cluster cannot be watched, which is waited for"
        wait(lambda: away in airflow.log("queued", run, "train"), "line that the API server is away")
    finally:
        observed.cluster.resume("kube-apiserver")
    wait(lambda: "The cluster can be watched again" in airflow.log("queued", run, "train"), "line that it is back", 90)
    assert observed.jobs(run) == [job]
    observed.let_go(job)
    airflow.wait_for_state("queued", run, "train", "success", timeout=180)
    assert airflow.xcom("queued", run, "train")["job"]["name"] == job
    assert airflow.log("queued", run, "train").count(away) == 1


@pytest.mark.floor
def test_a_triggerer_that_hangs_and_goes_on_ends_nothing_that_another_has_taken_over(airflow, observed, wait, waits):
    run, job = waits("held")
    first = airflow.task("held", run, "train")["trigger"]["triggerer_id"]
    airflow.freeze_triggerer()
    wait(lambda: airflow.task("held", run, "train")["trigger"]["triggerer_id"] != first, "another triggerer")
    airflow.thaw_triggerer()
    left_alone = f"{job} is left alone: the task still waits for it"
    wait(lambda: left_alone in airflow.log("held", run, "train"), "line of the triggerer that had hung")
    assert observed.jobs(run) == [job]
    airflow.end_run("held", run)
    wait(lambda: not observed.jobs(run), "end of the job")


@pytest.mark.floor
def test_what_is_marked_while_no_triggerer_runs_is_left_until_it_is_cleared(airflow, observed, wait, waits):
    airflow.stop_triggerer()
    run = airflow.run("held")
    airflow.wait_for_state("held", run, "train", "deferred")
    (job,) = observed.jobs(run)
    airflow.mark("held", run, "train", "failed")
    airflow.start_triggerer()
    wait(lambda: airflow.task("held", run, "train")["trigger"] is None, "end of the trigger")
    assert observed.jobs(run) == [job]
    airflow.clear("held", run, "train")
    airflow.wait_for_state("held", run, "train", "deferred")
    (new,) = observed.jobs(run)
    assert new != job
    airflow.end_run("held", run)


@pytest.mark.floor
def test_a_worker_that_dies_leaves_its_job_to_the_next_try(airflow, observed, wait):
    dying = [f"dies_{launcher}" for launcher in LAUNCHERS]
    runs = {dag: airflow.run(dag) for dag in ("blocks", *dying)}
    airflow.wait_for_state("blocks", runs["blocks"], "train", "running")
    wait(lambda: QUEUED in airflow.log("blocks", runs["blocks"], "train"), "job")
    airflow.kill_worker_of("blocks", runs["blocks"], "train")
    for dag, run in runs.items():
        wait(lambda dag=dag, run=run: airflow.task(dag, run, "train")["try_number"] == 2, f"second try of {dag}")
        airflow.wait_for_state(dag, run, "train", "deferred", "running")
        said = QUEUED if dag == "blocks" else RUNNING
        wait(
            lambda dag=dag, run=run, said=said: said in airflow.log(dag, run, "train", 2), f"line of {dag}'s second try"
        )
        (job,) = observed.jobs(run)
        assert re.search(f"Following (TrainJob|Pod) {job} of an earlier try", airflow.log(dag, run, "train", 2))
        airflow.mark(dag, run, "train", "failed")
        wait(lambda run=run: not observed.jobs(run), f"end of the job of {dag}")


def test_a_worker_that_hangs_and_goes_on_ends_nothing_that_the_next_try_has_taken_over(airflow, observed, wait):
    run = airflow.run("blocks")
    airflow.wait_for_state("blocks", run, "train", "running")
    wait(lambda: QUEUED in airflow.log("blocks", run, "train"), "job")
    (job,) = observed.jobs(run)
    airflow.hang_worker_of("blocks", run, "train", seconds=45)
    left_alone = f"TrainJob {job} is left alone: a later try of this task waits for it"
    wait(lambda: left_alone in airflow.log("blocks", run, "train"), "line of the worker that had hung")
    assert f"Following TrainJob {job} of an earlier try" in airflow.log("blocks", run, "train", 2)
    assert observed.jobs(run) == [job]
    airflow.mark("blocks", run, "train", "failed")
    wait(lambda: not observed.jobs(run), "end of the job")


def test_a_sweep_is_as_many_trainings_as_it_has_settings(airflow, cluster, namespace):
    run = airflow.run("sweep")
    results = []
    for index in range(3):
        airflow.wait_for_state("sweep", run, "train", "success", map_index=index, timeout=150)
        results.append(airflow.xcom("sweep", run, "train", map_index=index))
    assert [result["model_uri"] for result in results] == [f"pvc://work/sweep/{index}" for index in range(3)]
    assert len({result["job"]["uid"] for result in results}) == 3
    for index in range(3):
        assert (cluster.work_dir / namespace / "work" / "sweep" / str(index) / "adapter_model.safetensors").is_file()


def test_an_outcome_that_went_with_its_pod_is_found_again_and_a_clear_trains_anew(airflow, observed, wait):
    airflow.stop_triggerer()
    run = airflow.run("trains")
    airflow.wait_for_state("trains", run, "train", "deferred")
    (job,) = observed.jobs(run)
    wait(lambda: observed.is_complete(job), "end of the training", 150)
    observed.cluster.kubectl("delete", "pods", f"--namespace={observed.namespace}", *observed.pods(job))
    airflow.start_triggerer()
    airflow.wait_for_state("trains", run, "train", "success")
    assert "so its outcome is looked for" in airflow.log("trains", run, "train")
    found = airflow.xcom("trains", run, "train")["job"]
    assert (found["name"] != job, found["work_dir"].rpartition("/")[2]) == (True, "1")
    assert not observed.jobs(run)
    airflow.wait_for_run("trains", run, "success")
    airflow.clear("trains", run, "train")
    airflow.wait_for_state("trains", run, "train", "deferred")
    airflow.wait_for_state("trains", run, "train", "success", timeout=150)
    assert airflow.xcom("trains", run, "train")["job"]["work_dir"].endswith("/2")
