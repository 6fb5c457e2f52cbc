"""What another pod needs to read a model that lies on a claim."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from airflow_provider_finetune.launchers.places import claim_mount_path, claim_path, claim_volume, is_on_claim

if TYPE_CHECKING:
    from kubernetes.client import V1Volume, V1VolumeMount


class ModelVolumes(NamedTuple):
    """Arguments of a ``KubernetesPodOperator`` and where its program finds the model.

    * ``volumes``, ``volume_mounts``: one of each
    * ``path``: of the model in the pod
    """

    volumes: list[V1Volume]
    volume_mounts: list[V1VolumeMount]
    path: str


def volumes_for(model_uri: str, *, claim_read_only: bool = True) -> ModelVolumes:
    """Return volume, mount and path with which another pod reads a model at ``pvc://<claim>/<path>``.

    The claim must be known while the DAG file is parsed; the path behind it may be a template, and is in ``path`` as it
    stands. The claim is mounted where a training mounts it, so ``model_path`` of a training's XCom is right as well,
    unless that task mounts the claim by ``kubernetes_config`` elsewhere:

    .. code-block:: python

        model = volumes_for("pvc://training")
        evaluate = KubernetesPodOperator(
            task_id="evaluate",
            volumes=model.volumes,
            volume_mounts=model.volume_mounts,
            arguments=["--model", "{{ ti.xcom_pull('train')['model_path'] }}"],
            ...,
        )

    :param model_uri: ``pvc://<claim>``, with or without a path.
    :param claim_read_only: mount the claim read-only.
    :raises ValueError: it is no such URI, or its claim is a template.
    """
    if not isinstance(model_uri, str) or not is_on_claim(model_uri) or model_uri.startswith("pvc://{"):
        raise ValueError(
            f"volumes_for({model_uri!r}): only a model at pvc://<claim>/<path> lies on a volume, and the claim must be "
            "known while the DAG file is parsed. Name the claim, and take the path from the task's XCom 'model_path'."
        )
    claim, path = claim_path(model_uri)
    from kubernetes.client import V1PersistentVolumeClaimVolumeSource, V1Volume, V1VolumeMount

    name = claim_volume(claim)["name"]
    source = V1PersistentVolumeClaimVolumeSource(claim_name=claim, read_only=claim_read_only)
    mount = V1VolumeMount(name=name, mount_path=claim_mount_path(claim), read_only=claim_read_only)
    volume = V1Volume(name=name, persistent_volume_claim=source)
    return ModelVolumes([volume], [mount], f"{mount.mount_path}/{path}".rstrip("/"))
