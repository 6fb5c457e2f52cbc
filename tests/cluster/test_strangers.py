"""Jobs of others in a namespace stay theirs: one that has the name of a task, and some that have copied its labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_finetune.exceptions import TrainingRejected
from airflow_provider_finetune.launchers.identity import job_name
from tests.cluster.bed.node import PAUSE_IMAGE
from tests.cluster.observer import OURS, Observer
from tests.cluster.stand_in import SUCCESS, StandIn
from tests.cluster.tries import LAUNCHERS, Running, Tries, program, run_id, running, tries

__all__ = ["program", "run_id", "running", "tries"]

Stranger = Callable[..., dict[str, Any]]

HELD: dict[str, dict[str, Any]] = {
    "trainjob": {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "spec": {"runtimeRef": {"name": "training-hub"}, "suspend": True, "trainer": {"numNodes": 1}},
    },
    "pod": {
        "apiVersion": "v1",
        "kind": "Pod",
        "spec": {
            "schedulingGates": [{"name": "tests.example.org/held"}],
            "containers": [{"name": "base", "image": PAUSE_IMAGE}],
        },
    },
}
"""A job that somebody else has made, and that is held back."""

both = pytest.mark.parametrize(("tries", "launcher"), [(one, one) for one in LAUNCHERS], indirect=["tries"])


@pytest.fixture
def stranger(observed: Observer) -> Iterator[Stranger]:
    """Have a job as somebody else makes it, held back; return what is to be seen of it."""
    made: set[str] = set()

    def make(launcher: str, name: str, **labels: str) -> dict[str, Any]:
        where = {"name": name, "namespace": observed.namespace, "labels": labels}
        observed.cluster.apply({**HELD[launcher], "metadata": where})
        made.add(f"{HELD[launcher]['kind'].lower()}/{name}")
        (job,) = observed.get(f"{HELD[launcher]['kind'].lower()}s", f"--field-selector=metadata.name={name}")
        return {name: job["metadata"].get(name) for name in ("uid", "labels", "deletionTimestamp")}

    yield make
    for name in made:
        observed.cluster.kubectl("delete", name, f"--namespace={observed.namespace}")


@both
def test_a_name_that_a_stranger_has_is_an_error_and_his_job_stays(tries: Tries, stranger: Stranger, launcher: str):
    first = tries.next()
    name = job_name("tries", "train", first.ti.id)
    before = stranger(launcher, name)
    with pytest.raises(TrainingRejected, match=rf"{name}' exists already .* is not of this task"):
        first.submit()
    assert stranger(launcher, name) == before


@both
@pytest.mark.parametrize("copied", [(f"{OURS}/task",), (f"{OURS}/identity",), (f"{OURS}/identity", f"{OURS}/whole")])
def test_a_strangers_job_with_labels_of_ours_is_neither_followed_nor_deleted(
    tries: Tries,
    program: StandIn,
    observed: Observer,
    running: Running,
    stranger: Stranger,
    copied: tuple[str, ...],
    launcher: str,
):
    first = tries.next()
    ours = first.submit()
    running(ours)
    labels = {
        name: observed.workload(ours)["metadata"]["labels"][name] for name in ("app.kubernetes.io/managed-by", *copied)
    }
    before = stranger(launcher, f"stranger-{ours}", **labels)
    second = tries.next(training_learning_rate=1e-5)
    new = second.submit()
    assert new not in (ours, f"stranger-{ours}")
    program.end(SUCCESS)
    assert second.finish()["job"]["name"] == new
    assert stranger(launcher, f"stranger-{ours}", **labels) == before
