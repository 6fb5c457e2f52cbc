"""How another pod reads a model that lies on a claim.

Aspects: a KubernetesPodOperator takes what comes out; the same place as in the training; templates; what is refused.
"""

from __future__ import annotations

import pytest

from airflow_provider_finetune import volumes_for
from airflow_provider_finetune.launchers.places import Places


def test_volume_mount_and_path_are_the_models_of_kubernetes():
    from kubernetes import client

    (volume,), (mount,), path = volumes_for("pvc://training/runs/model")
    assert volume == client.V1Volume(
        name="finetune-training",
        persistent_volume_claim=client.V1PersistentVolumeClaimVolumeSource(claim_name="training", read_only=True),
    )
    assert mount == client.V1VolumeMount(name="finetune-training", mount_path="/mnt/training", read_only=True)
    assert path == "/mnt/training/runs/model"


def test_a_path_is_the_one_that_the_training_knows():
    uri = "pvc://training/runs/model"
    assert volumes_for(uri).path == Places({}, written=[uri]).path(uri)


def test_the_path_may_be_a_template_and_the_claim_may_not():
    path = "runs/{{ run_id }}/{{ ti.xcom_pull('train')['x'] }}"
    assert volumes_for(f"pvc://training/{path}").path == f"/mnt/training/{path}"
    with pytest.raises(ValueError, match="the claim must be known while the DAG file is parsed"):
        volumes_for("pvc://{{ params.claim }}/model")


def test_a_claim_may_be_written_where_that_is_asked_for():
    assert volumes_for("pvc://training", claim_read_only=False).volume_mounts[0].read_only is False


@pytest.mark.parametrize("uri", ["/models/x", "s3://bucket/x", "file:///x", None])
def test_a_model_that_lies_on_no_claim_is_refused(uri):
    with pytest.raises(ValueError, match="only a model at pvc://<claim>/<path> lies on a volume"):
        volumes_for(uri)
