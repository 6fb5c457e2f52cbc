"""What a queue does to a training. The API server stands for the queue: as Kueue it holds new jobs of a queue back.

Tested, each by a task on the real cluster: a job that waits and is let in trains, and its waiting is neither start nor
training; one that is not let in within ``queue_timeout`` is deleted; GPUs that are asked for are given, with a process
for each.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cluster.bed.cluster import Cluster
from tests.cluster.conftest import end_jobs

Jobs = Callable[[], list[dict[str, Any]]]
WAITING = 11.0
"""Seconds in the queue, longer than either of the two clocks that must not run meanwhile."""


@pytest.fixture
def jobs(cluster: Cluster, namespace: str) -> Iterator[Jobs]:
    def found() -> list[dict[str, Any]]:
        return json.loads(cluster.kubectl("get", "trainjobs", f"--namespace={namespace}", "--output=json"))["items"]

    yield found
    end_jobs(cluster, namespace)


@contextmanager
def let_in_after(cluster: Cluster, namespace: str, jobs: Jobs) -> Iterator[None]:
    """Let the next job in when it has waited for some time."""

    def let_in() -> None:
        while not (held := [job["metadata"]["name"] for job in jobs() if job["spec"].get("suspend")]):
            if ended.wait(0.2):
                return
        if not ended.wait(WAITING):
            patch = '--patch={"spec":{"suspend":false}}'
            cluster.kubectl("patch", "trainjob", held[0], f"--namespace={namespace}", "--type=merge", patch)

    ended = threading.Event()
    thread = threading.Thread(target=let_in)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_time_in_a_queue_is_neither_start_nor_training(
    cluster: Cluster,
    namespace: str,
    queue: str,
    jobs: Jobs,
    run: Callable[..., SimpleNamespace],
):
    clocks = {"startup_timeout": WAITING - 1, "training_timeout": WAITING - 1, "queue_timeout": 60}
    arguments = {"queue_name": queue, "dataset": "pvc://work/nowhere.jsonl", **clocks}
    with let_in_after(cluster, namespace, jobs):
        result = run(f'LoRAOperator(task_id="train", **CLUSTER | {arguments!r})')
    (job,) = jobs()
    told = re.findall(rf"queued: the queue holds TrainJob {job['metadata']['name']} back", result.log)
    assert len(told) == 1
    queued = re.search(r"queued (\d+) s; starting: TrainJob", result.log)
    assert queued
    assert WAITING - 1 <= int(queued[1]) < WAITING + 10
    assert re.search(r"starting \d s; running on node1", result.log)
    assert re.search(r"running \d s; failed", result.log)
    # Which is the runner's own word, so it has run.
    assert "Training failed (user: model_missing)" in result.log


def test_a_job_that_no_queue_lets_in_is_deleted_when_its_clock_has_run_out(
    queue: str, jobs: Jobs, run: Callable[..., SimpleNamespace]
):
    result = run(f'LoRAOperator(task_id="train", queue_name={queue!r}, queue_timeout=3, **CLUSTER)')
    assert result.state == "failed"
    error = result.log[result.log.index("Training failed (resources: queue_timeout)") :]
    assert re.match(r".*The queue did not let the job in within queue_timeout=3 s and the job was deleted", error)
    assert "raise queue_timeout" in error.lower()
    assert not jobs()


def test_gpus_are_given_to_the_pod_with_a_process_for_each(
    cluster: Cluster, namespace: str, claim: Path, jobs: Jobs, run: Callable[..., SimpleNamespace]
):
    result = run('LoRAOperator(task_id="train", **CLUSTER | {"training_resource_gpu_per_worker": 2})')
    (pod,) = json.loads(cluster.kubectl("get", "pods", f"--namespace={namespace}", "--output=json"))["items"]
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert {"name": "PET_NPROC_PER_NODE", "value": "2"} in container["env"]
    assert pod["spec"]["nodeName"] == "node1"
    # The GPUs are pretended, which the runner notices before anything is trained.
    assert re.findall(r"Training failed \((.*?)\)", result.log) == ["infrastructure: no_cuda_device"]
