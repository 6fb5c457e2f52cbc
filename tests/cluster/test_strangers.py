"""Jobs of others in a namespace stay theirs: one that has the name of a task, and some that have copied its labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_finetune.exceptions import TrainingRejected
from airflow_provider_finetune.launchers.identity import job_name
from tests.cluster.observer import OURS, Observer
from tests.cluster.stand_in import SUCCESS, StandIn
from tests.cluster.tries import Tries, program, run_id, tries

__all__ = ["program", "run_id", "tries"]

Stranger = Callable[..., dict[str, Any]]


@pytest.fixture
def stranger(observed: Observer) -> Iterator[Stranger]:
    """Have a job as somebody else makes it, held back; return what is to be seen of it."""
    made: set[str] = set()

    def make(name: str, **labels: str) -> dict[str, Any]:
        where = {"name": name, "namespace": observed.namespace, "labels": labels}
        spec = {"runtimeRef": {"name": "training-hub"}, "suspend": True, "trainer": {"numNodes": 1}}
        observed.cluster.apply(
            {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": where, "spec": spec}
        )
        made.add(name)
        return found(name)

    def found(name: str) -> dict[str, Any]:
        (job,) = observed.get("trainjobs", f"--field-selector=metadata.name={name}")
        return {name: job["metadata"].get(name) for name in ("uid", "labels", "annotations", "deletionTimestamp")}

    yield make
    for name in made:
        observed.cluster.kubectl("delete", "trainjob", name, f"--namespace={observed.namespace}")


def test_a_name_that_a_stranger_has_is_an_error_and_his_job_stays(tries: Tries, stranger: Stranger):
    first = tries.next()
    name = job_name("tries", "train", first.ti.id)
    before = stranger(name)
    with pytest.raises(TrainingRejected, match=rf"{name}' exists already .* is not of this task"):
        first.submit()
    assert stranger(name) == before


@pytest.mark.parametrize("copied", [(f"{OURS}/task",), (f"{OURS}/identity",), (f"{OURS}/identity", f"{OURS}/whole")])
def test_a_strangers_job_with_labels_of_ours_is_neither_followed_nor_deleted(
    tries: Tries, program: StandIn, observed: Observer, stranger: Stranger, copied: tuple[str, ...]
):
    first = tries.next()
    ours = first.submit()
    (job,) = observed.get("trainjobs", f"--field-selector=metadata.name={ours}")
    labels = {name: job["metadata"]["labels"][name] for name in ("app.kubernetes.io/managed-by", *copied)}
    before = stranger(f"stranger-{ours}", **labels)
    second = tries.next(training_learning_rate=1e-5)
    new = second.submit()
    assert new not in (ours, f"stranger-{ours}")
    program.end(SUCCESS)
    assert second.finish()["job"]["name"] == new
    assert stranger(f"stranger-{ours}", **labels) == before
