"""A training as a Kubeflow ``TrainJob`` (Trainer v2), in the forms of its API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.launchers import container
from airflow_provider_finetune.launchers.identity import digest
from airflow_provider_finetune.launchers.kubernetes_config import POD_FIELDS
from airflow_provider_finetune.launchers.observed import DOMAIN, IDENTITY, JOB, MANAGED_BY, WHOLE
from airflow_provider_finetune.launchers.refusal import CannotRender

API_VERSION = "trainer.kubeflow.org/v1alpha1"

NODE = "node"
"""Name of the replicated job that trains, and of its container: the Trainer gives these two their PET_* variables."""

QUEUE = "kueue.x-k8s.io/queue-name"

GRACE_SECONDS = 60
"""From SIGTERM to SIGKILL. Kubernetes' own 30 s are scarce where a process with a hundred gigabytes has to go."""

SAVING_SECONDS = 300
"""The same where a checkpoint is saved first, which takes minutes with billions of weights: as long as training-hub's
own launcher waits for it. A pod that is done ends at once."""

_LONGEST_ARGUMENT = 65_536
"""Bytes: what a TrainJob of 2.2 takes. 2.1 and 2.3 take more, Linux 128 KiB."""

_LONGEST_OBJECT = 256_000
_MOST_ENTRIES = 128


class TrainerApi(str, Enum):
    """The forms of the Trainer's API, newest first. They differ in what they take; their version is the same."""

    RUNTIME_PATCHES = "runtimePatches"
    """Trainer 2.3."""

    RUNTIME_PATCHES_2_2 = "runtimePatches-2.2"
    """Trainer 2.2: as 2.3, without a grace period."""

    POD_TEMPLATE_OVERRIDES = "podTemplateOverrides"
    """Trainer 2.1: also without security contexts and without ``activeDeadlineSeconds``."""


_ALL = frozenset(TrainerApi)
_PATCHES = _ALL - {TrainerApi.POD_TEMPLATE_OVERRIDES}
_NONE: frozenset[TrainerApi] = frozenset()

CARRIED: dict[str, frozenset[TrainerApi]] = {
    "volumes": _ALL,
    "volume_mounts": _ALL,
    "env": _ALL,
    "env_from": _NONE,
    "node_selector": _ALL,
    "tolerations": _ALL,
    "affinity": _ALL,
    "service_account_name": _ALL,
    "security_context": _PATCHES,
    "container_security_context": _PATCHES,
    "image_pull_secrets": _ALL,
    "priority_class_name": _NONE,
    "scheduler_name": _NONE,
    "termination_grace_period_seconds": frozenset({TrainerApi.RUNTIME_PATCHES}),
}
"""Which forms take which key of ``kubernetes_config``."""

NEVER_CARRIED = tuple(key for key, forms in CARRIED.items() if not forms)
"""Keys of ``kubernetes_config`` that only the runtime can set."""


_FORMS_WITH = {
    "spec.runtimePatches": _PATCHES,
    "spec.podTemplateOverrides": _ALL - _PATCHES,
    "spec.activeDeadlineSeconds": _PATCHES,
    f".{POD_FIELDS['termination_grace_period_seconds']}": CARRIED["termination_grace_period_seconds"],
}
"""Which forms have a field, by the end of its name."""


