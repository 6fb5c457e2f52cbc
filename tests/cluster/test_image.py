"""An image with the runner in it, built from ``images/Containerfile`` and run by a task with ``runner="image"``.

Its base has no training-hub, which would be gigabytes: so the runner that was built in gets as far as to miss it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_provider_finetune.archive import FILE_NAME, runner_bytes
from tests.cluster.bed import cluster as bed
from tests.cluster.bed.cluster import Cluster
from tests.cluster.bed.image import images

NAME = "test.local/training-hub:1"


@pytest.fixture(scope="module")
def image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the image, which is on the node."""
    context = tmp_path_factory.mktemp("context")
    (context / FILE_NAME).write_bytes(runner_bytes())
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    images(bed.say_with_time()).build(context, archive, NAME)
    cluster.import_image(archive)
    archive.unlink()
    return NAME


def test_the_runner_in_the_image_is_run_by_a_user_that_is_not_root(
    cluster: Cluster, namespace: str, claim: Path, image: str, run: Callable[..., SimpleNamespace]
):
    result = run(f'LoRAOperator(task_id="train", runner="image", image={image!r}, **CLUSTER)')
    assert "Training failed (user: training_hub_missing)" in result.log
    (pod,) = json.loads(cluster.kubectl("get", "pods", f"--namespace={namespace}", "--output=json"))["items"]
    assert not [volume for volume in pod["spec"]["volumes"] if "configMap" in volume]
    (log,) = claim.glob("runs/**/train.log")
    assert (log.stat().st_uid, log.stat().st_gid) == (1001, 0)
