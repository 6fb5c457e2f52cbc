"""From checked arguments to what runs: a ``TrainingSpec``, and on a cluster a ``JobRequest``. Pure, without Airflow."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from airflow_provider_finetune.contract.parameters import OPERATOR_ONLY
from airflow_provider_finetune.contract.spec import SCRATCH_DIRECTORY, TrainingSpec
from airflow_provider_finetune.launchers.identity import (
    TaskInstance,
    identity_annotations,
    identity_labels,
    job_name,
)
from airflow_provider_finetune.launchers.job_request import JobRequest
from airflow_provider_finetune.launchers.kinds import POD
from airflow_provider_finetune.launchers.kubernetes_config import json_of
from airflow_provider_finetune.launchers.places import Places
from airflow_provider_finetune.operators.arguments import none_if_empty, seconds
from airflow_provider_finetune.operators.cluster_places import given, places_of, root_of
from airflow_provider_finetune.operators.cluster_rules import plain_config
from airflow_provider_finetune.operators.place_rules import OUTPUTS
from airflow_provider_finetune.operators.pod_rules import CONFIGURED_IMAGE

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_NAME = 100
_BESIDE_THE_MODEL = {"output_metrics": "metrics.json", "output_loss_chart": "loss.html"}
_FOR_OUR_OWN_CLOCKS = 120


def local_spec(
    algorithm: str,
    documented: Mapping[str, Any],
    values: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    work_dir: Path,
    map_index: int,
) -> TrainingSpec:
    """Return the spec of a training on this machine, which takes the devices that it finds.

    :param algorithm: training-hub's name.
    :param documented: the rendered documented inputs by name.
    :param values: the checked values of the record.
    :param arguments: the other checked arguments by name.
    :param work_dir: directory of the task instance.
    :param map_index: ``-1`` where the task is not mapped.
    """
    gpus, processes = values["resource_gpu_per_worker"], values["resource_num_procs_per_worker"]
    return TrainingSpec(
        algorithm=algorithm,
        base_model=values["base_model"],
        dataset=documented["dataset"],
        work_dir=str(work_dir),
        output_model=output(documented["output_model"], map_index),
        output_metrics=output(documented["output_metrics"], map_index),
        output_loss_chart=output(documented["output_loss_chart"], map_index),
        # Nobody who asks for no GPU wants one taken, also where the machine has some.
        device="cpu" if gpus == 0 else "auto",
        processes_per_node=int(processes) if processes != "auto" else gpus if gpus > 1 else "auto",
        **_alike_everywhere(documented, values, arguments),
    )


def cluster_spec(
    algorithm: str,
    documented: Mapping[str, Any],
    values: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    places: Places,
    task: TaskInstance,
) -> TrainingSpec:
    """Return the spec of a training in pods, which takes the devices that it was given.

    :param algorithm: training-hub's name.
    :param documented: the rendered documented inputs by name.
    :param values: the checked values of the record.
    :param arguments: the other checked arguments by name.
    :param places: of these inputs.
    :param task: the try that trains.
    """
    published: dict[str, Any] = {name: output(_path(documented, places, name), task.map_index) for name in OUTPUTS}
    if root_of(documented, arguments) is None:
        beside = {name: f"{published['output_model'].rstrip('/')}/{file}" for name, file in _BESIDE_THE_MODEL.items()}
        published = {name: place or beside.get(name) for name, place in published.items()}
    spec = _alike_everywhere(documented, values, arguments)
    if values.get("data_output_dir"):
        spec["parameters"]["data_output_dir"] = places.path(values["data_output_dir"])
    gpus, processes = values["resource_gpu_per_worker"], values["resource_num_procs_per_worker"]
    return TrainingSpec(
        algorithm=algorithm,
        base_model=places.path(values["base_model"]),
        dataset=places.path(documented["dataset"]),
        work_dir=str(work_directory(_root(documented, arguments, places), *task.path)),
        processes_per_node=max(gpus, 1) if processes == "auto" else int(processes),
        nodes=values["resource_num_workers"],
        device="cuda" if gpus else "cpu",
        mounts=places.mounts,
        **published,
        **spec,
    )


def cluster_request(
    algorithm: str,
    documented: Mapping[str, Any],
    values: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    task: TaskInstance,
    namespace: str,
    deployment: str,
) -> JobRequest:
    """Return what a training on a cluster is rendered from.

    :param algorithm: training-hub's name.
    :param documented: the rendered documented inputs by name.
    :param values: the checked values of the record.
    :param arguments: the other checked arguments by name, with the settings :data:`CONFIGURED_ROOT` and
        :data:`CONFIGURED_IMAGE`.
    :param task: the try that trains.
    :param namespace: of the workload.
    :param deployment: what tells this Airflow from another one that uses the same namespace.
    """
    config = plain_config(documented["kubernetes_config"], arguments["launcher"])
    places = places_of(documented, arguments, config)
    further = arguments["pod_operator_arguments"] or {}
    own_pod = arguments["launcher"] == POD.name
    return JobRequest(
        spec=cluster_spec(algorithm, documented, values, arguments, places=places, task=task),
        name=job_name(task.dag_id, task.task_id, task.ti_id),
        namespace=namespace,
        runtime="" if own_pod else arguments["runtime"],
        runtime_kind="" if own_pod else arguments["runtime_kind"],
        image=none_if_empty(arguments["image"]) or arguments.get(CONFIGURED_IMAGE),
        runner=arguments["runner"],
        labels=identity_labels(task, deployment=deployment, namespace=namespace),
        annotations=identity_annotations(task),
        user_labels=values["metadata_labels"],
        user_annotations=values["metadata_annotations"],
        envs=values["envs"],
        secrets=dict(arguments["secrets"] or {}),
        # Below the root that tasks share, so that a base model is downloaded once.
        hub_cache=str(_root(documented, arguments, places) / ".cache/huggingface/hub"),
        cpu=values["resource_cpu_per_worker"],
        memory=values["resource_memory_per_worker"],
        gpus=values["resource_gpu_per_worker"],
        gpu_resource=arguments["gpu_resource"],
        queue_name=none_if_empty(arguments["queue_name"]),
        kubernetes_config=config,
        pod_operator_arguments={name: json_of(value) for name, value in further.items()},
        claims={"volumes": places.volumes, "volume_mounts": places.volume_mounts},
        deadline=_deadline(arguments),
    )


def _alike_everywhere(
    documented: Mapping[str, Any], values: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        **({"output_kind": documented["output_kind"]} if "output_kind" in documented else {}),
        "parameters": {name: value for name, value in values.items() if name not in OPERATOR_ONLY},
        "extra_args": dict(arguments["extra_args"] or {}),
        "resume": arguments["resume"],
        "keep": arguments["keep"],
        "max_dropped": arguments["max_dropped"],
        "show_samples": arguments["show_samples"],
        "progress_interval": seconds(arguments["progress_interval"]) or 0,
    }


def _path(documented: Mapping[str, Any], places: Places, name: str) -> str | None:
    place = given(documented, name)
    return None if place is None else places.path(place)


def _root(documented: Mapping[str, Any], arguments: Mapping[str, Any], places: Places) -> Path:
    root = root_of(documented, arguments)
    return Path(SCRATCH_DIRECTORY if root is None else places.path(root))


def _deadline(arguments: Mapping[str, Any]) -> int | None:
    """Return the latest end that the trigger's own clocks allow, and some time for them to end it first."""
    startup, training = seconds(arguments["startup_timeout"]), seconds(arguments["training_timeout"])
    if startup is None or training is None:
        return None
    return math.ceil(startup + training + _FOR_OUR_OWN_CLOCKS)