class Unsupported(CannotRender):
    """The Trainer of this cluster is older than what was asked for.

    :param keys: keys of ``kubernetes_config`` that its form lacks.
    """

    def __init__(self, keys: list[str]) -> None:
        rule = f"the Trainer of this cluster is too old to carry {', '.join(keys)}"
        super().__init__("kubernetes_config", rule, "Set it in the runtime's pod template, or install Trainer 2.3")
        self.keys = keys


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """All that the objects of one training are rendered from: checked, plain values.

    * ``name``: from :func:`~airflow_provider_finetune.launchers.identity.job_name`
    * ``image``: ``None`` is the runtime's; ``runner``: ``configmap``, ``inline`` or ``image``
    * ``labels``, ``annotations``: ours, on the job; ``user_labels``, ``user_annotations``: on job and pods
    * ``envs``: the documented parameter; ``secrets``: ``<secret name>/<key>`` by variable name
    * ``hub_cache``: directory of downloaded models
    * ``cpu``, ``memory``: quantities; ``gpus``: a number of ``gpu_resource``; all of one worker
    * ``queue_name``: Kueue local queue
    * ``kubernetes_config``: as plain JSON; ``claims``: ``volumes`` and ``volume_mounts`` beside it
    * ``deadline``: ``activeDeadlineSeconds``, counted from the creation, or from the admission by a queue. A net for
      a training that nobody watches any more: the clocks of the trigger end it before. Trainer 2.1 lacks it
    """

    spec: TrainingSpec
    name: str
    namespace: str
    runtime: str
    runtime_kind: str
    image: str | None = None
    runner: str = "configmap"
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    user_labels: dict[str, str] = field(default_factory=dict)
    user_annotations: dict[str, str] = field(default_factory=dict)
    envs: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    hub_cache: str
    cpu: str
    memory: str
    gpus: int
    gpu_resource: str
    queue_name: str | None = None
    kubernetes_config: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    deadline: int | None = None

    @property
    def whole(self) -> str:
        """Hash of the request: the value of the label :data:`WHOLE`, which :func:`render` sets."""
        asked = asdict(self)
        for name in ("name", "namespace", "labels", "annotations", "spec"):
            del asked[name]
        # What is not asked for is left out, so that a field added later changes no hash.
        return digest({"spec": self.spec.whole_hash(), **{name: value for name, value in asked.items() if value}})


def render(request: JobRequest, api: TrainerApi) -> dict[str, Any]:
    """Return the TrainJob.

    ``spec.trainer`` is always there, else the Trainer injects no variable at all, and in it ``numProcPerNode``, which
    it would guess. ``suspend`` is never there: it is the queue's.

    :param request: what was asked for.
    :param api: the form that the cluster takes.
    :raises Unsupported: the form lacks what was asked for.
    :raises CannotRender: the object would be too large, or would run nothing.
    """
    missing = [key for key in request.kubernetes_config if api not in CARRIED[key]]
    if missing:
        raise Unsupported(missing)
    if request.spec.nodes < 1:
        # The Trainer completes such a job at once, without a pod.
        raise CannotRender("training_resource_num_workers", "it must be at least 1", "1 trains in one pod")
    queue = {QUEUE: request.queue_name} if request.queue_name else {}
    group = API_VERSION.partition("/")[0]
    spec = {
        "runtimeRef": {"apiGroup": group, "kind": request.runtime_kind, "name": request.runtime},
        "trainer": _trainer(request, api),
        **_pods(request, api),
    }
    if request.deadline is not None and api is not TrainerApi.POD_TEMPLATE_OVERRIDES:
        spec["activeDeadlineSeconds"] = request.deadline
    job = {
        "apiVersion": API_VERSION,
        "kind": "TrainJob",
        "metadata": {
            "name": request.name,
            "namespace": request.namespace,
            "labels": {**request.user_labels, **request.labels, WHOLE: request.whole, **queue},
            "annotations": {**request.user_annotations, **request.annotations},
        },
        "spec": spec,
    }
    _check_sizes(job)
    return job


def forms_with(field: str) -> frozenset[TrainerApi]:
    """Return the forms that a server rules out by not knowing ``field``; none where no form differs in it.

    :param field: e.g. ``spec.runtimePatches``.
    """
    return next((forms for end, forms in _FORMS_WITH.items() if field.endswith(end)), _NONE)


def _trainer(request: JobRequest, api: TrainerApi) -> dict[str, Any]:
    command, arguments = container.command(request.runner, request.spec.to_json(), _grace(request, api))
    return {
        **({"image": request.image} if request.image else {}),
        "command": command,
        "args": arguments,
        "env": container.environment(
            hub_cache=request.hub_cache,
            config_env=request.kubernetes_config.get("env", []),
            training_envs=request.envs,
            secrets=request.secrets,
        ),
        "numNodes": request.spec.nodes,
        "numProcPerNode": int(request.spec.processes_per_node),
        "resourcesPerNode": container.resources(
            cpu=request.cpu,
            memory=request.memory,
            # To read an outcome takes none.
            gpus=0 if request.spec.recover else request.gpus,
            gpu_resource=request.gpu_resource,
        ),
    }


def _pods(request: JobRequest, api: TrainerApi) -> dict[str, Any]:
    """Return what is asked for beside ``spec.trainer``, as the form has it."""
    ours = {name: request.labels[name] for name in (MANAGED_BY, IDENTITY) if name in request.labels}
    metadata: dict[str, Any] = {"labels": {**request.user_labels, **ours, JOB: request.name}}
    if request.user_annotations:
        metadata["annotations"] = request.user_annotations
    spec = _pod_spec(request)
    if api is TrainerApi.POD_TEMPLATE_OVERRIDES:
        return {"podTemplateOverrides": [{"targetJobs": [{"name": NODE}], "metadata": metadata, "spec": spec}]}
    if grace := _grace(request, api):
        spec[POD_FIELDS["termination_grace_period_seconds"]] = grace
    job = {"name": NODE, "template": {"spec": {"template": {"metadata": metadata, "spec": spec}}}}
    patch = {"template": {"spec": {"replicatedJobs": [job]}}}
    return {"runtimePatches": [{"manager": f"{DOMAIN}/operator", "trainingRuntimeSpec": patch}]}


def _grace(request: JobRequest, api: TrainerApi) -> int | None:
    """Return the seconds from SIGTERM to SIGKILL, ``None`` where the runtime or Kubernetes decides."""
    if api not in CARRIED["termination_grace_period_seconds"]:
        return None
    asked_for: int | None = request.kubernetes_config.get("termination_grace_period_seconds")
    usual = GRACE_SECONDS if request.spec.resume == "never" else SAVING_SECONDS
    return usual if asked_for is None else asked_for


def _pod_spec(request: JobRequest) -> dict[str, Any]:
    config = request.kubernetes_config
    mounts = [*config.get("volume_mounts", []), *request.claims.get("volume_mounts", [])]
    volumes, own_mounts = container.own_volumes(request.runner, {mount["mountPath"].rstrip("/") for mount in mounts})
    training: dict[str, Any] = {"name": NODE, "volumeMounts": [*mounts, *own_mounts]}
    if config.get("container_security_context"):
        training["securityContext"] = config["container_security_context"]
    return {
        **{name: config[key] for key, name in POD_FIELDS.items() if key in config},
        "volumes": [*config.get("volumes", []), *request.claims.get("volumes", []), *volumes],
        "containers": [training],
    }


def _check_sizes(job: Mapping[str, Any]) -> None:
    trainer = job["spec"]["trainer"]
    cure = "Move large values into files on the claim: extra_args, training_envs and kubernetes_config travel here"
    for number, argument in enumerate(trainer["args"], start=1):
        size = len(argument.encode())
        if size > _LONGEST_ARGUMENT:
            rule = f"argument {number} of the container has {size:,} bytes, and it may have {_LONGEST_ARGUMENT:,}"
            raise CannotRender("TrainJob", rule, cure)
    if len(trainer["env"]) > _MOST_ENTRIES:
        rule = f"the container has {len(trainer['env'])} environment variables, and a TrainJob takes {_MOST_ENTRIES}"
        raise CannotRender("TrainJob", rule, "Leave some out of training_envs, secrets and kubernetes_config")
    size = len(json.dumps(job).encode())
    if size > _LONGEST_OBJECT:
        rule = f"it has {size:,} bytes, and each of its copies in the cluster's database may have {_LONGEST_OBJECT:,}"
        raise CannotRender("TrainJob", rule, cure)