def output(target: str | None, map_index: int) -> str | None:
    """Return where to publish; mapped instances publish below their index, so that none overwrites another.

    :param target: a rendered output; ``None`` is the work directory.
    :param map_index: ``-1`` where the task is not mapped.
    """
    target = none_if_empty(target)
    return target if target is None or map_index < 0 else f"{target.rstrip('/')}/{map_index}"


def work_directory(root: Path, *identity: str) -> Path:
    """Return the directory of one task instance: each part of its identity is one safe file name.

    :param root: the one root of all files.
    :param identity: dag, run, task and perhaps map index.
    """
    return root.joinpath(*map(safe_name, identity))


def safe_name(name: str) -> str:
    """Return ``name`` where it is a safe file name, else one like it that no other name becomes.

    :param name: e.g. a run id such as ``manual__2025-01-01T00:00:00+00:00``.
    """
    safe = _UNSAFE.sub("_", name)[:_LONGEST_NAME].lstrip(".")
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def local_directory(place: str) -> Path:
    """Return the directory that a path or a ``file://`` URI names.

    :param place: checked by :func:`problems_of` to be one of the two.
    """
    # Not by urlsplit: "#" and "?" are part of a path that somebody has put behind "file://".
    uri_path = unquote(place.removeprefix("file://").removeprefix("localhost"))
    return Path(uri_path if place.startswith("file://") else place).expanduser().absolute()
